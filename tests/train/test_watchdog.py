"""A run that hangs: who is named, what is written, and the exit code."""

import os
import subprocess
import sys
import threading
import time
import types

import pytest

from qwen_jax import exit_codes
from qwen_jax.train.loop import Hook, StepReport
from qwen_jax.train.resilience import watchdog


def place(step: int, what: str = "computing", beat: int = 1) -> dict:
    return {"step": step, "what": what, "beat": beat}


BEFORE = {0: place(5), 1: place(5), 2: place(5)}


@pytest.mark.parametrize(
    "after, lines",
    [
        ({0: place(5, beat=2), 1: place(5, beat=2), 2: place(5, beat=2)}, []),
        (
            {0: place(5, beat=2), 1: place(5, beat=1), 2: place(5, beat=2)},
            ["process 1 shows no sign of life since it was computing of step 5"],
        ),
        (
            {0: place(5, "reading the batch", 2), 1: place(5, beat=2), 2: place(4, beat=3)},
            ["process 0 is reading the batch of step 5", "process 2 is computing of step 4"],
        ),
        (
            {0: place(5, beat=2), 2: place(5, beat=2)},
            ["process 1 has not started its first step"],
        ),
    ],
)
def test_absent_in_names_those_that_the_others_wait_for(after, lines):
    assert watchdog.absent_in(BEFORE, after, 3) == lines


HANG = """
import sys, time
from qwen_jax.train.resilience import watchdog
from qwen_jax.train.loop import StepReport
watchdog.FIRST_SECONDS = watchdog.HOOK_SECONDS = float(sys.argv[2])
with watchdog.watching(sys.argv[1], 0.4) as dog:
    report = dog.reports(lambda step: None)
    fetch = dog.batches(lambda step, state: time.sleep(60 if step == 3 else 0.01))
    for step in range(6):
        fetch(step, None)
        report(StepReport(step + 1, {}, 0.01 if step else None, 0.0))
"""


def hang(folder, first: float) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", HANG, str(folder), str(first)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"QWEN_JAX_ATTEMPT": "2"},
    )


def test_watchdog_writes_the_stacks_and_exits_with_a_code_that_restarts(tmp_path):
    done = hang(tmp_path, first=100)
    assert done.returncode == exit_codes.CRASHED and exit_codes.restarts(done.returncode)
    assert "(median 0.01 s): process 0 is reading the batch of step 4" in done.stderr
    stacks = (tmp_path / "hangs/attempt-2-process-0.txt").read_text()
    assert "<string>" in stacks and "Thread" in stacks
    assert "the stacks of all threads are in" in done.stderr


def test_watchdog_leaves_a_run_that_steps(tmp_path, monkeypatch):
    exits = []
    monkeypatch.setattr(os, "_exit", exits.append)
    with watchdog.watching(tmp_path, 0.2) as dog:  # the limit is 20 * 0.05 s, for a busy machine
        report, fetch = dog.reports(lambda step: None), dog.batches(lambda step, state: step)
        for step in range(40):
            assert fetch(step, None) == step
            report(StepReport(step + 1, {}, 0.05, 0.0))
            time.sleep(0.04)
    assert not exits and not (tmp_path / "hangs").exists()


def test_watchdog_waits_longer_for_a_save_and_for_slow_steps(tmp_path):
    dog = watchdog.Watchdog(tmp_path, 0.1)
    seen = []
    (hook,) = dog.hooks((Hook(1, lambda done, state: seen.append(dog._place), at_stop=True),))
    hook.act(7, None)
    assert hook.at_stop and seen == [
        watchdog.Place("saving or evaluating", 7, watchdog.HOOK_SECONDS)
    ]
    dog._enter("computing", 8)
    assert dog._place.seconds == watchdog.FIRST_SECONDS  # nothing is known about steps yet
    for seconds in (1.0, 3.0, 2.0):
        dog.reports(lambda step: None)(StepReport(1, {}, seconds, 0.0))
    dog._enter("computing", 8)
    assert dog._place.seconds == watchdog.FACTOR * 2.0


@pytest.mark.parametrize("gaps, ends", [([400, 1, 1], 0), ([1] * 400, 1), ([400] + [1] * 400, 1)])
def test_watchdog_does_not_take_a_suspended_process_for_a_hang(tmp_path, monkeypatch, gaps, ends):
    now, seen = [0.0], []
    dog = watchdog.Watchdog(tmp_path, 300)

    class Over:
        def wait(self, seconds):
            now[0] += gaps.pop(0) if gaps else 0
            return not gaps or bool(seen)

    monkeypatch.setattr(watchdog, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(dog, "_over", Over())
    monkeypatch.setattr(dog, "_end", lambda place, waited: seen.append(waited))
    dog._since, dog._place = 0.0, watchdog.Place("computing", 3, 300)
    dog.watch()
    assert len(seen) == ends


def test_watching_without_a_limit_starts_no_thread(tmp_path):
    before = threading.active_count()
    with watchdog.watching(tmp_path, None) as dog:
        assert dog.batches(lambda step, state: step + state)(1, 2) == 3
        assert threading.active_count() <= before


def test_within_gives_up_on_what_is_stuck():
    assert watchdog.within(5, lambda: 3) == 3
    started = time.monotonic()
    assert watchdog.within(0.05, lambda: time.sleep(1)) is None
    assert time.monotonic() - started < 1
    assert watchdog.within(5, lambda: 1 // 0) is None
