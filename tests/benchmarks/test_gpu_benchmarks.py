"""The GPU benchmark script: its parts and limits, and its measurements on a CPU."""

import json
import math
import os
import pathlib
import subprocess

import pytest

from benchmarks.aot import device_rates, full_size
from benchmarks.common import timing

ROOT = pathlib.Path(__file__).resolve().parents[2]
ALL = [
    "environment",
    "correctness",
    "attention",
    "train_1.8b",
    "train_7b",
    "decode_1.8b",
    "decode_7b",
    "ppo",
]
PYTHON = """#!/bin/bash
echo "$*" >> {calls}
case "$*" in *full_size*1.8b*) sleep {slow};; *benchmarks.inference.decode*) exit {code};; esac
"""


def gpu(folder, *parts, slow=0, code=0, limit=60):
    """Returns (exit code, output, Python calls)."""
    calls, python = folder / "calls", folder / "python"
    calls.write_text("")
    python.write_text(PYTHON.format(calls=calls, slow=slow, code=code))
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", ROOT / "benchmarks/gpu.sh", folder / "out", *parts],
        text=True,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
        env=os.environ | {"PYTHON": str(python), "LIMIT": str(limit)},
    )
    return done.returncode, done.stdout, calls.read_text().splitlines()


def test_gpu_script_reruns_only_unfinished_parts(tmp_path):
    code, output, calls = gpu(tmp_path, slow=60, code=3, limit=1)
    assert code == 1 and output.endswith("not done: train_1.8b decode_1.8b decode_7b\n")
    assert "train_1.8b: exit code 124, out of time" in output and len(calls) == 9
    code, output, calls = gpu(tmp_path)
    assert code == 0 and "environment: already done" in output
    assert [call.split()[1] for call in calls] == [
        "benchmarks.aot.full_size",
        "benchmarks.inference.decode",
        "benchmarks.inference.decode",
    ]
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.done")) == sorted(ALL)


def test_gpu_script_names_an_unknown_part(tmp_path):
    code, output, calls = gpu(tmp_path, "environment", "trian_7b")
    assert code == 2 and output.startswith("no part is called trian_7b") and not calls


def test_gpu_script_flags_exist():
    """Checks the flags of each command against the config of its module."""
    text = (ROOT / "benchmarks/gpu.sh").read_text().replace("\\\n", " ")
    commands = [line.split(" -m ")[1] for line in text.splitlines() if '"$python" -m' in line]
    assert len(commands) == 8
    for command in commands:
        module, *words = command.split()
        config = __import__(module, fromlist=["Config"]).Config
        names = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
        assert names <= set(config.__dataclass_fields__), command


def test_full_size_measures_a_small_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = full_size.measure(full_size.SMOKE)
    assert row["first_loss"] == pytest.approx(math.log(128), rel=0.02)
    assert row["tokens_per_second"] == pytest.approx(64 / row["step_seconds"])
    assert row["work"]["batch_size"] == 4 and row["work"]["steps"] == full_size.SMOKE.steps
    peer = row | {"tokens_per_second": row["tokens_per_second"] / 2}
    table = full_size.summary({"ours": [row], "peer": [peer]})
    assert table["peer"]["ratio"] == pytest.approx(2) and table["ours"]["ratio"] == 1
    assert table["ours"]["mfu"] == pytest.approx(
        row["flops_a"] * row["tokens_per_second"] / row["peak_flops"]
    )
    json.dumps(table)


def test_device_rates_by_median_time(monkeypatch):
    found = device_rates.rates(device_rates.SMOKE)
    assert found["copy_gb_per_s"] > 0 and found["matmul_tflop_per_s"] > 0
    took = timing.Timing(median=1e-3, min=1e-3, max=1e-3)
    monkeypatch.setattr(timing, "interleaved", lambda calls, **_: dict.fromkeys(calls, took))
    assert device_rates.rates(device_rates.SMOKE) == pytest.approx(
        {"copy_gb_per_s": 2 * 16 * 2**20 / 1e6, "matmul_tflop_per_s": 2 * 256**3 / 1e9}
    )
