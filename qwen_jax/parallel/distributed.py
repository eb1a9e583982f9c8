"""Initializes a multi-process run from the environment variables that its launcher has set.

Plain addresses, a Kubernetes JobSet, Slurm and TPU pods are detected, in this order. If none is
found, the run consists of only this process. A partially set environment is an error: otherwise, N
independent runs would write to the same folder.
"""

import contextlib
import dataclasses
import glob
import importlib.util
import itertools
import os
import pathlib
import re
import socket
import sys
import threading
from collections.abc import Iterator, Mapping

import jax

from qwen_jax import compat, exit_codes
from qwen_jax.errors import ConfigError, TrainingError, UnreadableError
from qwen_jax.utils.output import flush_output, print_error

# Set by launchers, so a run stopped by SIGTERM exits with exit_codes.PREEMPTED.
LAUNCHER = "QWEN_JAX_LAUNCHER"
_ADDRESS, _COUNT, _PROCESS = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_HEARTBEAT = "QWEN_JAX_HEARTBEAT_SECONDS"  # a silent host counts as dead after this time
# Where GKE states the processes of a slice, as JAX reads it. A VM of tpu7x has two containers, so
# the number of processes is that of addresses and not of hosts.
_TPU_PROCESSES = ("TPU_PROCESS_ADDRESSES_PATH", "TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
_BROADCAST_SECONDS = 24 * 3600  # a process that dies is noticed earlier, by its heartbeat
_START = "QWEN_JAX_START_SECONDS"  # processes wait so long for each other at the start

_broadcasts = itertools.count()


class LostProcessError(TrainingError):
    """Another process of the run is missing. Launchers restart the run."""

    exit_code = exit_codes.LOST_PROCESS


@dataclasses.dataclass(frozen=True)
class ProcessSpec:
    """One process of a run, and how it connects to the others."""

    found: str  # the detected launcher
    address: str | None = None  # host:port of process 0; None: JAX detects the rest
    count: int | None = None  # number of processes
    process: int | None = None  # index of this process
    local_devices: tuple[int, ...] | None = None  # GPUs of this process; None: all visible ones


def start(environ: Mapping[str, str] = os.environ) -> str | None:
    """Connects this process to its run. Call it once, before using any device.

    Returns:
      A one-line description of the run; None if the environment describes no run.

    Raises:
      ConfigError: the environment is partially set.
      LostProcessError: the processes cannot connect.
    """
    spec = find(environ)
    if spec is None:
        return None
    if spec.count == 1 and spec.address is None:
        return f"one process ({spec.found})"
    # A single launched process also initializes, so it sums in the same order as several would.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if spec.address is not None:
        print(
            f"process {spec.process} of {spec.count} on {socket.gethostname()} ({spec.found}), "
            f"connecting to process 0 at {spec.address}",
            file=sys.stderr,
            flush=True,
        )
    seconds = _positive(environ, _START, 300)
    heartbeat = _positive(environ, _HEARTBEAT, 30)
    try:
        with _time_limit(spec, seconds):
            jax.distributed.initialize(
                spec.address,
                spec.count,
                spec.process,
                spec.local_devices,
                initialization_timeout=seconds + 60,  # JAX would end the process by SIGABRT
                heartbeat_timeout_seconds=heartbeat,
                cluster_detection_method=None if spec.address is None else "deactivate",
            )
    except (RuntimeError, ValueError) as error:
        raise LostProcessError(
            f"the processes could not connect: {str(error).splitlines()[0]}.",
            f"{spec.found}, process 0 at {spec.address or 'an address that JAX detected'}",
            "check that all processes have started and can reach that address and port.",
        ) from error
    return (
        f"{jax.process_count()} processes with {jax.local_device_count()} of "
        f"{jax.device_count()} devices here ({spec.found}"
        + (f", process 0 at {spec.address})" if spec.address else ")")
    )


@contextlib.contextmanager
def _time_limit(spec: ProcessSpec, seconds: int) -> Iterator[None]:
    """Exits with an error if the block, which cannot be interrupted, takes longer."""
    timer = threading.Timer(seconds, _give_up, (spec, seconds))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _give_up(spec: ProcessSpec, seconds: int) -> None:
    if spec.process == 0:
        what = f"not all of the {spec.count} processes connected to process 0"
        fix = "check the output of the other processes, and that they reach this address"
    elif reason := _unreachable(spec.address):
        what = f"process 0 does not respond: {reason}"
        fix = "check the output of process 0, the address and the firewall"
    else:
        what = "process 0 responds, but not all of the other processes connected to it"
        fix = "check the output of the other processes"
    error = LostProcessError(
        f"{what} within {seconds} s.",
        f"{spec.found}, process 0 at {spec.address or 'an address that JAX detected'}",
        f"{fix}; {_START} sets the time.",
    )
    print_error(f"{type(error).__name__}:{error}")
    flush_output()
    os._exit(error.exit_code)


def _unreachable(address: str | None) -> str | None:
    """Returns why no connection to host:port is possible; None if it is."""
    if address is None:
        return None
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def find(environ: Mapping[str, str] = os.environ) -> ProcessSpec | None:
    """Returns the process that the environment describes; None if it describes no run.

    Raises:
      ConfigError: the environment is partially set.
    """
    for detect in (_plain, _jobset, _slurm, _tpu, _others):
        spec = detect(environ)
        if spec is not None:
            return spec
    return None


def is_distributed() -> bool:
    """Returns whether jax.distributed is initialized (a run may have only one process)."""
    return jax.distributed.is_initialized()


def barrier(name: str, *, seconds: int = 600) -> None:
    """Waits until every process has called it.

    It does not use a device, because a Gloo collective would wait at most 30 s.

    Args:
      name: name of the barrier, the same in all processes and unique in the run.
      seconds: timeout.

    Raises:
      LostProcessError: the timeout expired; the message names the missing processes.
    """
    if not is_distributed():
        return
    try:
        compat.coordination_client().wait_at_barrier(name, timeout_in_ms=seconds * 1000)
    except jax.errors.JaxRuntimeError as error:
        raise LostProcessError(
            f"not all processes reached the barrier {name!r}: {str(error).splitlines()[0]}",
            "the other processes",
            "check their output for errors.",
        ) from error


def broadcast(value: str) -> str:
    """Returns the `value` of process 0 in every process; all of them must call it.

    It does not use a device, so process 0 may be late by hours.

    Raises:
      LostProcessError: process 0 is missing.
    """
    if jax.process_count() == 1:
        return value
    name = f"broadcast/{next(_broadcasts)}"
    client = compat.coordination_client()
    if jax.process_index() == 0:
        client.key_value_set(name, value)
        return value
    try:
        return client.blocking_key_value_get(name, timeout_in_ms=_BROADCAST_SECONDS * 1000)
    except jax.errors.JaxRuntimeError as error:
        raise LostProcessError(
            f"process 0 did not send a value: {str(error).splitlines()[0]}",
            "process 0",
            "check its output for errors.",
        ) from error


def kv_put(name: str, value: str) -> None:
    """Sets a key in the coordination service's key-value store, which all processes can read."""
    compat.coordination_client().key_value_set(name, value, allow_overwrite=True)


def kv_list(folder: str) -> list[tuple[str, str]]:
    """Returns the (name, value) pairs under `folder` in the key-value store, without waiting."""
    return list(compat.coordination_client().key_value_dir_get(folder))


def exit_process(code: int) -> None:
    """Exits this process; in a distributed run, immediately and without JAX's shutdown.

    JAX would wait minutes for the other processes, which wait for this one. The launcher stops
    them.
    """
    flush_output()
    if is_distributed():
        os._exit(code)
    sys.exit(code)


def _plain(environ) -> ProcessSpec | None:
    given = {name: environ[name] for name in (_ADDRESS, _COUNT, _PROCESS) if environ.get(name)}
    if not given or "JOB_COMPLETION_INDEX" in environ and _PROCESS not in given:
        return None
    missing = [name for name in (_ADDRESS, _COUNT, _PROCESS) if name not in given]
    if missing:
        raise ConfigError(
            f"the environment sets {', '.join(given)}, but not {', '.join(missing)}.",
            "the environment",
            "in every process, set all three (host:port of process 0, the number of processes, the "
            "index of this process from 0) or none of them.",
        )
    return _process_spec(
        "plain addresses", environ, _positive(environ, _COUNT), _non_negative(environ, _PROCESS)
    )


def _jobset(environ) -> ProcessSpec | None:
    if "JOB_COMPLETION_INDEX" not in environ or any(map(environ.get, _TPU_PROCESSES)):
        return None
    missing = [name for name in (_ADDRESS, _COUNT) if not environ.get(name)]
    if missing:
        raise ConfigError(
            f"this pod of an indexed Kubernetes job does not set {', '.join(missing)}.",
            "the environment",
            "set them in the job's template; see `python -m launch.jobset --dry_run`.",
        )
    return _process_spec(
        "Kubernetes JobSet",
        environ,
        _positive(environ, _COUNT),
        _non_negative(environ, "JOB_COMPLETION_INDEX"),
    )


def _slurm(environ) -> ProcessSpec | None:
    if "SLURM_JOB_ID" not in environ:
        return None
    if "SLURM_STEP_NODELIST" not in environ:  # a batch script or an allocation
        if int(environ.get("SLURM_NTASKS", 1)) > 1:
            raise ConfigError(
                f"this process is in a Slurm allocation of {environ['SLURM_NTASKS']} tasks, but is "
                "not one of them.",
                "the environment",
                "start the command with srun.",
            )
        return None
    missing = [
        name
        for name in ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
        if name not in environ
    ]
    if missing:
        raise ConfigError(
            f"this Slurm step does not set {', '.join(missing)}.",
            "the environment",
            "start the command with srun, and do not unset Slurm's variables.",
        )
    node = _first_node(environ["SLURM_STEP_NODELIST"])
    port = 61440 + int(environ["SLURM_JOB_ID"]) % 4096  # two jobs on one node get different ports
    return ProcessSpec(
        f"Slurm job {environ['SLURM_JOB_ID']}",
        f"{node}:{port}",
        _positive(environ, "SLURM_NTASKS"),
        _non_negative(environ, "SLURM_PROCID"),
        _slurm_devices(environ),
    )


def _slurm_devices(environ) -> tuple[int, ...] | None:
    """Returns the indices of this task's GPUs among the visible ones; None: all of them."""
    tasks = max(map(int, re.findall(r"(\d+)(?:\(x\d+\))?", environ["SLURM_STEP_TASKS_PER_NODE"])))
    local = _non_negative(environ, "SLURM_LOCALID")
    if tasks == 1:
        return None
    visible = [gpu for gpu in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    if len(visible) == 1:  # --gpus-per-task: Slurm has assigned them
        return None
    if len(visible) % tasks:
        raise ConfigError(
            f"{len(visible)} GPUs cannot be divided evenly among {tasks} tasks on a node.",
            "CUDA_VISIBLE_DEVICES, --ntasks-per-node",
            "request one task per GPU or one task per node.",
        )
    each = len(visible) // tasks or 1
    return tuple(range(local * each, (local + 1) * each))


def _first_node(nodes: str) -> str:
    """Returns the first node of a Slurm node list: node[003-010,12],other -> node003."""
    return re.sub(r"^([^\[,]*)(?:\[([^\],-]*).*|,.*)?$", r"\1\2", nodes)


def _tpu(environ) -> ProcessSpec | None:
    """Detects TPU hosts, where JAX itself reads the metadata server or the pod's variables."""
    if environ.get("JAX_PLATFORMS", "tpu").split(",")[0] not in ("tpu", ""):
        return None
    name = next((name for name in _TPU_PROCESSES if environ.get(name)), None)
    if name is not None:
        if "TPU_WORKER_ID" not in environ:
            raise ConfigError(
                f"the environment sets {name}, but not TPU_WORKER_ID.",
                "the environment",
                "set both, as GKE does for pods that request google.com/tpu.",
            )
        processes = len(_tpu_processes(name, environ[name]))
        slices = _positive(environ, "MEGASCALE_NUM_SLICES", 1)
        if processes * slices == 1:
            return ProcessSpec("TPU, one process", count=1, process=0)
        return ProcessSpec(
            f"TPU pod on GKE, {processes} processes"
            + (f" in each of {slices} slices" if slices > 1 else "")
        )
    chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    if chips and importlib.util.find_spec("libtpu") is not None:
        return ProcessSpec("TPU pod, from the metadata server")
    return None


def _tpu_processes(name: str, value: str) -> list[str]:
    """Returns the addresses of the processes in this slice, one for each container."""
    if name == _TPU_PROCESSES[0]:  # a file
        try:
            value = pathlib.Path(value).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise UnreadableError(
                f"cannot read the addresses of the TPU processes: {error}.",
                name,
                "check the volume that the job mounts there.",
            ) from error
    addresses = [address.strip() for address in value.split(",") if address.strip()]
    if not addresses:
        raise ConfigError("it has no address.", name, "set host:port of every process.")
    return addresses


def _others(environ) -> ProcessSpec | None:
    for name, launcher in (
        ("OMPI_COMM_WORLD_SIZE", "mpirun"),
        ("WORLD_SIZE", "torchrun"),
        ("PMI_SIZE", "mpiexec"),
    ):
        if environ.get(name, "1") != "1":
            raise ConfigError(
                f"{launcher} started {environ[name]} processes, but is not supported.",
                name,
                f"set {_ADDRESS}, {_COUNT} and {_PROCESS} in each process, or use srun or "
                "`python -m launch.local`.",
            )
    return None


def _process_spec(found: str, environ, count: int, process: int) -> ProcessSpec:
    address = environ[_ADDRESS]
    if not re.fullmatch(r".+:\d+", address):
        raise ConfigError(
            f"{address!r} is not of the form host:port.",
            _ADDRESS,
            "use, for example, 10.0.0.1:8476.",
        )
    if process >= count:
        raise ConfigError(
            f"process {process} of {count} does not exist: indices start at 0.",
            _PROCESS,
            f"use 0 to {count - 1}.",
        )
    devices = environ.get("JAX_LOCAL_DEVICE_IDS")
    return ProcessSpec(
        found, address, count, process, tuple(map(int, devices.split(","))) if devices else None
    )


def _non_negative(environ, name: str) -> int:
    if not re.fullmatch(r"\d+", environ[name]):
        raise ConfigError(
            f"{name}={environ[name]!r} is not a non-negative integer.", name, "use 0 or more."
        )
    return int(environ[name])


def _positive(environ, name: str, default: int | None = None) -> int:
    if default is not None and not environ.get(name):
        return default
    value = _non_negative(environ, name)
    if value < 1:
        raise ConfigError(f"{name}={value} is not positive.", name, "use 1 or more.")
    return value
