"""Starts a run of several processes: whoever launched it has left word in the environment.

Plain addresses, a Kubernetes JobSet, Slurm, or a TPU pod are looked for in this order; where
nothing is found, this process is the whole run. What is set by halves is refused: N processes that
each believe to be alone would write into one folder.
"""

import dataclasses
import glob
import importlib.util
import os
import re
import socket
import sys
from collections.abc import Mapping

import jax

from qwen_jax import compat
from qwen_jax.errors import ConfigError, TrainingError

# Exit codes. A launcher starts again after all but 0 and 1, an error that would only come again.
# A signal stopped the run, an unexpected error ended it, silent data corruption was found.
EXIT_PREEMPTED, EXIT_CRASHED, EXIT_SDC = 75, 70, 76
LAUNCHER = (
    "QWEN_JAX_LAUNCHER"  # set by launchers: a run that SIGTERM ended exits with EXIT_PREEMPTED
)
_ADDRESS, _COUNT, _PROCESS = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_HEARTBEAT = "QWEN_JAX_HEARTBEAT_SECONDS"  # a host that is silent for so long is taken for dead
_START_SECONDS = 300  # that processes wait for one another


@dataclasses.dataclass(frozen=True)
class ProcessSpec:
    """Where one process stands in a run."""

    found: str  # who said so
    address: str | None = None  # host:port of process 0; None: JAX finds the rest itself
    count: int | None = None  # processes
    process: int | None = None  # this one
    local_devices: tuple[int, ...] | None = None  # GPUs of this process; None: all that it sees


def start(environ: Mapping[str, str] = os.environ) -> str | None:
    """Joins this process to its run; call it once, before anything touches a device.

    Returns:
      One line: what was found; None: nothing, this process is the whole run.

    Raises:
      ConfigError: the environment is set by halves, or the processes do not find one another.
    """
    spec = find(environ)
    if spec is None:
        return None
    if spec.count == 1 and spec.address is None:
        return f"one process ({spec.found})"
    # A launcher's one process joins itself: its sums are then added as those of several are.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if spec.address is not None:
        print(
            f"process {spec.process} of {spec.count} on {socket.gethostname()} ({spec.found}), "
            f"looking for process 0 at {spec.address}",
            file=sys.stderr,
            flush=True,
        )
    try:
        jax.distributed.initialize(
            spec.address,
            spec.count,
            spec.process,
            spec.local_devices,
            initialization_timeout=_START_SECONDS,
            heartbeat_timeout_seconds=_positive(environ, _HEARTBEAT, 30),
            cluster_detection_method=None if spec.address is None else "deactivate",
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"the processes did not find one another: {str(error).splitlines()[0]}.",
            f"{spec.found}, process 0 at {spec.address or 'an address that JAX found'}",
            "see that all of them were started, and that they reach that address and port.",
        ) from error
    return (
        f"{jax.process_count()} processes with {jax.local_device_count()} of "
        f"{jax.device_count()} devices here ({spec.found}"
        + (f", process 0 at {spec.address})" if spec.address else ")")
    )


def find(environ: Mapping[str, str] = os.environ) -> ProcessSpec | None:
    """What the environment says of a run of several processes; None: nothing.

    Raises:
      ConfigError: it says so by halves.
    """
    for look in (_plain, _jobset, _slurm, _tpu, _others):
        spec = look(environ)
        if spec is not None:
            return spec
    return None


def is_distributed() -> bool:
    """Whether this process is one of a run that JAX has joined (which may be of one)."""
    return jax.distributed.is_initialized()


def barrier(name: str, *, seconds: int = 600) -> None:
    """Returns when every process is here; no device takes part. Gloo waits 30 s for a late process.

    Args:
      name: of this place in the program, the same in all processes and another at every meeting.

    Raises:
      TrainingError: after `seconds`; the message names who is missing.
    """
    if not is_distributed():
        return
    try:
        compat.coordination_client().wait_at_barrier(name, timeout_in_ms=seconds * 1000)
    except jax.errors.JaxRuntimeError as error:
        raise TrainingError(
            f"not all processes came to {name!r}: {str(error).splitlines()[0]}",
            "the other processes",
            "see their messages.",
        ) from error


def kv_put(name: str, value: str) -> None:
    """Writes on the board that all processes of the run read."""
    compat.coordination_client().key_value_set(name, value, allow_overwrite=True)


def kv_list(folder: str) -> list[tuple[str, str]]:
    """(name, value) of what is on the board under `folder`, without waiting."""
    return list(compat.coordination_client().key_value_dir_get(folder))


def exit_process(code: int) -> None:
    """Ends this process at once where there are others: JAX would wait for them for minutes, and
    they wait for this one. Its launcher takes them down."""
    sys.stdout.flush()
    sys.stderr.flush()
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
            f"{', '.join(given)} set, {', '.join(missing)} not.",
            "the environment",
            "set all three in every process (host:port of process 0, how many there "
            "are, which one this is, from 0), or none of them.",
        )
    return _process_spec(
        "plain addresses", environ, _positive(environ, _COUNT), _non_negative(environ, _PROCESS)
    )


def _jobset(environ) -> ProcessSpec | None:
    if "JOB_COMPLETION_INDEX" not in environ or environ.get("TPU_WORKER_HOSTNAMES"):
        return None
    missing = [name for name in (_ADDRESS, _COUNT) if not environ.get(name)]
    if missing:
        raise ConfigError(
            f"a pod of an indexed Kubernetes job, without {', '.join(missing)}.",
            "the environment",
            "set them in the job's template; `python -m launch.jobset --dry_run` shows one.",
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
                f"a Slurm allocation of {environ['SLURM_NTASKS']} tasks, and this process is none "
                "of them.",
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
            f"a Slurm step without {', '.join(missing)}.",
            "the environment",
            "start the command with srun and keep its variables.",
        )
    node = _first_node(environ["SLURM_STEP_NODELIST"])
    port = 61440 + int(environ["SLURM_JOB_ID"]) % 4096  # two jobs of one node differ
    return ProcessSpec(
        f"Slurm job {environ['SLURM_JOB_ID']}",
        f"{node}:{port}",
        _positive(environ, "SLURM_NTASKS"),
        _non_negative(environ, "SLURM_PROCID"),
        _slurm_devices(environ),
    )


def _slurm_devices(environ) -> tuple[int, ...] | None:
    """A task's part of the GPUs that it sees: all of them where it has the node for itself."""
    tasks = max(map(int, re.findall(r"(\d+)(?:\(x\d+\))?", environ["SLURM_STEP_TASKS_PER_NODE"])))
    local = _non_negative(environ, "SLURM_LOCALID")
    if tasks == 1:
        return None
    visible = [gpu for gpu in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    if len(visible) == 1:  # --gpus-per-task: Slurm has shared them out
        return None
    if len(visible) % tasks:
        raise ConfigError(
            f"{len(visible)} GPUs for {tasks} tasks on a node.",
            "CUDA_VISIBLE_DEVICES, --ntasks-per-node",
            "ask for a task per GPU or a task per node.",
        )
    each = len(visible) // tasks or 1
    return tuple(range(local * each, (local + 1) * each))


def _first_node(nodes: str) -> str:
    """node[003-010,12],other -> node003"""
    return re.sub(r"^([^\[,]*)(?:\[([^\],-]*).*|,.*)?$", r"\1\2", nodes)


def _tpu(environ) -> ProcessSpec | None:
    """On a TPU host JAX asks the metadata server or the pod's variables, one host or many."""
    if environ.get("JAX_PLATFORMS", "tpu").split(",")[0] not in ("tpu", ""):
        return None
    if environ.get("TPU_WORKER_HOSTNAMES"):
        if "TPU_WORKER_ID" not in environ:
            raise ConfigError(
                "TPU_WORKER_HOSTNAMES set, TPU_WORKER_ID not.",
                "the environment",
                "set both, as GKE does for pods that ask for google.com/tpu.",
            )
        hosts = environ["TPU_WORKER_HOSTNAMES"].split(",")
        slices = int(environ.get("MEGASCALE_NUM_SLICES", 1))
        if len(hosts) * slices == 1:
            return ProcessSpec("TPU, one host", count=1, process=0)
        return ProcessSpec(
            f"TPU pod on GKE, {len(hosts)} hosts"
            + (f" in each of {slices} slices" if slices > 1 else "")
        )
    chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    if chips and importlib.util.find_spec("libtpu") is not None:
        return ProcessSpec("TPU pod, by the metadata server")
    return None


def _others(environ) -> ProcessSpec | None:
    for name, launcher in (
        ("OMPI_COMM_WORLD_SIZE", "mpirun"),
        ("WORLD_SIZE", "torchrun"),
        ("PMI_SIZE", "mpiexec"),
    ):
        if environ.get(name, "1") != "1":
            raise ConfigError(
                f"{launcher} started {environ[name]} processes, which this package does not join.",
                name,
                f"set {_ADDRESS}, {_COUNT} and {_PROCESS} in each of them, or use srun or "
                "`python -m launch.local`.",
            )
    return None


def _process_spec(found: str, environ, count: int, process: int) -> ProcessSpec:
    address = environ[_ADDRESS]
    if not re.fullmatch(r".+:\d+", address):
        raise ConfigError(f"{address!r} is no host:port.", _ADDRESS, "write 10.0.0.1:8476, say.")
    if process >= count:
        raise ConfigError(
            f"process {process} of {count}: they are counted from 0.",
            _PROCESS,
            f"use 0 to {count - 1}.",
        )
    devices = environ.get("JAX_LOCAL_DEVICE_IDS")
    return ProcessSpec(
        found, address, count, process, tuple(map(int, devices.split(","))) if devices else None
    )


def _non_negative(environ, name: str) -> int:
    if not re.fullmatch(r"\d+", environ[name]):
        raise ConfigError(f"{name}={environ[name]!r} is no whole number.", name, "use 0 or more.")
    return int(environ[name])


def _positive(environ, name: str, default: int | None = None) -> int:
    if default is not None and not environ.get(name):
        return default
    value = _non_negative(environ, name)
    if value < 1:
        raise ConfigError(f"{name}={value} is not positive.", name, "use 1 or more.")
    return value
