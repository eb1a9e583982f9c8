"""A full run with a step that sums its batches: events, rollbacks, faults."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.pretrain import SMOKE
from qwen_jax.checkpoint.checkpointer import Checkpointer
from qwen_jax.config import TrainConfig
from qwen_jax.errors import CheckpointError, ConfigError, TrainingError
from qwen_jax.train import run_folder
from qwen_jax.train.loop import StepReport, Stopped
from qwen_jax.train.resilience import fault_injection
from qwen_jax.train.resilience.sdc_check import SilentCorruption
from qwen_jax.train.telemetry.events import Events
from qwen_jax.train.telemetry.goodput import KINDS, Goodput
from qwen_jax.train.telemetry.host_times import HostTimes, find_slow_host
from qwen_jax.train.telemetry.reporter import Reporter
from qwen_jax.utils import best_effort
from tests.helpers.adding_run import Adding, noise
from tests.helpers.failing_output import FullDisk
from tests.helpers.paths import ALL_CHARACTERS


def test_run_resumes_in_a_folder_with_every_character(tmp_path):
    (tmp_path / ALL_CHARACTERS).mkdir()
    folder = tmp_path / ALL_CHARACTERS / "run"
    a = Adding(folder, noise(), num_steps=20)
    a.run()
    shutil.rmtree(folder / "checkpoints/20")
    a.read.clear()
    a.run()
    assert "resuming after step 10" in a.shown and a.read[0] == 10
    assert a.newest()[0] == 20
    assert [path.name for path in tmp_path.iterdir()] == [ALL_CHARACTERS]


def test_events_record_every_attempt(tmp_path, monkeypatch):
    a = Adding(tmp_path, noise(), num_steps=20)
    a.run()
    assert a.names() == ["start", "saved", "saved", "end"]
    assert a.events()[0] | {"time": 0} == {
        "time": 0,
        "event": "start",
        "step": 0,
        "processes": 1,
        "devices": 2,
        "mesh": {"data": 1, "fsdp": 2, "tensor": 1, "context": 1},
    }
    assert [event.get("step") for event in a.events()[1:3]] == [10, 20]
    # Another attempt, killed in the middle of a line and restarted by a launcher.
    text = (tmp_path / "events.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "events.jsonl").write_text("".join(text[:2]) + '{"time": 1')
    monkeypatch.setenv("QWEN_JAX_RESTARTED_AFTER", "process 3 was killed by SIGKILL")
    monkeypatch.setenv("QWEN_JAX_ATTEMPT", "2")
    a.run()
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines if line != '{"time": 1']
    assert [event["event"] for event in events] == [
        "start",
        "saved",
        "killed",
        "restart",
        "resume",
        "end",
    ]
    assert events[2]["last_event"] == "saved" and events[2]["last_seen"] > 0
    assert (events[3]["attempt"], events[3]["reason"]) == (2, "process 3 was killed by SIGKILL")


def test_run_logs_an_error_before_raising_it(tmp_path):
    a = Adding(tmp_path, [2.0, 2.0, float("nan")] + noise())
    with pytest.raises(TrainingError, match="step 3 is not finite"):
        a.run()
    assert a.names() == ["start", "spike", "saved", "error"]
    assert a.events()[-1]["kind"] == "TrainingError" and "step 3" in a.events()[-1]["what"]
    # The saved state is the last good one: not halted, with the leaves of any checkpoint.
    step, saved, _ = a.newest()
    assert (step, int(saved.step), saved.params["w"][0]) == (2, 2, 4.0)
    description = json.loads((tmp_path / "checkpoints" / "2" / "meta.json").read_text())
    assert set(description["leaves"]) == {"step", "params.w"}
    a.values = [2.0] * 40
    state = a.run()
    assert (int(state.step), state.params["w"][0], bool(state.halted)) == (40, 80.0, False)


def test_run_restores_a_checkpoint_without_the_halted_flag(tmp_path):
    a = Adding(tmp_path, noise(), num_steps=20)
    old = {"step": jnp.int32(19), "params": {"w": jnp.full(4, 7.0, jnp.float32)}}
    checkpoints = Checkpointer(tmp_path / "checkpoints")
    checkpoints.save(19, old, {"seed": 0})
    checkpoints.close()
    state = a.run()
    assert (int(state.step), bool(state.halted)) == (20, False)
    assert state.params["w"][0] == np.float32(7.0) + np.float32(a.values[19])


@pytest.mark.parametrize("bad", [50.0, float("nan")])
def test_run_rolls_back_from_a_spike_and_skips_its_batches(tmp_path, bad):
    values = noise()
    values[33] = bad
    a = Adding(tmp_path, values, on_spike="skip")
    state = a.run()
    # The run rolls back to step 30, skips batches 30 to 33, and continues with the later ones.
    expected = sum(np.float32(v) for v in values[:30] + values[34:44])
    np.testing.assert_allclose(np.asarray(state.params["w"]), expected, rtol=1e-6)
    assert a.read[-10:] == list(range(34, 44))
    skipped = next(event for event in a.events() if event["event"] == "skipped")
    assert (skipped["back_to"], skipped["first_batch"], skipped["last_batch"]) == (30, 31, 34)
    assert any("skipping batches 31 to 34" in line for line in a.shown)


def test_run_resumed_after_a_rollback_reads_the_same_batches(tmp_path):
    values = noise()
    values[23] = 50.0
    uninterrupted = Adding(tmp_path / "uninterrupted", values, on_spike="skip").run()
    first = Adding(tmp_path / "two", values, on_spike="skip")
    inner = first.batches

    @contextlib.contextmanager
    def stopping(start_step):
        with inner(start_step) as read:

            def next_batch(step, state):
                if step == 35:
                    signal.raise_signal(signal.SIGTERM)
                return read(step, state)

            yield next_batch

    first.job = dataclasses.replace(first.job, batches=stopping)
    with pytest.raises(Stopped):
        first.run()
    assert first.names()[-2:] == ["saved", "stop"] or first.names()[-2:] == ["stop", "saved"]
    second = Adding(tmp_path / "two", values, on_spike="skip")
    state = second.run()
    assert second.read[0] == first.read[-1] + 1
    wanted = np.asarray(uninterrupted.params["w"])
    assert np.asarray(state.params["w"]).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("spike", [23, 5])  # 5: before the first save
def test_run_killed_right_after_a_rollback_skips_the_same_batches(tmp_path, spike):
    values = noise()
    values[spike] = float("nan")
    whole = Adding(tmp_path / "whole", values, on_spike="skip")
    state = whole.run()
    killed = Adding(tmp_path / "killed", values, on_spike="skip")
    inner, starts = killed.job.batches, []

    def kill(start_step):
        starts.append(start_step)
        if len(starts) == 2:
            raise KeyboardInterrupt  # before any step, so before the next save
        return inner(start_step)

    killed.job = dataclasses.replace(killed.job, batches=kill)
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    assert "skipped" in killed.names()
    resumed = Adding(tmp_path / "killed", values, on_spike="skip")
    found = resumed.run()
    assert killed.read + resumed.read == whole.read and spike not in resumed.read
    assert found.params["w"].tobytes() == state.params["w"].tobytes()


def test_run_gives_up_after_ten_rollbacks(tmp_path):
    values = noise(30) + [float("nan")] * 600
    with pytest.raises(TrainingError, match="10 rollbacks"):
        Adding(tmp_path, values, on_spike="skip").run()


def test_sdc_check_detects_a_wrong_computation_and_does_not_save_it(tmp_path, monkeypatch):
    monkeypatch.setenv(fault_injection.VARIABLE, "corrupt step=16")
    a = Adding(tmp_path, noise(), sdc_check_every=4)
    with pytest.raises(SilentCorruption, match="step 16 differ .mismatched elements: 1.") as caught:
        a.run()
    assert caught.value.exit_code == 76 and a.newest()[0] == 10
    monkeypatch.setenv("QWEN_JAX_ATTEMPT", "1")  # the fault belongs to the first attempt
    state = Adding(tmp_path, noise(), sdc_check_every=4).run()
    monkeypatch.delenv(fault_injection.VARIABLE)
    plain = Adding(tmp_path / "plain", noise()).run()
    assert np.asarray(state.params["w"]).tobytes() == np.asarray(plain.params["w"]).tobytes()


def test_goodput_accounts_for_all_time(tmp_path, monkeypatch):
    monkeypatch.setenv(fault_injection.VARIABLE, "delay step=11 seconds=0.02")
    a = Adding(tmp_path, noise())
    a.run()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    last = records[-1]
    assert last["time/wait"] > 29 * 0.02 and 0 < last["perf/goodput"] < 1
    assert last["time/compile"] > 0 and last["time/restore"] > 0 and last["time/save"] > 0
    assert {f"time/{kind}" for kind in (*KINDS, "other")} <= last.keys()


class Phases:
    """A PhaseTimer with given steps."""

    def __init__(self, *steps: dict[str, float]):
        self._steps = list(steps)

    def take(self, last: str) -> dict[str, float]:
        assert last == "update"
        return self._steps.pop(0)


def test_reporter_logs_phases_and_counts_rollouts_as_work(tmp_path):
    shown, goodput = [], Goodput()
    one = {"generation": 0.25, "scoring": 0.125, "update": 0.125}
    phases = Phases({"generation": 60.0}, one, one | {"data": 0.25, "update": 0.375})
    reporter = Reporter(
        tmp_path,
        SMOKE.model,
        TrainConfig(num_steps=3, batch_size=1, log_every=2),
        training_stage="ppo",
        phases=phases,
        schedule=lambda step: 0.1 * step,
        total_peak_flops=1e9,
        resume_step=None,
        events=Events(tmp_path),
        goodput=goodput,
        log=shown.append,
    )
    metrics = {
        "train/loss": 1.0,
        "train/grad_norm": 1.0,
        "rollout/length": 3.0,
        "rollout/reward": 1.0,
        "rollout/kl": 0.0,
    }
    reporter(StepReport(1, metrics, None, 60.0))  # includes compilation
    reporter(StepReport(2, metrics, 0.5, 0.4))
    goodput.mark()
    reporter(StepReport(3, metrics, 1.0, 0.9))
    reporter.metrics.close()
    first, second, third = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert "perf/step_seconds" not in first
    for record, phases in (
        (second, one | {"data": 0.0}),
        (third, one | {"data": 0.25, "update": 0.375}),
    ):
        assert {f"perf/{name}_seconds": mean for name, mean in phases.items()}.items() <= (
            record.items()
        )
        assert record["perf/step_seconds"] == sum(phases.values())
    assert {"perf/sample_seconds", "perf/data_wait_seconds", "train/tokens"}.isdisjoint(third)
    assert (third["time/sample"], third["time/train"], third["time/wait"]) == (0.75, 0.5, 0.25)
    split = "step 1.00 s (data 0.25, generation 0.25, scoring 0.12, update 0.38)  goodput"
    assert split in shown[-1]
    goodput.undo()  # of the third step
    record = goodput.record()
    assert record["time/redo"] == 0.75 and record["time/sample"] == 0.375


def test_trace_steps_writes_a_profile(tmp_path):
    a = Adding(tmp_path, noise(), num_steps=12, trace_steps=(3, 4))
    a.run()
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert any("profile of steps 3 to 4 is in" in line for line in a.shown)


def test_find_slow_host_names_only_a_slow_host():
    assert find_slow_host({0: 0.01, 1: 0.011, 2: 0.012}) is None
    assert find_slow_host({0: 0.001}) is None
    slow, even = {0: 0.01, 1: 0.011, 2: 0.2, 3: 0.01}, {0: 0.01, 1: 0.01, 2: 0.01, 3: 0.01}
    assert find_slow_host(slow)[1].startswith("process 2 is slow: 200 ms")
    hosts = HostTimes()
    messages = [hosts.slow(times) for times in (slow, slow, even, slow, slow, slow, slow)]
    assert [message is not None for message in messages] == [False] * 5 + [True, False]


def test_reporter_computes_learning_rates_before_the_first_step(tmp_path):
    """On a CPU a computation waits for the step in flight, which would distort host times."""
    calls, shown = [], []

    def schedule(step):
        calls.append(step)
        return jnp.asarray(step, jnp.float32) / 10

    train = TrainConfig(num_steps=5, batch_size=1, log_every=1)
    reporter = Reporter(
        tmp_path,
        SMOKE.model,
        train,
        training_stage="pretrain",
        schedule=schedule,
        total_peak_flops=1e9,
        resume_step=None,
        events=Events(tmp_path),
        goodput=Goodput(),
        log=shown.append,
    )
    before = len(calls)
    for step in range(1, 6):
        reporter(StepReport(step, {"train/loss": 1.0, "train/grad_norm": 1.0}, 0.1, 0.0))
    reporter.metrics.close()
    assert before == len(calls) == 1
    records = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [record["train/learning_rate"] for record in records] == pytest.approx(
        [0.0, 0.1, 0.2, 0.3, 0.4]
    )


@pytest.mark.parametrize("text", ["kil step=3", "kill when=3", "kill step=x"])
def test_scheduled_faults_refuses_invalid_text(text):
    with pytest.raises(ConfigError):
        fault_injection.scheduled_faults({fault_injection.VARIABLE: text})


def test_scheduled_faults_belong_to_one_process_and_attempt():
    text = "kill step=3 process=1; nan step=4; delay step=2 attempt=1 seconds=0.5"
    assert [
        fault.kind for fault in fault_injection.scheduled_faults({fault_injection.VARIABLE: text})
    ] == ["nan"]
    assert [
        fault.seconds
        for fault in fault_injection.scheduled_faults(
            {fault_injection.VARIABLE: text, "QWEN_JAX_ATTEMPT": "1"}
        )
    ] == [0.5]


def test_run_writes_its_identity_and_resumes_a_folder_without_one(tmp_path):
    a = Adding(tmp_path, noise(), num_steps=20)
    a.run()
    path = tmp_path / "config.json"
    written = json.loads(path.read_text())
    assert (written["training_stage"], written["parameters"]) == ("pretrain", "params")
    old = {
        name: value for name, value in written.items() if name not in run_folder.Identity._fields
    }
    for found in (written, old):
        path.write_text(json.dumps(found))
        a.run()
        assert a.events()[-2]["event"] == "resume"
        assert json.loads(path.read_text()) == written


def test_run_stops_as_soon_as_a_save_has_failed(tmp_path, monkeypatch):
    a, checked = Adding(tmp_path, noise()), []

    def check(checkpoints):
        checked.append(None)
        if len(checked) == 7:
            raise CheckpointError("the disk is full.", "here", "free some.")

    monkeypatch.setattr(Checkpointer, "check", check)
    with pytest.raises(CheckpointError, match="full"):
        a.run()
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(row)["step"] for row in rows) == 7


@pytest.mark.parametrize("room", [0, 1500])
def test_run_goes_on_if_its_logs_cannot_be_written(tmp_path, monkeypatch, capsys, room):
    plain = Adding(tmp_path / "plain", noise()).run()
    monkeypatch.setattr(best_effort, "os", FullDisk(room))
    capsys.readouterr()
    a = Adding(tmp_path / "full", noise())
    state = a.run()
    step, saved, _ = a.newest()
    assert step == int(state.step) == 40
    assert np.asarray(saved.params["w"]).tobytes() == np.asarray(plain.params["w"]).tobytes()
    first, *counts = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert "No space left on device; going on" in first
    lost = {line.split(" could not")[0].split(" of ")[1]: int(line.split()[1]) for line in counts}
    written = (tmp_path / "full" / "metrics.jsonl").read_text().splitlines()
    assert lost["metrics.jsonl"] == 40 - len([json.loads(line) for line in written])
    assert lost["events.jsonl"] >= 5 and lost["TensorBoard"] >= 38
    monkeypatch.setattr(best_effort, "os", os)  # the disk has space again
    more = Adding(tmp_path / "full", noise(), num_steps=40)
    assert int(more.run().step) == 40 and more.names()[-1] == "end"


@pytest.mark.parametrize("act", ["start_trace", "stop_trace"])
def test_run_goes_on_without_a_profile(tmp_path, monkeypatch, act):
    def full(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED: No space left on device")

    monkeypatch.setattr(jax.profiler, act, full)
    other = {"start_trace": "stop_trace", "stop_trace": "start_trace"}[act]
    monkeypatch.setattr(jax.profiler, other, lambda *_: None)
    a = Adding(tmp_path, noise(), num_steps=12, trace_steps=(3, 4))
    assert int(a.run().step) == 12
    assert [line for line in a.shown if "profile" in line] == [
        "the profile of steps 3 to 4 is incomplete: RuntimeError: RESOURCE_EXHAUSTED: No space "
        "left on device"
    ]


class Evaluating(Adding):
    """Evaluates every 10 steps; `interrupt` runs inside the evaluation of that step."""

    def __init__(self, folder, interrupt=None, **settings):
        super().__init__(folder, noise(), eval_every=10, **settings)
        self.evaluations, self.interrupt = [], interrupt or {}
        self.job = dataclasses.replace(self.job, evaluate=self.evaluate)

    def evaluate(self, done, state):
        self.evaluations.append(done)
        self.interrupt.get(done, lambda: None)()
        return {"eval/text/loss": float(state.params["w"][0])}

    def rows(self):
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


def killed():
    raise RuntimeError("killed")


@pytest.mark.parametrize("at", [10, 20, 40])
def test_run_repeats_an_evaluation_that_was_cut_off(tmp_path, at):
    """Killed inside the evaluation of a saved step: the next attempt evaluates before it trains."""
    wanted = Evaluating(tmp_path / "whole")
    wanted.run()
    first = Evaluating(tmp_path / "two", {at: killed})
    with pytest.raises(RuntimeError, match="killed"):
        first.run()
    second = Evaluating(tmp_path / "two")
    second.run()
    assert second.evaluations == list(range(at, 41, 10)) and second.read == list(range(at, 40))
    for each in (wanted, second):
        found = [(row["step"], row["eval/text/loss"]) for row in each.rows() if len(row) == 3]
        assert found == [(done, found[i][1]) for i, done in enumerate((10, 20, 30, 40))]
        assert len({step for step, _ in found}) == 4
    losses = [[row.get("eval/text/loss") for row in each.rows()] for each in (wanted, second)]
    assert losses[0] == losses[1]
    third = Evaluating(tmp_path / "two")  # complete: nothing is missing
    third.run()
    assert third.evaluations == []


@pytest.mark.parametrize("signal_step", [9, 19])
def test_run_evaluates_once_if_a_signal_stops_it_at_that_step(tmp_path, signal_step):
    first = Evaluating(tmp_path)
    inner = first.job.batches

    @contextlib.contextmanager
    def stopping(start_step):
        with inner(start_step) as read:

            def next_batch(step, state):
                if step == signal_step:
                    signal.raise_signal(signal.SIGTERM)
                return read(step, state)

            yield next_batch

    first.job = dataclasses.replace(first.job, batches=stopping)
    with pytest.raises(Stopped):
        first.run()
    assert signal_step + 1 not in first.evaluations
    second = Evaluating(tmp_path)
    second.run()
    evaluated = [row["step"] for row in second.rows() if "eval/text/loss" in row]
    assert evaluated == [10, 20, 30, 40]


def test_run_does_not_repeat_an_evaluation_that_a_signal_interrupted(tmp_path):
    first = Evaluating(tmp_path, {20: lambda: signal.raise_signal(signal.SIGTERM)})
    with pytest.raises(Stopped):
        first.run()
    second = Evaluating(tmp_path)
    second.run()
    assert first.evaluations + second.evaluations == [10, 20, 30, 40]
    evaluated = [row["step"] for row in second.rows() if "eval/text/loss" in row]
    assert evaluated == [10, 20, 30, 40]
