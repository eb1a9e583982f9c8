"""One step, compiled for a slice that is not there; in a process of its own, whose memory comes
back.

    python -m qwen_jax.plan.program < workload.pickle     # prints a Result as one line of JSON
"""

import ctypes
import dataclasses
import json
import os
import pathlib
import pickle
import re
import resource
import signal
import subprocess
import sys
import time

from qwen_jax.errors import QwenJaxError, TrainingError

# libtpu looks for a TPU and asks the cloud about it, unless it is told not to; and several of these
# processes may run at once.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_PLATFORMS": "cpu",
}


@dataclasses.dataclass(frozen=True)
class Result:
    """What the compiler says of a step, on one chip; sizes in bytes."""

    error: str | None = None  # why there is none
    parameters: int = 0
    optimizer: int = 0
    held: int = 0  # weights beside the step
    batch: int = 0
    workspace: int = 0  # gradients, what the backward pass keeps, scratch
    seconds: float = 0.0  # see costs.Costs
    work: dict = dataclasses.field(default_factory=dict)  # kind of work: seconds
    hbm_bytes: float = 0.0
    collectives: list = dataclasses.field(default_factory=list)  # rows of Costs.merged
    unknown: list = dataclasses.field(default_factory=list)
    flops: float = 0.0  # of products and attention, recomputation included
    flops_once: float = 0.0  # by cost_analysis, which counts the body of a loop once
    compile_seconds: float = 0.0
    compile_bytes: int = 0  # this machine's memory

    @property
    def total(self) -> int:
        return self.parameters + self.optimizer + self.held + self.batch + self.workspace


def compile_apart(
    workload,
    topology,
    *,
    options: dict | None = None,
    keep: pathlib.Path | None = None,
    timeout: float = 3600,
) -> Result:
    """The Result of a workload on a slice, from another process.

    Args:
      workload: a stages.Workload.
      topology: a topologies.Topology.
      options: of the compiler, beside parallel.compiler_options.
      keep: where to leave the compiled text; None: nowhere.

    Raises:
      QwenJaxError: what the process itself refuses; a step that does not fit is a Result.
    """
    job = pickle.dumps((workload, topology, options or {}, keep))
    run = subprocess.run(
        [sys.executable, "-m", "qwen_jax.plan.program"],
        input=job,
        capture_output=True,
        timeout=timeout,
        env=os.environ | ENVIRONMENT,
    )
    for line in reversed(run.stdout.decode().splitlines()):
        if line.startswith("{"):
            return Result(**json.loads(line))
    raise TrainingError(
        f"the compiling process ended with code {run.returncode} and said: "
        f"{run.stderr.decode()[-1500:]}",
        "plan",
        "-9 is a lack of memory on this machine: about "
        "2 GB are needed; otherwise report this with the versions of jax and libtpu.",
    )


def compile_here(workload, topology, options: dict, keep: pathlib.Path | None) -> Result:
    """compile_apart's work; loads libtpu into this process."""
    import jax
    from jax.experimental import topologies as libtpu

    from qwen_jax.parallel.mesh import make_mesh
    from qwen_jax.parallel.sharding import use_layout
    from qwen_jax.parallel.xla_options import compile_for
    from qwen_jax.plan import costs
    from qwen_jax.plan.network import Network
    from qwen_jax.plan.stages import build
    from qwen_jax.train.telemetry.memory import bytes_per_device

    jax.config.update("jax_platforms", "cpu")
    started = time.perf_counter()
    devices = libtpu.get_topology_desc(platform="tpu", topology_name=topology.libtpu).devices
    mesh = make_mesh(workload.mesh, devices=devices)
    program = build(workload, mesh)
    with use_layout(mesh), jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = program.step.lower(*program.arguments)
        try:
            compiled = compile_for("tpu", lowered, options)
        except jax.errors.JaxRuntimeError as error:
            return Result(error=refused(str(error)))
    text = compiled.as_text()
    if keep is not None:
        keep.write_text(text, encoding="utf-8")
    coords = tuple(tuple(device.coords)[: len(topology.shape)] for device in mesh.devices.flat)
    found = costs.read(text, topology.chip, Network(topology, coords))
    plan, state = compiled.memory_analysis(), program.arguments[0]
    parameters = bytes_per_device(state.params)
    optimizer = bytes_per_device(state) - parameters
    batch = bytes_per_device(program.arguments[1])
    everything = (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes
        + plan.temp_size_in_bytes
        + plan.generated_code_size_in_bytes
    )
    return Result(
        parameters=parameters,
        optimizer=optimizer,
        batch=batch,
        held=bytes_per_device(program.held),
        workspace=everything - parameters - optimizer - batch,
        seconds=found.seconds,
        work=dict(found.work),
        hbm_bytes=found.hbm_bytes,
        collectives=found.merged(),
        unknown=found.unknown,
        flops=found.flops,
        flops_once=(compiled.cost_analysis() or {}).get("flops", 0.0),
        compile_seconds=time.perf_counter() - started,
        compile_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def refused(message: str) -> str:
    """What the compiler says, in few words: memory that is missing, or its first line."""
    used = re.search(r"Used ([\d.]+\w?) of ([\d.]+\w?) hbm", message) or re.search(
        r"\(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)", message
    )
    if used:
        return f"out of memory: {used[1]} of {used[2]}"
    return message.splitlines()[0][:200]


def main() -> None:
    if sys.platform == "linux":  # it goes with the process that waits for it
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    workload, topology, options, keep = pickle.load(sys.stdin.buffer)
    try:
        result = compile_here(workload, topology, options, keep)
    except QwenJaxError as error:  # such as weights that do not divide
        result = Result(error=f"{error.what}")
    print(json.dumps(dataclasses.asdict(result)), flush=True)


if __name__ == "__main__":
    main()
