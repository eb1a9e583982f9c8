"""THE training loop. It depends only on a step, a source of batches and hooks.

Metrics are read one step late, so the device does not wait for the host.
"""

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from qwen_jax.errors import TrainingError
from qwen_jax.train.resilience.signals import StopRequest
from qwen_jax.types import TrainState


@dataclasses.dataclass(frozen=True)
class Hook:
    """An action to run on the state every `every` steps and after the last step."""

    every: int
    act: Callable[[int, Any], None]  # (completed steps, state)
    at_stop: bool = False  # also run when the run stops early: True to save, False to evaluate


@dataclasses.dataclass(frozen=True)
class StepReport:
    """The metrics and times of a step that the device has finished."""

    step: int  # completed steps, including this one
    metrics: dict[str, float]
    seconds: float | None  # since the previous step, without hooks; None for the first step
    data_wait_seconds: float  # part of `seconds` spent in next_batch; in PPO this includes sampling
    device_wait_seconds: float = 0.0  # time in the call of the step and waiting for its results


class Stopped(Exception):
    """A signal stopped the run before its last step. Its state has been saved."""

    def __init__(self, step: int, signal_number: int):
        super().__init__(f"stopped at step {step} by {signal.Signals(signal_number).name}")
        self.step, self.signal_number = step, signal_number


def fit(
    state: TrainState,
    next_batch: Callable[[int, TrainState], Any],
    train_step: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]],
    *,
    start_step: int,
    num_steps: int,
    report: Callable[[StepReport], None],
    hooks: tuple[Hook, ...] = (),
) -> TrainState:
    """Runs steps start_step .. num_steps - 1 and returns the last state.

    Args:
      next_batch: (step, state) -> batch. Pretraining ignores the state; PPO samples with it.
      report: receives a StepReport for every step, one step late.
      hooks: hooks due after the same step run in the given order.

    Raises:
      TrainingError: a loss or gradient is not finite, or next_batch raised it. Hooks with at_stop
        have run on the state of the last good step (see train/step.py).
      Stopped: any process received SIGTERM or SIGINT. All processes finished the same step and ran
        the same hooks.
    """
    pending: tuple[int, dict, float] | None = None
    waited = 0.0  # seconds spent waiting for batches since the last report
    clock = _Clock()

    def settle(state) -> None:
        """Waits for the step in flight, reports it, and raises if its metrics are not finite."""
        nonlocal pending, waited
        if pending is None:
            return
        step, metrics, called = pending
        pending = None
        started_wait = time.perf_counter()
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        blocked = time.perf_counter() - started_wait
        report(StepReport(step, values, clock.lap(), waited, called + blocked))
        waited = 0.0
        _check_finite(step, values, state, hooks)

    with StopRequest() as request:
        for step in range(start_step, num_steps):
            started = time.perf_counter()
            try:
                batch = next_batch(step, state)
            except TrainingError:  # for example from a reward function; save the state
                settle(state)
                for hook in hooks:
                    # With several processes, the others have not seen the error.
                    if hook.at_stop and jax.process_count() == 1:
                        hook.act(step, state)
                raise
            waited += time.perf_counter() - started
            started = time.perf_counter()
            new_state, metrics = train_step(state, batch)
            called = time.perf_counter() - started
            settle(new_state)
            state = new_state
            pending = (step + 1, metrics, called)
            done, last = step + 1, step + 1 == num_steps
            stop = None if last else request.at(done)
            due = [
                hook for hook in hooks if (hook.at_stop if stop else last or done % hook.every == 0)
            ]
            if due:
                settle(state)
                with clock.paused():
                    for hook in due:
                        hook.act(done, state)
            if stop:
                raise Stopped(done, stop)
        settle(state)
    return state


def _check_finite(step: int, values: dict[str, float], state, hooks: tuple[Hook, ...]) -> None:
    """Raises if a metric is not finite, after running hooks with at_stop on the last good state."""
    bad = ", ".join(f"{name}={value}" for name, value in values.items() if not math.isfinite(value))
    if not bad:
        return
    good = int(state.step)
    for hook in hooks:
        if hook.at_stop:
            hook.act(good, state)
    raise TrainingError(
        f"a metric of step {step} is not finite: {bad}.",
        f"step {step}",
        (f"the state after step {good} was saved; " if good else "")
        + "inspect the batch, or lower optimizer.peak_learning_rate or optimizer.clip_norm. "
        "train/weight=0 means that the loss mask excludes every token of the batch.",
    )


class _Clock:
    """Measures seconds between steps, excluding hooks; the first lap is None."""

    def __init__(self):
        self._last: float | None = None

    def lap(self) -> float | None:
        now = time.perf_counter()
        seconds = None if self._last is None else now - self._last
        self._last = now
        return seconds

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if self._last is not None:
            self._last += time.perf_counter() - started
