"""Killed at any moment, run again, and on other workers: the same bytes."""

import pathlib
import random
import subprocess
import sys
import time

import pytest

pytest.importorskip("daft")
pytest.importorskip("trafilatura")

from tests.data.test_pipeline import files_of, small_tokenizer, write_sources
from tests.data.warc_files import answer, record, zipped

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def command(tmp_path):
    """Makes the command line of a run into a folder."""
    source = write_sources(tmp_path / "source")
    draw = random.Random(7)
    words = "the river rose slowly over many quiet fields and nobody in town noticed it".split()
    pages = []
    for i in range(60):
        text = " ".join(draw.choices(words, k=120)) + "."
        body = f"<html><body><article><p>{text}</p><p>{text[::-1]}</p></article></body></html>"
        pages.append(record(f"http://b/{i}", answer(body.encode())))
    (source / "e.warc.gz").write_bytes(b"".join(map(zipped, pages)))
    tokenizer = small_tokenizer(tmp_path / "bytes.tiktoken")

    def make(output, *more):
        return [sys.executable, "-m", "experiments.prepare_data", f"--sources={source}",
                f"--output={output}", f"--tokenizer={tokenizer}", "--partition_mb=0.008",
                "--exact_dedup=url,document,paragraph", "--eval_fraction=0.1",
                "--shard_tokens=5000", "--filters.rules=false",  # which it would not pass
                *more]

    return make


def run(command):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_killed_ten_times_and_on_other_workers(command, tmp_path):
    started = time.monotonic()
    run(command(tmp_path / "whole", "--workers=2"))
    length = time.monotonic() - started
    draw = random.Random(0)
    kills = 0
    for number in range(5):  # runs, each killed again until ten kills are reached
        output = tmp_path / f"killed{number}"
        for _ in range(3):
            process = subprocess.Popen(command(output, "--workers=2"), cwd=ROOT,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                process.wait(draw.uniform(0.1, 0.6) * length)
                break
            except subprocess.TimeoutExpired:
                kills += 1
                process.kill()  # signal 9, to it alone: its workers find out by themselves
                process.wait()
        run(command(output, "--workers=2"))
        assert files_of(output) == files_of(tmp_path / "whole"), number
    assert kills >= 10
    run(command(tmp_path / "one", "--workers=1"))
    run(command(tmp_path / "none", "--workers=0"))
    for other in ("one", "none"):
        assert files_of(tmp_path / other) == files_of(tmp_path / "whole")


@pytest.mark.slow
def test_ray_writes_the_same(command, tmp_path):
    pytest.importorskip("ray")
    run(command(tmp_path / "here", "--workers=2"))
    run(command(tmp_path / "ray", "--workers=2", "--ray=local"))
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "here")
