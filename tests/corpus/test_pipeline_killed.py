"""experiments.prepare_data writes the same bytes after kills, and with any workers."""

import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("daft")
pytest.importorskip("trafilatura")

from tests.helpers.corpus_files import files_of, small_tokenizer, write_sources
from tests.helpers.warc_files import http_response, record, zipped

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECONDS = 600  # limit of one run, which takes about 12 on idle cores

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Returns a function from an output folder to the command line of a run."""
    folder = tmp_path_factory.mktemp("sources")
    source = write_sources(folder / "source")
    rng = random.Random(7)
    words = "the river rose slowly over many quiet fields and nobody in town noticed it".split()
    pages = []
    for i in range(30):
        text = " ".join(rng.choices(words, k=120)) + "."
        body = f"<html><body><article><p>{text}</p><p>{text[::-1]}</p></article></body></html>"
        pages.append(record(f"http://b/{i}", http_response(body.encode())))
    (source / "e.warc.gz").write_bytes(b"".join(map(zipped, pages)))
    tokenizer = small_tokenizer(folder / "bytes.tiktoken")

    def make(output, *more):
        return [
            sys.executable,
            "-m",
            "experiments.prepare_data",
            f"--sources={source}",
            f"--output={output}",
            f"--tokenizer={tokenizer}",
            "--partition_mb=0.02",
            "--exact_dedup=document,paragraph",
            "--eval_fraction=0.1",
            "--shard_tokens=8000",
            "--filters.rules=false",  # the texts would not pass them
            *more,
        ]

    return make


@pytest.fixture(scope="module")
def undisturbed(command, tmp_path_factory):
    """Runs with two workers; returns the folder and all files it ever had, in order."""
    output = tmp_path_factory.mktemp("complete") / "output"
    process = subprocess.Popen(
        command(output, "--workers=2"),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    names, deadline = {}, time.monotonic() + SECONDS
    while process.poll() is None:
        assert time.monotonic() < deadline
        for path in sorted(output.rglob("*.*")):
            name = re.sub(r"\.[0-9a-f]{8}\.writing$", "", str(path.relative_to(output)))
            names.setdefault(name)
        time.sleep(0.005)
    assert process.returncode == 0, process.stderr.read()[-3000:]
    return output, list(names)


@pytest.fixture(scope="module")
def complete(undisturbed):
    return undisturbed[0]


def run(command):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-3000:]


def kill_at(command, path, *, seconds, workers):
    """Kills a run with SIGKILL, `seconds` after it starts to write a file.

    Args:
      path: the file.
      workers: whether to kill the workers too; otherwise they notice that their parent is gone.

    Returns:
      whether the run was still alive.
    """
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + SECONDS
    while process.poll() is None and not any(path.parent.glob(f"{path.name}*")):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(seconds)
    alive = process.poll() is None
    if alive and workers:
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
    return alive


@pytest.mark.parametrize("workers", [True, False], ids=["all processes", "only the first"])
def test_prepare_data_killed_five_times_writes_the_same(command, undisturbed, tmp_path, workers):
    complete, names = undisturbed
    rng = random.Random(f"{workers}")
    output = tmp_path / "output"
    moments = [
        names[rng.randrange(len(names) * i // 5, len(names) * (i + 1) // 5)] for i in range(5)
    ]
    for i, name in enumerate(moments):  # during the write of a file, or up to a second later
        assert kill_at(
            command(output, "--workers=2"),
            output / name,
            workers=workers,
            seconds=i % 2 * rng.random(),
        ), name
    run(command(output, "--workers=2"))
    assert files_of(output) == files_of(complete), moments


@pytest.mark.parametrize("workers", [0, 1])
def test_prepare_data_writes_the_same_with_fewer_workers(command, complete, tmp_path, workers):
    run(command(tmp_path / "output", f"--workers={workers}"))
    assert files_of(tmp_path / "output") == files_of(complete)


def test_prepare_data_writes_the_same_on_ray(command, complete, tmp_path):
    pytest.importorskip("ray")
    run(command(tmp_path / "output", "--workers=2", "--ray=local"))
    assert files_of(tmp_path / "output") == files_of(complete)
