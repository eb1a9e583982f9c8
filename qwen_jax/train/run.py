"""One run from settings to last checkpoint, the same for every stage of the recipe.

In order: what it will cost, folder, compile, restore or start, then the loop with its hooks. What a
stage brings of its own is a `Job`.
"""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from qwen_jax.checkpoint import Checkpointer
from qwen_jax.config import MeshConfig, ModelConfig, OptimizerConfig, TrainConfig
from qwen_jax.data.json_rows import write_json
from qwen_jax.errors import TrainingError
from qwen_jax.kernels import gate
from qwen_jax.model.attention import implementation_for
from qwen_jax.model.spec import count
from qwen_jax.parallel import host_memory
from qwen_jax.parallel.compiler_options import compiler_options
from qwen_jax.parallel.rules import use_layout
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.train import memory, metrics, run_folder
from qwen_jax.train.loop import Hook, Stopped, fit
from qwen_jax.train.optimizer import make_schedule
from qwen_jax.train.reporter import Reporter


class RunConfig(Protocol):
    """What any experiment's config has."""

    run_dir: str
    model: ModelConfig
    optimizer: OptimizerConfig
    mesh: MeshConfig
    train: TrainConfig


NextBatch = Callable[[int, Any], Any]


@dataclasses.dataclass(frozen=True)
class Job:
    """What a stage brings: a state, a step, and where its batches come from."""

    mesh: Mesh
    state: Any  # shapes, dtypes and shardings; has .step and .params
    make_state: Callable[[], Any]  # the one to start from
    step: Any  # jitted: (state, batch) -> (state, metrics)
    batch: Any  # shapes, dtypes and shardings of a batch
    batches: Callable[[int], contextlib.AbstractContextManager[NextBatch]]  # from a step on
    evaluate: Callable[[int, Any], dict[str, float]] | None = None  # metrics to log
    others: Any = None  # weights that stand still and that the step does not see
    between: Callable[[], list] = list  # compiles what runs between two steps
    header: tuple[str, ...] = ()  # lines for the person who started it
    tokenizer: Tokenizer | None = None  # lies in the folder, for what begins from this run
    frozen: Any = None  # of the batch: weights that are not trained (train/adapters.py)
    records: dict[str, Any] = dataclasses.field(default_factory=dict)  # JSON files that say which


def run(config: RunConfig, job: Job, *, emit: Callable[[str], None] = print):
    """Runs the job until num_steps, resuming from the newest good checkpoint of the run folder.

    Args:
      emit: shows a line to the person who started the run.

    Returns:
      The last state; the checkpoint of its step is on disk.

    Raises:
      QwenJaxError: a setting, a folder or a loss that stops the run.
      Stopped: a signal ended it early; its checkpoint is on disk.
    """
    train, mesh = config.train, job.mesh
    available = memory.capacity(mesh.local_devices[0], override_gb=train.device_memory_gb)
    memory.check_state(job.state, available=available, frozen=(job.frozen, job.others))
    # Only now: what was refused above leaves no folder behind.
    folder = run_folder.prepare(config.run_dir, config)
    if job.tokenizer is not None and jax.process_index() == 0:
        job.tokenizer.save(folder / "tokenizer.tiktoken")
    for name, record in job.records.items() if jax.process_index() == 0 else ():
        write_json(folder / name, record)
    with contextlib.ExitStack() as stack:
        stack.enter_context(use_layout(mesh))
        _check_attention(config.model, mesh, emit)
        compiled, peak = _compile(config, job, available, emit)
        checkpoints = Checkpointer(folder / "checkpoints", keep=train.keep_checkpoints)
        stack.callback(checkpoints.close)
        state, start_step = _first_state(job, checkpoints, folder, emit)
        if start_step >= train.num_steps:
            emit(f"nothing to do: {start_step} of {train.num_steps} steps are done")
            return state
        reporter = Reporter(
            folder, config.model, train, total_peak_flops=peak, emit=emit,
            adapters=None if job.frozen is None else sum(
                leaf.size for leaf in jax.tree.leaves(job.state.params)),
            schedule=make_schedule(config.optimizer, train.num_steps), resume_step=start_step)
        stack.callback(reporter.log.close)

        def save(done: int, state) -> None:
            checkpoints.save(done, state, {"seed": train.seed})
            metrics.log_event(folder, "save", step=done)

        hooks = [Hook(train.save_every or train.num_steps, save, at_stop=True)]
        if job.evaluate is not None:
            hooks.append(Hook(train.eval_every or train.num_steps, lambda done, state:
                              reporter.log.write(done, job.evaluate(done, state))))
        next_batch = stack.enter_context(job.batches(start_step))
        try:
            state = fit(state, next_batch, compiled, start_step=start_step,
                        num_steps=train.num_steps, report=reporter, hooks=tuple(hooks))
        except (Stopped, TrainingError) as reason:
            metrics.log_event(folder, "stop", reason=str(reason))
            raise
        checkpoints.wait()
        metrics.log_event(folder, "end", step=train.num_steps)
        return state


def _first_state(job: Job, checkpoints: Checkpointer, folder: pathlib.Path, emit):
    """The newest good checkpoint's state and step, or a fresh one and 0."""
    checkpoints.check_space(job.state)
    restored = checkpoints.restore(job.state)
    if restored is None:
        metrics.log_event(folder, "start", devices=job.mesh.devices.size)
        return job.make_state(), 0
    step, state, _ = restored
    metrics.log_event(folder, "resume", step=step)
    emit(f"resuming after step {step}")
    return state, step


def _compile(config: RunConfig, job: Job, available: int | None, emit: Callable[[str], None]):
    """The compiled step, told to a person with its needs, and the FLOP/s of all devices."""
    started, device = time.perf_counter(), job.mesh.devices.flat[0]
    compiled = job.step.lower(job.state, job.batch).compile(
        compiler_options=compiler_options(device.platform))
    plan = memory.measure(compiled, job.state, platform=device.platform, available=available,
                          frozen=job.frozen, others=job.others, between=job.between())
    peak, source = metrics.peak_flops(device)
    peak *= job.mesh.devices.size
    model = config.model
    shape = " x ".join(f"{name} {size}" for name, size in job.mesh.shape.items() if size > 1)
    for line in (
            f"model: {count(model):,} parameters, {model.compute_dtype} compute, attention "
            f"{implementation_for(model, device)}, remat {model.remat}",
            f"devices: {job.mesh.devices.size} ({shape or 'one device'}); peak of one: {source}",
            f"memory: {plan}", *job.header):
        emit(line)
    if device.platform == "cpu" and (hint := host_memory.advice()):
        emit(hint)
    emit(f"compiled in {time.perf_counter() - started:.1f} s")
    return compiled, peak


def _check_attention(model: ModelConfig, mesh: Mesh, emit: Callable[[str], None]) -> None:
    """Before anything is spent on an accelerator: does its kernel compute attention and gradients?

    Seconds, once; a driver or compiler that gets a kernel wrong is found here and not in the loss.
    """
    choice = implementation_for(model, mesh.devices.flat[0])
    if choice.module.PLATFORM is None:
        return
    started = time.perf_counter()
    found = gate.check(gate.Case(
        T=640, N=model.num_heads // model.kv_heads, K=1, H=model.head_dim,
        dtype=model.compute_dtype, documents=(300, 1, 200)), choice.name)
    shares = ", ".join(f"{name} {share:.2f}" for name, share in found.items())
    emit(f"attention {choice.name} agrees with float32: errors {shares} of what is allowed "
         f"({time.perf_counter() - started:.1f} s)")
