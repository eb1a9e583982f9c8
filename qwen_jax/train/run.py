"""One run from settings to last checkpoint, the same for every stage of the recipe.

In order: what it will cost, folder, compile, restore or start, then the loop with its hooks. What a
stage brings of its own is a `Job`.
"""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from qwen_jax.checkpoint.checkpointer import Checkpointer
from qwen_jax.config import ModelConfig
from qwen_jax.errors import ConfigError, QwenJaxError, TrainingError
from qwen_jax.kernels import validation
from qwen_jax.model.attention import implementation_for
from qwen_jax.model.spec import count
from qwen_jax.parallel import distributed
from qwen_jax.parallel.cpu import huge_pages
from qwen_jax.parallel.sharding import use_layout
from qwen_jax.parallel.xla_options import compile_for
from qwen_jax.train import run_folder
from qwen_jax.train.job import Job, RunConfig, RunFiles
from qwen_jax.train.loop import Hook, Stopped, fit
from qwen_jax.train.optimizer import make_schedule
from qwen_jax.train.resilience import fault_injection
from qwen_jax.train.resilience.sdc_check import with_sdc_check
from qwen_jax.train.resilience.spikes import LossSpike, SpikeWatch
from qwen_jax.train.state import for_checkpoint, from_checkpoint
from qwen_jax.train.telemetry import memory, metrics
from qwen_jax.train.telemetry.events import Events
from qwen_jax.train.telemetry.goodput import Goodput
from qwen_jax.train.telemetry.reporter import Reporter
from qwen_jax.train.telemetry.trace import traced
from qwen_jax.utils.files import write_json


def run(config: RunConfig, job: Job, *, log: Callable[[str], None] = print):
    """Runs the job until num_steps, resuming from the newest good checkpoint of the run folder.

    Args:
      log: shows a line to the person who started the run.

    Returns:
      The last state; the checkpoint of its step is on disk.

    Raises:
      QwenJaxError: a setting, a folder or a loss that stops the run.
      Stopped: a signal ended it early; its checkpoint is on disk.
    """
    train, mesh = config.train, job.mesh
    _check_loops(config.model, mesh)
    available = memory.capacity(mesh.local_devices[0], override_gib=train.device_memory_gib)
    frozen = (job.frozen.in_batch, job.frozen.outside_step)
    memory.check_state(job.program.state, available=available, frozen=frozen)
    # Only now: what was refused above leaves no folder behind.
    folder = run_folder.prepare(
        config.run_dir, config, training_stage=job.training_stage, parameters=job.parameters
    )
    if jax.process_index() == 0:
        _write_files(folder, job.files)
    events = Events(folder)
    events.begin()
    try:
        state = _run(_Attempt(config, job, folder, events, log), available)
    except Stopped as reason:
        events.log("stop", step=reason.step, reason=str(reason))
        raise
    except Exception as error:
        what = error.what if isinstance(error, QwenJaxError) else str(error)[:500]
        events.log("error", kind=type(error).__name__, what=what)
        raise
    events.log("end", step=train.num_steps)
    return state


@dataclasses.dataclass(frozen=True)
class _Attempt:
    """What the functions below share. A restart is another attempt at the same run."""

    config: RunConfig
    job: Job
    folder: pathlib.Path
    events: Events
    log: Callable[[str], None]
    goodput: Goodput = dataclasses.field(default_factory=Goodput)


@dataclasses.dataclass(frozen=True)
class _Beginning:
    """Where the loop begins, from a checkpoint or anew."""

    step: int
    state: Any
    skipped: int = 0  # batches that were left out so far (train/resilience/spikes.py)
    losses: tuple[float, ...] = ()  # of the last steps


def _run(attempt: _Attempt, available: int | None):
    """What `run` does once the folder is there."""
    config, job, goodput = attempt.config, attempt.job, attempt.goodput
    with contextlib.ExitStack() as stack:
        stack.enter_context(use_layout(job.mesh))
        with goodput.spent_on("compile"):
            _check_attention(config.model, job.mesh, attempt.log)
            compiled, peak_flops = _compile(attempt, available)
        distributed.barrier("compiled")
        checkpoints = Checkpointer(
            attempt.folder / "checkpoints",
            keep=config.train.keep_checkpoints,
            log=attempt.events.log,
        )
        stack.callback(checkpoints.close)
        checkpoints.check_space(for_checkpoint(job.program.state))
        with goodput.spent_on("restore"):
            begin = _begin(job, checkpoints)
        _announce(attempt, begin)
        if begin.step >= config.train.num_steps:
            return begin.state
        reporter = _reporter(attempt, peak_flops, begin.step)
        stack.callback(reporter.metrics.close)
        try:
            state = _fit_past_spikes(attempt, begin, compiled, checkpoints, reporter)
        except Stopped:
            _leave_together(checkpoints)
            raise
        _leave_together(checkpoints)
        return state


def _write_files(folder: pathlib.Path, files: RunFiles) -> None:
    if files.tokenizer is not None:
        files.tokenizer.save(folder / "tokenizer.tiktoken")
    for name, record in files.records.items():
        write_json(folder / name, record)


def _compile(attempt: _Attempt, available: int | None):
    """Compiles the step and reports its needs; the step, and the FLOP/s of all devices."""
    config, job, log = attempt.config, attempt.job, attempt.log
    started, device = time.perf_counter(), job.mesh.devices.flat[0]
    program = job.program
    compiled = compile_for(device.platform, program.step.lower(program.state, program.batch))
    plan = memory.measure(
        compiled,
        program.state,
        platform=device.platform,
        available=available,
        frozen=job.frozen.in_batch,
        others=job.frozen.outside_step,
        between=program.between(),
    )
    peak, source = metrics.peak_flops(device)
    peak *= job.mesh.devices.size
    model = config.model
    shape = " x ".join(f"{name} {size}" for name, size in job.mesh.shape.items() if size > 1)
    for line in (
        f"model: {count(model):,} parameters, {model.compute_dtype} compute, attention "
        f"{implementation_for(model, device)}, remat {model.remat}",
        f"devices: {job.mesh.devices.size} ({shape or 'one device'}); peak of one: {source}",
        f"memory: {plan}",
        *job.header,
    ):
        log(line)
    if device.platform == "cpu" and (hint := huge_pages.advice()):
        log(hint)
    log(f"compiled in {time.perf_counter() - started:.1f} s")
    return compiled, peak


def _begin(job: Job, checkpoints: Checkpointer) -> _Beginning:
    """The newest good checkpoint, or a fresh state."""
    abstract = job.program.state
    restored = checkpoints.restore(for_checkpoint(abstract))
    if restored is None:
        return _Beginning(0, job.program.make_state())
    step, state, meta = restored
    state = from_checkpoint(state, abstract)
    return _Beginning(step, state, meta.get("skipped", 0), tuple(meta.get("losses", ())))


def _announce(attempt: _Attempt, begin: _Beginning) -> None:
    mesh, wanted = attempt.job.mesh, attempt.config.train.num_steps
    attempt.events.log(
        "resume" if begin.step else "start",
        step=begin.step,
        processes=jax.process_count(),
        devices=mesh.devices.size,
        mesh=dict(mesh.shape),
    )
    if begin.step:
        attempt.log(f"resuming after step {begin.step}")
    if begin.step >= wanted:
        attempt.log(f"nothing to do: {begin.step} of {wanted} steps are done")


def _reporter(attempt: _Attempt, peak_flops: float, resume_step: int) -> Reporter:
    config, job = attempt.config, attempt.job
    trained = sum(leaf.size for leaf in jax.tree.leaves(job.program.state.params))
    return Reporter(
        attempt.folder,
        config.model,
        config.train,
        training_stage=job.training_stage,
        phases=job.phases,
        total_peak_flops=peak_flops,
        log=attempt.log,
        events=attempt.events,
        goodput=attempt.goodput,
        adapters=None if job.frozen.in_batch is None else trained,
        schedule=make_schedule(config.optimizer, config.train.num_steps),
        resume_step=resume_step,
    )


_MAX_SKIPS = 10


def _fit_past_spikes(
    attempt: _Attempt, begin: _Beginning, compiled, checkpoints: Checkpointer, reporter: Reporter
):
    """The last state. After a spike the loop begins again at the checkpoint before it."""
    planned = fault_injection.scheduled_faults()
    skips = 0
    while True:
        reporter.spikes = SpikeWatch(begin.losses)
        try:
            return _fit(attempt, begin, compiled, checkpoints, reporter, planned)
        except LossSpike as spike:
            if skips == _MAX_SKIPS:
                raise TrainingError(
                    f"the loss leaps after {skips} times of going back: {spike.message}.",
                    f"step {spike.step}",
                    "lower optimizer.peak_learning_rate, or look at the data.",
                ) from spike
            begin = _go_back(spike, attempt, checkpoints)
        skips += 1


def _go_back(spike: LossSpike, attempt: _Attempt, checkpoints: Checkpointer) -> _Beginning:
    """The newest checkpoint before the spike, to go on behind the batch that made it."""
    attempt.goodput.undo()
    with attempt.goodput.spent_on("restore"):
        begin = _begin(attempt.job, checkpoints)
    count = spike.step - begin.step
    first = begin.step + begin.skipped + 1
    last = first + count - 1
    attempt.events.log(
        "skipped", spike=spike.step, back_to=begin.step, first_batch=first, last_batch=last
    )
    attempt.log(f"{spike}: back to step {begin.step}; batches {first} to {last} are left out")
    return dataclasses.replace(begin, skipped=begin.skipped + count)


def _fit(
    attempt: _Attempt,
    begin: _Beginning,
    compiled,
    checkpoints: Checkpointer,
    reporter: Reporter,
    planned: list,
):
    """The loop with its hooks."""
    train, job, goodput = attempt.config.train, attempt.job, attempt.goodput
    evaluate = job.evaluate

    def save(done: int, state) -> None:
        with goodput.spent_on("save"):
            checkpoints.save(
                done,
                for_checkpoint(state),
                {"seed": train.seed, "skipped": begin.skipped, "losses": reporter.spikes.recent},
            )
        goodput.mark()

    hooks = [Hook(train.save_every or train.num_steps, save, at_stop=True)]
    if evaluate is not None:

        def write_evaluation(done: int, state) -> None:
            with goodput.spent_on("evaluate"):
                reporter.metrics.write(done, evaluate(done, state))

        hooks.append(Hook(train.eval_every or train.num_steps, write_evaluation))
    step = fault_injection.in_step(compiled, planned)
    step = with_sdc_check(step, train.sdc_check_every, start_step=begin.step)
    if job.phases is not None:
        step = job.phases.timed(step)
    with (
        job.batches(begin.step + begin.skipped) as read,
        traced(
            lambda step, state: read(step + begin.skipped, state),
            train.trace_steps,
            attempt.folder,
            attempt.log,
        ) as next_batch,
    ):
        return fit(
            begin.state,
            fault_injection.before_steps(next_batch, planned),
            step,
            start_step=begin.step,
            num_steps=train.num_steps,
            report=reporter,
            hooks=tuple(hooks),
        )


def _leave_together(checkpoints: Checkpointer) -> None:
    """Nobody leaves before process 0 has hashed and named the last save."""
    checkpoints.wait()
    distributed.barrier("the last save", seconds=3600)


def _check_loops(model: ModelConfig, mesh: Mesh) -> None:
    """Where Gloo connects CPUs, a loop of layers would run beside the collectives around it, in
    another order in each process, and Gloo would mix up what they send."""
    if (
        mesh.devices.flat[0].platform == "cpu"
        and distributed.is_distributed()
        and mesh.devices.size > 1
        and model.unroll_layers < model.num_layers
    ):
        raise ConfigError(
            f"launched processes on CPUs cannot loop over {model.num_layers} layers, "
            f"{model.unroll_layers} at a time.",
            "model.unroll_layers",
            f"use --model.unroll_layers={model.num_layers}.",
        )


def _check_attention(model: ModelConfig, mesh: Mesh, log: Callable[[str], None]) -> None:
    """Before anything is spent on an accelerator: does its kernel compute attention and gradients?

    Seconds, once; a driver or compiler that gets a kernel wrong is found here and not in the loss.
    """
    choice = implementation_for(model, mesh.devices.flat[0])
    if choice.module.PLATFORM is None:
        return
    started = time.perf_counter()
    found = validation.check(
        validation.Case(
            T=640,
            N=model.num_heads // model.kv_heads,
            K=1,
            H=model.head_dim,
            dtype=model.compute_dtype,
            documents=(300, 1, 200),
        ),
        choice.name,
    )
    shares = ", ".join(f"{name} {share:.2f}" for name, share in found.items())
    log(
        f"attention {choice.name} agrees with float32: errors {shares} of what is allowed "
        f"({time.perf_counter() - started:.1f} s)"
    )
