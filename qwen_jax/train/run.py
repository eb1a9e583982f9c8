"""One training run from settings to last checkpoint, the same for every objective.

In order: mesh, what it will cost, folder, compile, restore or start, then the loop with its hooks.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Protocol

import jax
import numpy as np

from qwen_jax.checkpoint import Checkpointer
from qwen_jax.config import MeshConfig, ModelConfig, OptimizerConfig, TrainConfig
from qwen_jax.errors import TrainingError
from qwen_jax.model.attention import implementation_name
from qwen_jax.model.spec import count
from qwen_jax.parallel import host_memory
from qwen_jax.parallel.compiler_options import compiler_options
from qwen_jax.parallel.mesh import check_batch, make_mesh
from qwen_jax.parallel.rules import batch_sharding, use_layout
from qwen_jax.train import memory, metrics, run_folder
from qwen_jax.train.evaluation import make_evaluator
from qwen_jax.train.loop import Hook, Stopped, fit
from qwen_jax.train.optimizer import make_optimizer, make_schedule
from qwen_jax.train.reporter import Reporter
from qwen_jax.train.state import abstract_state, make_state
from qwen_jax.train.step import Objective, make_train_step
from qwen_jax.types import Batch, Params, TrainState


class RunConfig(Protocol):
    """What any experiment's config has."""

    run_dir: str
    model: ModelConfig
    optimizer: OptimizerConfig
    mesh: MeshConfig
    train: TrainConfig


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Text to evaluate on during training."""

    name: str
    batches: Callable[[], Iterable[Batch]]  # the same ones every time
    bytes_per_token: float


def train(
    config: RunConfig,
    *,
    objective: Objective,
    eval_objective: Objective,
    batches: Callable[[int], contextlib.AbstractContextManager[Iterable[Batch]]],
    held_out: tuple[HeldOut, ...] = (),
    initial: Callable[[Params], Params] | None = None,
    emit: Callable[[str], None] = print,
) -> TrainState:
    """Trains until num_steps, resuming from the newest good checkpoint of the run folder.

    Args:
      objective, eval_objective: with and without dropout.
      batches: start step -> context manager of this process's numpy batches from that step on.
      initial: abstract parameters (with shardings) -> the parameters to start from; None: fresh.
      emit: shows a line to the person who started the run.

    Returns:
      The last state; the checkpoint of its step is on disk.

    Raises:
      QwenJaxError: a setting, a folder or a loss that stops the run.
      Stopped: a signal ended it early; its checkpoint is on disk.
    """
    mesh = make_mesh(config.mesh)
    check_batch(config.train.batch_size, config.train.micro_batches, mesh)
    optimizer = make_optimizer(config.optimizer, config.train.num_steps)
    step = make_train_step(objective, optimizer, seed=config.train.seed,
                           micro_batches=config.train.micro_batches)
    abstract = abstract_state(config.model, optimizer, mesh)
    sharding = batch_sharding(mesh)
    available = memory.capacity(mesh.local_devices[0],
                                override_gb=config.train.device_memory_gb)
    memory.check_state(abstract, available=available)
    # Only now: what was refused above leaves no folder behind.
    folder = run_folder.prepare(config.run_dir, config)

    def put(batch: Batch) -> Batch:
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)

    with contextlib.ExitStack() as stack:
        stack.enter_context(use_layout(mesh))
        compiled, peak = _compile(step, abstract, config, mesh, available, emit)
        checkpoints = Checkpointer(folder / "checkpoints", keep=config.train.keep_checkpoints)
        stack.callback(checkpoints.close)
        checkpoints.check_space(abstract)
        restored = checkpoints.restore(abstract)
        if restored is None:
            params = None if initial is None else initial(abstract.params)
            state, start_step = make_state(config.train.seed, config.model, optimizer, abstract,
                                           params=params), 0
            metrics.log_event(folder, "start", devices=mesh.devices.size)
        else:
            start_step, state, _ = restored
            metrics.log_event(folder, "resume", step=start_step)
            emit(f"resuming after step {start_step}")
        if start_step >= config.train.num_steps:
            emit(f"nothing to do: {start_step} of {config.train.num_steps} steps are done")
            return state

        reporter = Reporter(
            folder, config.model, config.train, total_peak_flops=peak, emit=emit,
            schedule=make_schedule(config.optimizer, config.train.num_steps),
            resume_step=start_step)
        stack.callback(reporter.log.close)
        evaluate = make_evaluator(eval_objective, put)

        def save(done: int, state: TrainState) -> None:
            checkpoints.save(done, state, {"seed": config.train.seed})
            metrics.log_event(folder, "save", step=done)

        def evaluate_all(done: int, state: TrainState) -> None:
            for text in held_out:
                values = evaluate(state.params, text.batches(),
                                  bytes_per_token=text.bytes_per_token)
                reporter.log.write(done, {f"eval/{text.name}/{k}": v for k, v in values.items()})
                emit(f"step {done}  held out {text.name}: loss {values['loss']:.4f}  perplexity "
                     f"{values['perplexity']:.2f}  bits per byte {values['bits_per_byte']:.4f}")

        never = config.train.num_steps
        hooks = (Hook(config.train.save_every or never, save, at_stop=True),
                 Hook(config.train.eval_every or never, evaluate_all))
        stream = iter(stack.enter_context(batches(start_step)))
        try:
            state = fit(state, lambda step, state: put(next(stream)), compiled,
                        start_step=start_step, num_steps=config.train.num_steps,
                        report=reporter, hooks=hooks)
        except (Stopped, TrainingError) as reason:
            metrics.log_event(folder, "stop", reason=str(reason))
            raise
        checkpoints.wait()
        metrics.log_event(folder, "end", step=config.train.num_steps)
        return state


def _compile(step, abstract: TrainState, config: RunConfig, mesh, available: int | None,
             emit: Callable[[str], None]):
    """The compiled step, told to a person with its needs, and the FLOP/s of all devices."""
    started, platform = time.perf_counter(), mesh.devices.flat[0].platform
    batch = _abstract_batch(config, batch_sharding(mesh))
    compiled = step.lower(abstract, batch).compile(compiler_options=compiler_options(platform))
    plan = memory.measure(compiled, abstract, platform=platform, available=available)
    peak, source = metrics.peak_flops(mesh.devices.flat[0])
    peak *= mesh.devices.size
    for line in _header(config, mesh, plan, peak, source):
        emit(line)
    if platform == "cpu" and (hint := host_memory.advice()):
        emit(hint)
    emit(f"compiled in {time.perf_counter() - started:.1f} s")
    return compiled, peak


def _abstract_batch(config: RunConfig, sharding) -> Batch:
    shape = (config.train.batch_size, config.model.context_length)
    whole = jax.ShapeDtypeStruct(shape, np.int32, sharding=sharding)
    weights = jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding)
    return Batch(tokens=whole, targets=whole, loss_weights=weights, segment_ids=whole,
                 positions=whole)


def _header(config: RunConfig, mesh, plan: memory.Memory, peak: float, source: str) -> list[str]:
    """What a person wants to know before the first step."""
    model, train = config.model, config.train
    tokens = train.batch_size * model.context_length
    total = tokens * train.num_steps
    flops, _ = metrics.flops_per_token(model)
    seconds = total * flops / (0.4 * peak)
    shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
    return [
        f"model: {count(model):,} parameters, {model.compute_dtype} compute, attention "
        f"{implementation_name(model, mesh.devices.flat[0])}, remat {model.remat}",
        f"devices: {mesh.devices.size} ({shape or 'one device'}); peak of one: {source}",
        f"memory: {plan}",
        f"batch: {train.batch_size} x {model.context_length} = {tokens:,} tokens in "
        f"{train.micro_batches} micro-batch{'es' if train.micro_batches > 1 else ''}; "
        f"{train.num_steps:,} steps = {total:,} tokens",
        f"cost: {total * flops:.2e} FLOP (formula A), {metrics.format_seconds(seconds)} at 40 % "
        "of peak",
    ]
