"""The loop, with a step in plain Python: order of events, stopping, errors."""

import os
import signal
import time

import jax.numpy as jnp
import pytest

from qwen_jax.errors import TrainingError
from qwen_jax.train.loop import Hook, Stopped, fit
from qwen_jax.train.resilience.spikes import SpikeWatch
from qwen_jax.train.step import unless_halted
from qwen_jax.types import TrainState


def counting_step(state, batch):
    loss = jnp.float32(batch)
    new = state.replace(step=state.step + 1)
    return unless_halted(jnp.isfinite(loss), new, state), {"train/loss": loss}


def start(step=0):
    return TrainState(jnp.int32(step), params=(), opt_state=(), halted=jnp.bool_(False))


def run(batches, *, hooks=(), start_step=0, step=counting_step, reports=None):
    return fit(
        start(start_step),
        lambda i, state: batches[i],
        step,
        start_step=start_step,
        num_steps=len(batches),
        report=(reports if reports is not None else []).append,
        hooks=hooks,
    )


def test_fit_reports_every_step_once_and_runs_due_hooks():
    reports, hook_calls = [], []
    hooks = (
        Hook(2, lambda n, s: hook_calls.append(("two", n, int(s.step)))),
        Hook(100, lambda n, s: hook_calls.append(("end", n, int(s.step)))),
    )
    state = run([1.0, 2.0, 3.0, 4.0, 5.0], hooks=hooks, reports=reports)
    assert int(state.step) == 5
    assert [(r.step, r.metrics["train/loss"]) for r in reports] == [(i, i) for i in range(1, 6)]
    assert reports[0].seconds is None and reports[1].seconds > 0
    assert hook_calls == [("two", 2, 2), ("two", 4, 4), ("two", 5, 5), ("end", 5, 5)]


def test_fit_counts_data_wait_within_the_step_time():
    """A report comes one step late, after the wait for the next batch."""
    reports, naps = [], [0.0, 0.0, 0.05, 0.0, 0.0, 0.05, 0.0, 0.05]

    def next_batch(i, state):
        time.sleep(naps[i])
        return 1.0

    fit(
        start(),
        next_batch,
        counting_step,
        start_step=0,
        num_steps=len(naps),
        report=reports.append,
        hooks=(Hook(3, lambda n, s: None),),
    )
    counted = [report for report in reports if report.seconds is not None]
    assert len(counted) == len(naps) - 1
    assert all(report.data_wait_seconds <= report.seconds for report in counted)
    assert 0.15 <= sum(report.data_wait_seconds for report in counted)


def test_fit_resumes_at_start_step():
    reports = []
    run([1.0, 2.0, 3.0], start_step=2, reports=reports)
    assert [r.step for r in reports] == [3]


def test_fit_reads_metrics_after_dispatching_the_next_step():
    events = []

    def step(state, batch):
        events.append(f"dispatch {batch}")
        return counting_step(state, batch)

    class Reports:
        def append(self, report):
            events.append(f"report {report.step}")

    run([1.0, 2.0, 3.0], step=step, reports=Reports())
    assert events == [
        "dispatch 1.0",
        "dispatch 2.0",
        "report 1",
        "dispatch 3.0",
        "report 2",
        "report 3",
    ]


def test_fit_stops_at_a_nonfinite_loss_and_saves_the_last_good_state():
    saved = []
    hooks = (
        Hook(100, lambda n, s: saved.append((n, int(s.step))), at_stop=True),
        Hook(1, lambda n, s: None),
    )
    with pytest.raises(TrainingError, match="step 3 is not finite: train/loss=nan"):
        run([1.0, 2.0, float("nan"), 4.0, 5.0], hooks=hooks)
    assert saved == [(2, 2)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_fit_on_a_signal_finishes_the_step_saves_and_stops(number):
    saved, skipped = [], []

    def step(state, batch):
        if batch == 2.0:
            os.kill(os.getpid(), number)
        return counting_step(state, batch)

    hooks = (
        Hook(100, lambda n, s: saved.append((n, int(s.step))), at_stop=True),
        Hook(100, lambda n, s: skipped.append(n)),
    )
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped:
        run([1.0, 2.0, 3.0, 4.0], step=step, hooks=hooks)
    assert saved == [(2, 2)] and skipped == [] and stopped.value.signal_number == number
    assert signal.getsignal(number) is before


def test_fit_propagates_errors_of_next_batch():
    def no_more(i, state):
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        fit(start(), no_more, counting_step, start_step=0, num_steps=3, report=lambda r: None)


def test_spike_watch_reports_a_spike_and_ignores_noise():
    watch = SpikeWatch()
    noise = [2.0 + 0.05 * ((i * 7) % 5 - 2) for i in range(100)]
    assert [m for m in map(watch.see, noise) if m] == []
    assert "3.5000 spikes above 2.0" in watch.see(3.5)
