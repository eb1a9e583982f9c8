"""Compiles a step for an absent slice, in a subprocess to free the compiler's memory.

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

# Without these variables, libtpu looks for a TPU and queries the cloud metadata server. Several of
# these processes may run at the same time.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_PLATFORMS": "cpu",
}


@dataclasses.dataclass(frozen=True)
class Result:
    """Compilation result of a step, per chip; sizes are in bytes."""

    error: str | None = None  # compilation error; None: success
    parameters: int = 0
    optimizer: int = 0
    frozen: int = 0  # frozen weights in memory that are not arguments of the step
    batch: int = 0
    workspace: int = 0  # gradients, saved activations, scratch memory
    seconds: float = 0.0  # see costs.Costs.seconds
    work: dict = dataclasses.field(default_factory=dict)  # kind of work -> seconds
    hbm_bytes: float = 0.0
    collectives: list = dataclasses.field(default_factory=list)  # see Costs.merged
    unknown: list = dataclasses.field(default_factory=list)
    flops: float = 0.0  # FLOPs of matmuls and attention, including recomputation
    flops_once: float = 0.0  # FLOPs from cost_analysis, which counts each loop body once
    compile_seconds: float = 0.0
    compile_bytes: int = 0  # peak memory of the compiling process

    @property
    def total(self) -> int:
        return self.parameters + self.optimizer + self.frozen + self.batch + self.workspace


def compile_in_subprocess(
    workload,
    topology,
    *,
    options: dict | None = None,
    keep: pathlib.Path | None = None,
    timeout: float = 3600,
) -> Result:
    """Compiles a workload for a slice in a subprocess and returns the Result.

    Args:
      workload: a stages.Workload.
      topology: a topologies.Topology.
      options: compiler options in addition to those of parallel/xla_options.py.
      keep: file to write the compiled text to; None: not written.

    Raises:
      QwenJaxError: the subprocess failed. A step that does not fit is a Result with an error.
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
        f"the compile subprocess exited with code {run.returncode}: {run.stderr.decode()[-1500:]}",
        "experiments.plan",
        "exit code -9 usually means out of memory (about 2 GB are needed); otherwise report this "
        "with the versions of jax and libtpu.",
    )


def compile_in_process(workload, topology, options: dict, keep: pathlib.Path | None) -> Result:
    """Compiles a workload in this process and loads libtpu; called by compile_in_subprocess."""
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
            return Result(error=error_summary(str(error)))
    text = compiled.as_text()
    if keep is not None:
        keep.write_text(text, encoding="utf-8")
    coords = tuple(tuple(device.coords)[: len(topology.shape)] for device in mesh.devices.flat)
    step_costs = costs.read(text, topology.chip, Network(topology, coords))
    memory, state = compiled.memory_analysis(), program.arguments[0]
    parameters = bytes_per_device(state.params)
    optimizer = bytes_per_device(state) - parameters
    batch = bytes_per_device(program.arguments[1])
    total = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    return Result(
        parameters=parameters,
        optimizer=optimizer,
        batch=batch,
        frozen=bytes_per_device(program.frozen),
        workspace=total - parameters - optimizer - batch,
        seconds=step_costs.seconds,
        work=dict(step_costs.work),
        hbm_bytes=step_costs.hbm_bytes,
        collectives=step_costs.merged(),
        unknown=step_costs.unknown,
        flops=step_costs.flops,
        flops_once=(compiled.cost_analysis() or {}).get("flops", 0.0),
        compile_seconds=time.perf_counter() - started,
        compile_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def error_summary(message: str) -> str:
    """Summarizes a compiler error: required and available memory, or the first line."""
    used = re.search(r"Used ([\d.]+\w?) of ([\d.]+\w?) hbm", message) or re.search(
        r"\(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)", message
    )
    if used:
        return f"out of memory: {used[1]} of {used[2]}"
    return message.splitlines()[0][:200]


def main() -> None:
    if sys.platform == "linux":  # exit when the parent process exits
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    workload, topology, options, keep = pickle.load(sys.stdin.buffer)
    try:
        result = compile_in_process(workload, topology, options, keep)
    except QwenJaxError as error:  # for example weights that do not divide over the mesh
        result = Result(error=f"{error.what}")
    print(json.dumps(dataclasses.asdict(result)), flush=True)


if __name__ == "__main__":
    main()
