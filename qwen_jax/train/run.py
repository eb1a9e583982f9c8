"""Runs a training stage from its config to the last checkpoint.

The steps are: check memory, prepare the run folder, compile, restore or initialize the state, run
the loop with its hooks. Each training stage provides a `Job`; everything else is shared.
"""

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from qwen_jax.checkpoint.bucket.checkpointer import BucketCheckpointer
from qwen_jax.checkpoint.checkpointer import Checkpointer
from qwen_jax.config import ModelConfig
from qwen_jax.errors import ConfigError, QwenJaxError, TrainingError
from qwen_jax.kernels import validation
from qwen_jax.model.attention import implementation_for
from qwen_jax.model.spec import count, layer_bytes
from qwen_jax.parallel import distributed
from qwen_jax.parallel.cpu import huge_pages
from qwen_jax.parallel.sharding import use_layout
from qwen_jax.parallel.xla_options import compile_for
from qwen_jax.train.attempts import staged
from qwen_jax.train.attempts.folder import nothing_to_restore
from qwen_jax.train.attempts.record import Record, cannot_write, prepare
from qwen_jax.train.job import Job, RunConfig, at_row_length
from qwen_jax.train.loop import Hook, StepReport, Stopped, fit
from qwen_jax.train.optimizer import make_schedule
from qwen_jax.train.resilience import fault_injection, shared_folder
from qwen_jax.train.resilience.sdc_check import with_sdc_check
from qwen_jax.train.resilience.spikes import LossSpike, SpikeWatch
from qwen_jax.train.resilience.watchdog import watching
from qwen_jax.train.state import for_checkpoint, from_checkpoint
from qwen_jax.train.telemetry import memory, metrics, wandb_run
from qwen_jax.train.telemetry.events import Events
from qwen_jax.train.telemetry.goodput import Goodput
from qwen_jax.train.telemetry.reporter import Reporter
from qwen_jax.train.telemetry.trace import traced

Checkpoints = Checkpointer | BucketCheckpointer


def run(config: RunConfig, job: Job, *, log: Callable[[str], None] = print):
    """Runs the job until num_steps, resuming from the latest valid checkpoint in the run folder.

    Args:
      log: receives each line of the run's output.

    Returns:
      The last state, which has been saved.

    Raises:
      QwenJaxError: an invalid setting, an unusable folder, or a non-finite or spiking loss.
      Stopped: a signal stopped the run early. Its state has been saved.
    """
    train, mesh = config.train, job.mesh
    _check_loops(config.model, mesh)
    wandb_run.check(train.wandb_project)
    available = memory.capacity(mesh.local_devices[0], override_gib=train.device_memory_gib)
    frozen = (job.frozen.in_batch, job.frozen.outside_step)
    memory.check_state(job.program.state, available=available, frozen=frozen)
    # After the checks, so a rejected run does not create a folder.
    with _only_writer(config, log) as lock:
        record = None if lock is None else prepare(config, job, log)
        distributed.barrier("run folder")
        shared_folder.check(config.run_dir, resumes=record is not None and record.resumes)
        folder = staged.local(config.run_dir)
        events = Events(folder)
        try:
            events.log_previous_attempt()
            state = _run(_Attempt(config, job, folder, events, log, lock, record), available)
        except Stopped as reason:
            events.log("stop", step=reason.step, reason=str(reason))
            raise
        except Exception as error:
            what = error.what if isinstance(error, QwenJaxError) else str(error)[:500]
            events.log("error", kind=type(error).__name__, what=what)
            raise
        else:
            events.log("end", step=train.num_steps)
            log(f"the weights after {train.num_steps} steps are in {config.run_dir}")
            return state
        finally:
            events.close()


@contextlib.contextmanager
def _only_writer(config: RunConfig, log: Callable[[str], None]) -> Iterator[staged.Lock | None]:
    """Holds the lock of the run folder in process 0; the other processes get None."""
    with contextlib.ExitStack() as stack:
        lock = None
        if jax.process_index() == 0:
            try:
                lock = stack.enter_context(staged.only_writer(config.run_dir, log))
            except OSError as error:
                raise cannot_write(config.run_dir, error) from error
        yield lock


@dataclasses.dataclass(frozen=True)
class _Attempt:
    """The context of one attempt, for the functions below. Each restart is a new attempt."""

    config: RunConfig
    job: Job
    folder: pathlib.Path
    events: Events
    log: Callable[[str], None]
    lock: staged.Lock | None  # in process 0
    record: Record | None  # in process 0
    goodput: Goodput = dataclasses.field(default_factory=Goodput)


@dataclasses.dataclass(frozen=True)
class _StartPoint:
    """The step and state at which the loop starts, restored or newly initialized."""

    step: int
    state: Any
    skipped: int = 0  # number of batches skipped so far (train/resilience/spikes.py)
    losses: tuple[float, ...] = ()  # losses of the most recent steps


def _run(attempt: _Attempt, available: int | None):
    """Runs the job in its prepared folder; returns the last state."""
    config, job, goodput = attempt.config, attempt.job, attempt.goodput
    with contextlib.ExitStack() as stack:
        stack.enter_context(use_layout(job.mesh))
        with goodput.spent_on("compile"):
            _check_attention(at_row_length(config), job.mesh, attempt.log)
            compiled, peak_flops = _compile(attempt, available)
        distributed.barrier("compiled")
        checkpoints = staged.checkpointer(
            config.run_dir, keep=config.train.keep_checkpoints, log=attempt.events.log
        )
        stack.callback(checkpoints.close)
        checkpoints.check_space(for_checkpoint(job.program.state))
        with goodput.spent_on("restore"):
            start = _restore_or_initialize(attempt, checkpoints)
        _log_start(attempt, start)
        if attempt.record is not None:
            attempt.record.begin(start.step, attempt.log, attempt.events.log)
        reporter = _reporter(attempt, peak_flops, start.step)
        stack.callback(reporter.metrics.close)
        if _lacks_evaluation(attempt, reporter, start.step):
            _evaluate(attempt, reporter, start.step, start.state)
        if start.step >= config.train.num_steps:
            return start.state
        try:
            state = _fit_past_spikes(attempt, start, compiled, checkpoints, reporter)
        except Stopped:
            _wait_for_last_save(checkpoints)
            raise
        _wait_for_last_save(checkpoints)
        return state


def _compile(attempt: _Attempt, available: int | None):
    """Compiles the step and logs its memory; returns the step and the total peak FLOP/s."""
    config, job, log = attempt.config, attempt.job, attempt.log
    started, device = time.perf_counter(), job.mesh.devices.flat[0]
    log("compiling ...")
    program = job.program
    lowered = program.step.lower(program.state, program.batch)
    compiled = compile_for(device.platform, lowered, layer_bytes=layer_bytes(config.model))
    needed = memory.measure(
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
    model = at_row_length(config)
    shape = " x ".join(f"{name} {size}" for name, size in job.mesh.shape.items() if size > 1)
    for line in (
        f"model: {count(model):,} parameters, {model.compute_dtype} compute, attention "
        f"{implementation_for(model, device)}, remat {model.remat}",
        f"devices: {job.mesh.devices.size} ({shape or 'one device'}); peak per device: {source}",
        f"memory: {needed}",
        *job.header,
    ):
        log(line)
    if device.platform == "cpu" and (hint := huge_pages.advice()):
        log(hint)
    log(f"compiled in {time.perf_counter() - started:.1f} s")
    return compiled, peak


def _restore_or_initialize(attempt: _Attempt, checkpoints: Checkpoints) -> _StartPoint:
    """Restores the latest valid checkpoint, or initializes the state if there is none."""
    job = attempt.job
    abstract = job.program.state
    restored = checkpoints.restore(for_checkpoint(abstract))
    if restored is None:
        if attempt.record is not None and attempt.record.resumes:
            raise nothing_to_restore(attempt.folder)
        return _StartPoint(0, job.program.make_state())
    step, state, meta = restored
    state = from_checkpoint(state, abstract)
    return _StartPoint(step, state, meta.get("skipped", 0), tuple(meta.get("losses", ())))


def _log_start(attempt: _Attempt, start: _StartPoint) -> None:
    mesh, wanted = attempt.job.mesh, attempt.config.train.num_steps
    attempt.events.log(
        "resume" if start.step else "start",
        step=start.step,
        processes=jax.process_count(),
        devices=mesh.devices.size,
        mesh=dict(mesh.shape),
    )
    if start.step:
        attempt.log(f"resuming after step {start.step}")
    if start.step >= wanted:
        attempt.log(f"nothing to do: {start.step} of {wanted} steps are complete")


def _reporter(attempt: _Attempt, peak_flops: float, resume_step: int) -> Reporter:
    config, job = attempt.config, attempt.job
    trained = sum(leaf.size for leaf in jax.tree.leaves(job.program.state.params))
    return Reporter(
        attempt.folder,
        at_row_length(config),
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
    attempt: _Attempt, start: _StartPoint, compiled, checkpoints: Checkpoints, reporter: Reporter
):
    """Runs the loop and returns the last state. Restarts from the last checkpoint after a spike."""
    faults = fault_injection.scheduled_faults()
    skips = 0
    while True:
        reporter.spikes = SpikeWatch(start.losses)
        try:
            return _fit(attempt, start, compiled, checkpoints, reporter, faults)
        except LossSpike as spike:
            if skips == _MAX_SKIPS:
                raise TrainingError(
                    f"the loss still spikes after {skips} rollbacks: {spike.message}.",
                    f"step {spike.step}",
                    "lower optimizer.peak_learning_rate, or inspect the data.",
                ) from spike
            start = _roll_back(spike, attempt, checkpoints)
        skips += 1


def _roll_back(spike: LossSpike, attempt: _Attempt, checkpoints: Checkpoints) -> _StartPoint:
    """Restores the latest checkpoint before the spike; skips the batches up to the spike.

    The checkpoint is saved again with the number of skipped batches, so a run that is killed before
    its next save skips them as well.
    """
    attempt.goodput.undo()
    with attempt.goodput.spent_on("restore"):
        start = _restore_or_initialize(attempt, checkpoints)
    count = spike.step - start.step
    first = start.step + start.skipped + 1
    last = first + count - 1
    start = dataclasses.replace(start, skipped=start.skipped + count)
    with attempt.goodput.spent_on("save"):
        _save(attempt, checkpoints, start.step, start.state, start.skipped, start.losses)
        checkpoints.wait()
    attempt.events.log(
        "skipped", spike=spike.step, back_to=start.step, first_batch=first, last_batch=last
    )
    attempt.log(f"{spike}: rolled back to step {start.step}; skipping batches {first} to {last}")
    return start


def _save(
    attempt: _Attempt,
    checkpoints: Checkpoints,
    step: int,
    state,
    skipped: int,
    losses: Sequence[float],
) -> None:
    """Saves all that the steps after `step` depend on."""
    if attempt.lock is not None:
        attempt.lock.check()
    seed = attempt.config.train.seed
    meta = {"seed": seed, "skipped": skipped, "losses": list(losses)}
    checkpoints.save(step, for_checkpoint(state), meta)


def _fit(
    attempt: _Attempt,
    start: _StartPoint,
    compiled,
    checkpoints: Checkpoints,
    reporter: Reporter,
    faults: list,
):
    """Runs the loop with its hooks."""
    train, job, goodput = attempt.config.train, attempt.job, attempt.goodput

    on_disk = start.step  # or, for a new run, the initial state, which nobody needs

    def save(done: int, state) -> None:
        nonlocal on_disk
        if done > on_disk:  # a bad step after a save, or after the start, has nothing new to save
            with goodput.spent_on("save"):
                losses = reporter.spikes.recent
                _save(attempt, checkpoints, done, state, start.skipped, losses)
            on_disk = done
        goodput.mark()

    def report(step: StepReport) -> None:
        reporter(step)
        checkpoints.check()  # further steps would be lost as well

    hooks = [Hook(train.save_every or train.num_steps, save, at_stop=True)]
    if job.evaluate is not None:
        evaluate = functools.partial(_evaluate, attempt, reporter)
        hooks.append(Hook(train.eval_every or train.num_steps, evaluate))
    step = fault_injection.in_step(compiled, faults)
    step = with_sdc_check(step, train.sdc_check_every, start_step=start.step)
    if job.phases is not None:
        step = job.phases.timed(step)
    with (
        job.batches(start.step + start.skipped) as read,
        traced(
            lambda step, state: read(step + start.skipped, state),
            train.trace_steps,
            attempt.folder,
            attempt.log,
        ) as next_batch,
        watching(attempt.folder, train.hang_seconds) as watchdog,
    ):
        return fit(
            start.state,
            watchdog.batches(fault_injection.before_steps(next_batch, faults)),
            watchdog.steps(step),
            start_step=start.step,
            num_steps=train.num_steps,
            report=watchdog.reports(report),
            hooks=watchdog.hooks(hooks),
        )


def _evaluate(attempt: _Attempt, reporter: Reporter, done: int, state) -> None:
    assert attempt.job.evaluate is not None
    with attempt.goodput.spent_on("evaluate"):
        reporter.metrics.write(done, attempt.job.evaluate(done, state))


def _lacks_evaluation(attempt: _Attempt, reporter: Reporter, step: int) -> bool:
    """Returns whether the evaluation of the restored step is due but not in the metrics.

    The earlier attempt was stopped or killed before it had finished that evaluation.
    """
    if attempt.job.evaluate is None or not step:
        return False
    train = attempt.config.train
    due = step == train.num_steps or step % (train.eval_every or train.num_steps) == 0
    missing = due and step not in reporter.metrics.evaluated
    if jax.process_count() > 1:  # only process 0 has read the metrics
        missing = bool(multihost_utils.broadcast_one_to_all(np.int32(missing)))
    return missing


def _wait_for_last_save(checkpoints: Checkpoints) -> None:
    """Keeps every process alive until process 0 has hashed and committed the last save."""
    checkpoints.wait()
    distributed.barrier("the last save", seconds=3600)


def _check_loops(model: ModelConfig, mesh: Mesh) -> None:
    """Raises ConfigError for a loop over layers on several CPU processes, which Gloo connects.

    XLA:CPU runs such a loop concurrently with the collectives around it, in an order that differs
    between processes, and Gloo then mixes up their messages.
    """
    if (
        mesh.devices.flat[0].platform == "cpu"
        and distributed.is_distributed()
        and mesh.devices.size > 1
        and model.unroll_layers < model.num_layers
    ):
        raise ConfigError(
            f"several CPU processes require all {model.num_layers} layers to be unrolled, but "
            f"unroll_layers={model.unroll_layers}.",
            "model.unroll_layers",
            f"use --model.unroll_layers={model.num_layers}.",
        )


def _check_attention(model: ModelConfig, mesh: Mesh, log: Callable[[str], None]) -> None:
    """Checks the attention kernel's output and gradients against float32 before the first step.

    The check runs once and takes seconds. It detects a kernel that a driver or compiler has broken,
    before the error affects the loss.
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
        f"attention {choice.name} matches float32; errors as fractions of the tolerance: "
        f"{shares} ({time.perf_counter() - started:.1f} s)"
    )
