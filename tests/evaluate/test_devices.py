"""Evaluation over devices and processes, from an engine, and after SIGKILL: the same bytes."""

import contextlib
import json
import random
import re
import signal
import subprocess
import sys
import time

import jax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from qwen_jax.config import MeshConfig
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.evaluate import harness, likelihood
from qwen_jax.evaluate.data_files import DataFolders
from qwen_jax.evaluate.prompts import questions
from qwen_jax.inference.engine import Engine
from qwen_jax.inference.request import Request
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.inference.warmup import mesh_over_all
from qwen_jax.parallel.mesh import make_mesh
from tests.helpers import tiny_evaluation
from tests.helpers.tiny_checkpoint import ROOT, environment
from tests.helpers.tiny_evaluation import CONFIG, TASKS, TOKENIZER, evaluate


@pytest.fixture(scope="module")
def model() -> harness.Model:
    return tiny_evaluation.model()


def samples_of(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("samples/*"))}


def test_mesh_over_all_splits_rows_over_groups_of_devices():
    assert dict(mesh_over_all(1).shape) == {"data": 8, "fsdp": 1, "tensor": 1, "context": 1}
    assert dict(mesh_over_all(2).shape) == {"data": 4, "fsdp": 1, "tensor": 2, "context": 1}
    with pytest.raises(ConfigError, match="(?s)tensor=3 .* 8.*--tensor.*1 or 2 or 4 or 8"):
        mesh_over_all(3)


def test_devices_that_split_rows_and_batch_sizes_change_nothing(model, tmp_path):
    one, lines = evaluate(model, tmp_path / "one")
    assert lines[0] == "1 device of 8 (cpu)"
    mesh = make_mesh(MeshConfig(data=2, fsdp=1), devices=jax.devices()[:2])
    params = jax.device_put(model.params, NamedSharding(mesh, PartitionSpec()))
    two, lines = evaluate(
        harness.Model(CONFIG, params, TOKENIZER, mesh), tmp_path / "two", batch_size=3
    )
    assert lines[0] == "2 devices of 8 (cpu) in 1 process; rows are split over 2"
    assert one == two
    assert samples_of(tmp_path / "one") == samples_of(tmp_path / "two")


def test_an_engine_is_evaluated_with_its_settings(model, tmp_path):
    expected, _ = evaluate(model, tmp_path / "model")
    engine = Engine(model.params, CONFIG, tokenizer=TOKENIZER, max_num_seqs=16)
    found, _ = evaluate(engine, tmp_path / "engine")
    assert found["tasks"] == expected["tasks"] and found["cache_dtype"] == "float32"
    ours, theirs = (samples_of(tmp_path / name) for name in ("model", "engine"))
    for name in ("words.jsonl", "unanswerable.jsonl"):  # but for the names of the evaluations
        left, right = (re.sub(rb', "evaluation".*', b"", one[name]) for one in (ours, theirs))
        assert left == right and left
    small = Engine(model.params, CONFIG, tokenizer=TOKENIZER, max_num_seqs=2, max_model_len=64)
    with pytest.raises(DataError, match="context has 64"):  # ChatML and the question have more
        evaluate(small, tmp_path / "small")


def test_an_engine_that_cannot_be_evaluated_is_refused(model, tmp_path):
    with pytest.raises(ConfigError, match="no tokenizer"):
        evaluate(Engine(model.params, CONFIG, max_num_seqs=2), tmp_path / "a")
    engine = Engine(model.params, CONFIG, tokenizer=TOKENIZER, max_num_seqs=2)
    with pytest.raises(ConfigError, match="max_model_len=512, and max_length is 100"):
        evaluate(engine, tmp_path / "b", max_length=100)
    engine.submit(Request((1,), SamplingParams(max_new_tokens=2)))
    with pytest.raises(ConfigError, match="running requests"):
        evaluate(engine, tmp_path / "c")


def test_all_tasks_are_encoded_and_their_outputs_opened_before_any_is_computed(
    model, tmp_path, monkeypatch
):
    monkeypatch.setattr(likelihood, "sample", lambda *a: pytest.fail("it was computed"))
    short = harness.LoadedModel(model, batch_size=1, max_length=64)
    work = questions.read_all(list(TASKS.values()), DataFolders([]), 3)
    with pytest.raises(DataError, match="unanswerable"):
        harness.run(short, work, DataFolders([]), tmp_path / "a", identity={})
    fits = harness.LoadedModel(model, batch_size=1, max_length=None)
    (tmp_path / "b/samples").mkdir(parents=True)
    (tmp_path / "b/samples/unanswerable.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match="of another evaluation"):
        harness.run(fits, work, DataFolders([]), tmp_path / "b", identity={})


def command(folder, names: str, data, *flags: str) -> list[str]:
    return [
        "-m",
        "experiments.evaluate",
        f"--checkpoint={folder.parent}/model",
        f"--tasks={names}",
        f"--data={data}",
        f"--output={folder}",
        *flags,
    ]


def files_of(folder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "times.json"
    }


def finish(command: list[str]) -> str:
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("devices, flags", [(1, ()), (2, ("--tensor=2",))])
def test_two_processes_write_what_one_process_writes(tmp_path, shared, devices, flags):
    tiny_evaluation.save(tmp_path / "model")
    names, data = "ceval,unanswerable,humaneval", shared / "data/eval"
    launcher = ["-m", "launch.local", "--max_restarts=0", "--heartbeat=600"]
    for processes in (1, 2):
        own = [f"--processes={processes}", f"--devices={devices * 2 // processes}", "--"]
        own += command(tmp_path / f"{processes}", names, data, "--limit=5", *flags)
        shown = finish([sys.executable, *launcher, *own])
        assert f"{devices * 2} devices of {devices * 2} (cpu) in {processes} process" in shown
        if devices == 1:
            shown = finish([sys.executable, *launcher, *own])  # everything is there
    assert files_of(tmp_path / "1") == files_of(tmp_path / "2")


@pytest.mark.slow
def test_ten_kills_change_nothing_but_the_times(tmp_path, shared):
    tiny_evaluation.save(tmp_path / "model")
    names, data = "ceval,unanswerable,humaneval", shared / "data/eval"
    for folder in ("whole", "again"):
        finish([sys.executable, *command(tmp_path / folder, names, data, "--limit=24")])
    attempt = [sys.executable, *command(tmp_path / "killed", names, data, "--limit=24")]
    rng = random.Random(0)
    for number in range(10):
        process = subprocess.Popen(
            attempt,
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # Until it has some more of the 72 samples, or while it starts.
        while process.poll() is None and samples_in(tmp_path / "killed") < 7 * number:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.2) if number % 3 else rng.uniform(0, 3))
        process.kill()
        assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    finish(attempt)
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "again")
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "killed")


def samples_in(folder) -> int:
    """Returns the number of samples that an evaluation has written so far."""
    count = 0
    for path in folder.glob("samples/*.jsonl*"):
        with contextlib.suppress(FileNotFoundError):  # deleted when the task is complete
            count += 0 if path.suffix == ".json" else path.read_bytes().count(b"\n")
    return count


KILLED = """
import os, signal
from qwen_jax.evaluate import generation
from tests.helpers.tiny_evaluation import evaluate, model
sample, made = generation.sample, []
def kill(*arguments, **settings):
    made.append(0)
    if len(made) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return sample(*arguments, **settings)
generation.sample = kill
evaluate(model(), {folder!r})
"""


def test_a_kill_changes_nothing_but_the_times(model, tmp_path):
    variables = {**environment(), "PYTHONPATH": str(ROOT)}
    code = KILLED.format(folder=str(tmp_path / "killed"))
    killed = subprocess.run([sys.executable, "-c", code], env=variables, cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    partial = (tmp_path / "killed/samples/unanswerable.jsonl.partial").read_text().splitlines()
    assert len([json.loads(line) for line in partial]) == 3
    (tmp_path / "killed/samples/unanswerable.jsonl.0.writing").write_bytes(b"{")
    for folder in ("killed", "whole"):
        evaluate(model, tmp_path / folder)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
