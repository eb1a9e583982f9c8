"""The local launcher: reported deaths, restarts, signals; real training runs."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from launch import local
from qwen_jax.train.resilience import fault_injection

ROOT = pathlib.Path(__file__).resolve().parents[2]
ME = (
    "import os, signal, sys, time; me = int(os.environ['JAX_PROCESS_ID']); "
    "attempt = int(os.environ['QWEN_JAX_ATTEMPT']); "
)


def command(*options, code=None, arguments=()) -> list[str]:
    inner = ["-c", ME + code] if code else list(arguments)
    return [sys.executable, "-m", "launch.local", *options, "--", *inner]


def launch(*options, **inner) -> tuple[int, str]:
    done = subprocess.run(
        command(*options, **inner),
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
    )
    return done.returncode, done.stdout


@pytest.fixture
def launch_here(monkeypatch, capfd):
    """Launches from this process, and waits for processes that do not exit only for a moment."""
    monkeypatch.setattr(local, "_EXIT_SECONDS", 0.5)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def launch(*options, **inner) -> tuple[int, str]:
        capfd.readouterr()
        _, _, _, *argv = command(*options, **inner)
        return local.main(argv), capfd.readouterr().out

    yield launch
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_local_names_a_killed_process_and_restarts_all(launch_here):
    code, shown = launch_here(
        "--processes=3",
        code=(
            "print('attempt', attempt, flush=True); "
            "os.kill(os.getpid(), signal.SIGKILL) if me == 1 and attempt == 0 else None; "
            "time.sleep(600 if attempt == 0 else 0)"
        ),
    )
    assert code == 0
    assert "[launch] process 1 was killed by SIGKILL" in shown
    assert "[launch]     attempt 0" in shown and "[launch] restart 1 of 10" in shown
    assert shown.count("attempt 1") == 3


def test_local_names_a_frozen_process(launch_here):
    code, shown = launch_here(
        "--processes=2",
        "--heartbeat=1",
        "--max_restarts=0",
        code=("os.kill(os.getpid(), signal.SIGSTOP) if me == 1 else time.sleep(600)"),
    )
    assert code == 1
    assert "process 1 has been frozen for 1 s" in shown and "maximum of 0 restarts" in shown


def test_local_does_not_retry_a_persistent_error():
    code, shown = launch(
        "--grace=1", code=("print('what: no'); sys.exit(1) if me == 0 else time.sleep(600)")
    )
    assert code == 1
    assert "not restarted" in shown and "restart 1" not in shown


@pytest.mark.parametrize("code, restarts", [(73, False), (78, False), (74, True), (70, True)])
def test_local_restarts_after_the_codes_of_the_table(launch_here, monkeypatch, code, restarts):
    monkeypatch.setattr(local, "_EXIT_SECONDS", 600)  # both exit by themselves, in any order
    inner = f"sys.exit({code} if me == 1 and attempt == 0 else 70 * (attempt == 0))"
    found, shown = launch_here("--processes=2", code=inner)
    assert found == (0 if restarts else code) and ("restart 1" in shown) == restarts


def test_local_blames_the_cause_and_not_who_noticed_it(launch_here, monkeypatch):
    monkeypatch.setattr(local, "_EXIT_SECONDS", 60)
    inner = "time.sleep(0.4 if me == 1 else 0); sys.exit(1 if me == 1 else 77)"
    found, shown = launch_here("--processes=2", "--grace=5", code=inner)
    assert found == 1 and "process 1 exited with code 1" in shown and "restart 1" not in shown


def test_local_passes_the_reason_to_the_next_attempt():
    code, shown = launch(
        code=(
            "print(os.environ.get('QWEN_JAX_RESTARTED_AFTER')); sys.exit(70 if attempt == 0 else 0)"
        )
    )
    assert code == 0
    assert (
        "exited with code 70"
        in [line for line in shown.splitlines() if line.startswith("[1] ")][-1]
    )


def test_local_forwards_sigterm_and_does_not_restart():
    process = subprocess.Popen(
        command(
            code=(
                "signal.signal(15, lambda *_: (print('saved', flush=True), sys.exit(75))); "
                "print('ready', flush=True); time.sleep(600)"
            )
        ),
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
    )
    ready, shown = 0, ""
    for line in process.stdout:
        ready, shown = ready + ("ready" in line), shown + line
        if ready == 2:
            ready = 0
            process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    assert "[0] saved" in shown and "[1] saved" in shown and "restart 1" not in shown


def test_local_leaves_no_process_when_it_is_killed():
    process = subprocess.Popen(
        command(code="print('ready', flush=True); time.sleep(600)"),
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
    )
    for _ in range(2):
        process.stdout.readline()
    workers = fault_injection.worker_pids(process.pid)
    assert sorted(workers) == [0, 1]
    process.kill()
    process.wait()
    for _ in range(100):
        if not any(map(alive, workers.values())):
            return
        time.sleep(0.05)
    raise AssertionError("the processes outlive their launcher")


def alive(pid: int) -> bool:
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def pretrain(run_dir, text, *flags) -> list[str]:
    return [
        "-m",
        "benchmarks.resilience.cached",
        "experiments.pretrain",
        "--recipe=smoke",
        f"--run_dir={run_dir}",
        f"--data.sources={text}",
        "--model.hidden_size=32",
        "--model.ffn_size=64",
        "--model.unroll_layers=2",
        "--optimizer.warmup_steps=2",
        "--train.log_every=1",
        *flags,
    ]


def losses(run_dir) -> dict[int, float]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return {
        record["step"]: record["train/loss"]
        for record in map(json.loads, lines)
        if "train/loss" in record
    }


def events(run_dir) -> list[str]:
    lines = (run_dir / "events.jsonl").read_text().splitlines()
    return [json.loads(line)["event"] for line in lines]


@pytest.fixture
def cached(monkeypatch, tmp_path_factory):
    """Compiles each program only once: these tests are about restarts, not the compiler."""
    folder = tmp_path_factory.getbasetemp() / "compiled"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.setenv("XLA_FLAGS", "")


def test_local_training_survives_a_kill(toy_text, tmp_path, monkeypatch, cached, launch_here):
    """The second attempt resumes from the newest checkpoint; each step is logged once, in order."""
    monkeypatch.setenv(fault_injection.VARIABLE, "kill step=7 process=1")
    code, shown = launch_here(
        "--processes=2",
        "--heartbeat=100",
        arguments=pretrain(
            tmp_path / "run",
            toy_text,
            "--model.num_layers=1",
            "--train.num_steps=8",
            "--train.save_every=2",
        ),
    )
    assert code == 0, shown
    assert "process 1 was killed by SIGKILL" in shown
    # Process 0 may still log the death of the other one before it is ended.
    logged = [
        event for event in events(tmp_path / "run") if event not in ("killed", "error", "slow_host")
    ]
    # A save waits for the previous one: at the start of step 7, at least that of step 2 is on disk.
    assert logged[:2] == ["start", "saved"] and logged[-2:] == ["saved", "end"], logged
    assert [event for event in logged if event != "saved"] == ["start", "restart", "resume", "end"]
    assert list(losses(tmp_path / "run")) == list(range(1, 9))


@pytest.mark.slow
def test_local_losses_are_bitwise_equal_in_one_two_and_four_processes(toy_text, tmp_path, cached):
    found = {}
    for processes, devices in ((1, 8), (2, 4), (4, 2)):
        run = tmp_path / f"run{processes}"
        code, shown = launch(
            f"--processes={processes}",
            f"--devices={devices}",
            "--heartbeat=300",
            "--max_restarts=0",
            arguments=pretrain(
                run, toy_text, "--train.num_steps=30", "--mesh.data=4", "--mesh.tensor=2"
            ),
        )
        assert code == 0, shown
        found[processes] = losses(run)
    assert len(found[1]) == 30
    assert found[2] == found[1] and found[4] == found[1]


@pytest.mark.slow
def test_local_losses_are_equal_across_restarts_on_other_meshes(toy_text, tmp_path, cached):
    settings = "--train.num_steps=30", "--train.save_every=10"
    code, shown = launch(
        "--processes=1",
        "--devices=4",
        "--max_restarts=0",
        arguments=pretrain(tmp_path / "single", toy_text, *settings),
    )
    assert code == 0, shown
    for processes, devices, mesh, end in (
        (4, 1, "--mesh.fsdp=4", 12),
        (2, 2, "--mesh.tensor=2", 22),
        (1, 2, "--mesh.data=2", None),
    ):
        # A signal arrives within a second or two: delay the steps from there on until then.
        os.environ[fault_injection.VARIABLE] = (
            f"term step={end}; delay step={end} seconds=0.5" if end else ""
        )
        try:
            code, shown = launch(
                f"--processes={processes}",
                f"--devices={devices}",
                "--heartbeat=300",
                "--max_restarts=0",
                arguments=pretrain(tmp_path / "restarted", toy_text, mesh, *settings),
            )
        finally:
            del os.environ[fault_injection.VARIABLE]
        assert code == (1 if end else 0), shown
    single, restarted = losses(tmp_path / "single"), losses(tmp_path / "restarted")
    assert list(restarted) == list(single) == list(range(1, 31))
    # Sums are in another order: float32 rounding errors that grow over 30 steps.
    np.testing.assert_allclose(list(restarted.values()), list(single.values()), rtol=2e-4)


@pytest.mark.slow
def test_local_saves_one_step_after_sigterm_to_one_of_four(toy_text, tmp_path, monkeypatch, cached):
    monkeypatch.setenv(fault_injection.VARIABLE, "term step=5 process=2; delay step=5 seconds=0.1")
    code, shown = launch(
        "--processes=4",
        "--heartbeat=300",
        arguments=pretrain(
            tmp_path / "run", toy_text, "--train.num_steps=60", "--train.save_every=100"
        ),
    )
    assert code == 0, shown
    assert "was stopped by SIGTERM after saving a checkpoint" in shown
    logged = [event for event in events(tmp_path / "run") if event != "slow_host"]  # a busy machine
    assert sorted(logged) == sorted(["start", "stop", "saved", "restart", "resume", "saved", "end"])
    assert list(losses(tmp_path / "run")) == list(range(1, 61))
