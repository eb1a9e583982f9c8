"""A killed or interrupted run resumes and produces the same numbers, bit for bit."""

import json
import random
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from qwen_jax.pretrained.huggingface import load_pretrained
from tests.helpers.tiny_checkpoint import ROOT, environment

STEPS = 200


@pytest.fixture(scope="module")
def command(toy_text):
    def make(run_dir, *flags):
        return [
            sys.executable,
            "-m",
            "experiments.pretrain",
            "--recipe=smoke",
            f"--run_dir={run_dir}",
            f"--data.sources={toy_text}",
            "--model.hidden_size=32",
            f"--train.num_steps={STEPS}",
            "--train.save_every=20",
            "--train.log_every=1",
            "--model.dropout=0.1",
            *flags,
        ]

    return make


def losses(run_dir) -> dict[int, float]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return {
        record["step"]: record["train/loss"]
        for record in map(json.loads, lines)
        if "train/loss" in record
    }


def finish(command) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_pretrain_is_bitwise_the_same_after_ten_kills(command, tmp_path):
    """Kills one run at ten random moments, from its first second to its last steps."""
    # A save waits for the one before it. Saving every 5 steps leaves a checkpoint in each attempt,
    # on a busy machine too.
    often = "--train.save_every=5"
    finish(command(tmp_path / "full", often))
    rng, resumed = random.Random(0), 0
    for _ in range(10):
        process = subprocess.Popen(
            command(tmp_path / "killed", often),
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        wanted = rng.randrange(5, 40)  # lines of this attempt
        for number, line in enumerate(process.stdout):
            resumed += "resuming after step" in line
            if number >= wanted:
                break
        time.sleep(rng.random() * 0.05)
        process.kill()
        process.wait()
    output = finish(command(tmp_path / "killed", often))
    resumed += "resuming after step" in output
    assert resumed >= 5
    full, killed = losses(tmp_path / "full"), losses(tmp_path / "killed")
    assert len(full) == STEPS and killed == full
    a, b = (jax.tree.leaves(load_pretrained(tmp_path / name)[1]) for name in ("full", "killed"))
    for x, y in zip(a, b, strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.parametrize(
    "number, code",
    [
        (signal.SIGTERM, 0),
        # tests/train/test_loop.py stops a loop with both
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_pretrain_saves_a_checkpoint_on_a_signal(command, tmp_path, number, code):
    process = subprocess.Popen(
        command(tmp_path / "run"),
        cwd=ROOT,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    for line in process.stdout:
        if line.startswith("step 7/"):
            process.send_signal(number)
            break
    rest = process.stdout.read()
    assert process.wait() == code
    assert "run the same command again to resume" in rest
    saved = [int(p.name) for p in (tmp_path / "run/checkpoints").iterdir() if p.name.isdecimal()]
    assert len(saved) == 1 and saved[0] >= 7


@pytest.mark.slow
@pytest.mark.parametrize("redirect", ["| true", "> /dev/full", ">&- 2>&-", "> /dev/full 2>&1"])
def test_pretrain_goes_on_if_its_output_cannot_be_written(command, tmp_path, redirect):
    shell = f'set -o pipefail; "$@" {redirect}'
    short = command(tmp_path / "run", "--train.num_steps=40")
    done = subprocess.run(
        ["bash", "-c", shell, "bash", *short],
        cwd=ROOT,
        env=environment(),
        text=True,
        stderr=subprocess.PIPE,
    )
    assert done.returncode == 0, done.stderr
    assert len(losses(tmp_path / "run")) == 40
    assert (tmp_path / "run/checkpoints/40").is_dir()
    assert "Traceback" not in done.stderr
    if "2>" not in redirect:
        lost = [line for line in done.stderr.splitlines() if "could not be written" in line]
        assert len(lost) == 1 and "lines of standard output" in lost[0]


@pytest.mark.slow
def test_pretrain_exits_with_the_code_of_a_full_disk(command, tmp_path):
    """A limit on the size of files is a full disk for the checkpoint, and fits the metrics."""
    environ = environment() | {"QWEN_JAX_FAULTS": "full step=25 bytes=40000"}
    done = subprocess.run(
        command(tmp_path / "run", "--train.num_steps=60"),
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 73, done.stderr
    assert "DiskFullError" in done.stderr and "It needs" in done.stderr
    # The save of step 20 may still run when the disk becomes full.
    failed, kept = re.search(
        r"step (\d+) was not saved(?s:.*)on disk: (\w+)\.", done.stderr
    ).groups()
    assert (failed, kept) in (("40", "20"), ("20", "none"))
    assert (tmp_path / "run/checkpoints/20").is_dir() == (kept == "20")


def test_pretrain_exits_with_a_hint_for_a_misspelled_flag(command, tmp_path):
    done = subprocess.run(
        command(tmp_path / "run", "--train.num_step=3"), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "did you mean 'train.num_steps'?" in done.stderr
    assert not (tmp_path / "run").exists()
