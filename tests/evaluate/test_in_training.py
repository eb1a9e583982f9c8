"""Benchmarks during training."""

import dataclasses
import json
import tempfile

import jax
import pytest

from experiments.pretrain import SMOKE
from qwen_jax.config import DataConfig, MeshConfig, TrainConfig
from qwen_jax.data import shards
from qwen_jax.errors import ConfigError
from qwen_jax.evaluate import harness, run, tasks
from qwen_jax.evaluate.in_training import TaskEvaluation, prepare
from qwen_jax.evaluate.task import Generation
from qwen_jax.evaluate.tasks.code import toolchains
from qwen_jax.inference import scoring
from qwen_jax.model.spec import init_params
from qwen_jax.report.page import write_report
from qwen_jax.sandbox.isolation import SandboxError
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.train.pretrain import pretrain
from tests.evaluate.test_harness import TOY
from tests.helpers.shard_text import make_documents

TOKENIZER = Tokenizer({bytes([byte]): byte for byte in range(256)})
MODEL = dataclasses.replace(SMOKE.model, num_layers=1, vocab_size=512, unroll_layers=1)
TASKS = TaskEvaluation(tasks=("toy",), data=(".",), every=4, limit=8)
MESH = MeshConfig(data=2, fsdp=2, tensor=2)
TRAIN = TrainConfig(num_steps=6, batch_size=8, log_every=1, eval_every=2, save_every=3)


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(tasks.TASKS, "toy", TOY)


def start(folder, train=TRAIN, settings=TASKS, mesh=MESH):
    data = folder.parent / "data"
    if not data.exists():
        data.mkdir()
        TOKENIZER.save(data / "tokenizer.tiktoken")
        shards.write(make_documents(), data / "text", TOKENIZER)
    config = dataclasses.replace(
        SMOKE,
        model=MODEL,
        train=train,
        mesh=mesh,
        optimizer=dataclasses.replace(SMOKE.optimizer, warmup_steps=1),
        run_dir=str(folder),
        data=DataConfig(sources=(str(data / "text/train"),)),
    )
    lines = []
    benchmarks = prepare(settings, MODEL, train, TOKENIZER, config.mesh, lines.append)
    state = pretrain(config, TOKENIZER, benchmarks=benchmarks, log=lines.append)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return state, rows, lines


def test_benchmarks_during_training_equal_those_of_the_checkpoint(tmp_path):
    state, rows, lines = start(tmp_path / "run")
    scores = {row["step"]: row["eval/toy/score"] for row in rows if "eval/toy/score" in row}
    assert list(scores) == [4, 6]  # every 4 steps, and the last
    assert any(line.startswith("step 6  benchmarks (%): toy") for line in lines)
    model = harness.Model(MODEL, jax.device_get(state.params), TOKENIZER)
    found = run(model, ("toy",), data=(".",), output=tmp_path / "out", limit=8)["tasks"]["toy"]
    assert scores[6] == found["score"] and found["n"] == 8
    write_report(tmp_path / "run")
    assert (tmp_path / "run/plots/benchmarks.png").exists()


def test_prepare_logs_rows_that_were_left_out(monkeypatch):
    def read(data):
        return dataclasses.replace(TOY.read(data), dropped=3)

    monkeypatch.setitem(tasks.TASKS, "toy", dataclasses.replace(TOY, read=read))
    lines = []
    prepare(TASKS, MODEL, TRAIN, TOKENIZER, MESH, lines.append)
    assert "note: toy: rows without a right answer, left out: 3" in lines


def test_benchmarks_compile_once_and_leave_the_training_as_it_is(tmp_path):
    plain, _, _ = start(tmp_path / "plain", settings=TaskEvaluation())
    every_step = dataclasses.replace(TASKS, every=None)
    train = dataclasses.replace(TRAIN, eval_every=1)
    benchmarks = prepare(every_step, MODEL, train, TOKENIZER, MeshConfig(tensor=2), print)
    benchmarks(1, plain.params, False)
    programs = scoring._score._cache_size()
    benchmarks(2, plain.params, False)
    assert scoring._score._cache_size() == programs
    state, _, _ = start(tmp_path / "run", settings=every_step, train=train)
    assert all(
        (a == b).all()
        for a, b in zip(jax.tree.leaves(plain.params), jax.tree.leaves(state.params), strict=True)
    )


@pytest.mark.parametrize("change, flag", [
    ({"data": ()}, "--evaluate.data"),
    ({"every": 3}, "--evaluate.every"),
    ({"tasks": ()}, "--evaluate.data"),
    ({"tasks": ("tay",)}, "--evaluate.tasks"),
])  # fmt: skip
def test_benchmarks_settings_without_effect_are_refused(change, flag):
    with pytest.raises(ConfigError, match=flag):
        prepare(dataclasses.replace(TASKS, **change), MODEL, TRAIN, TOKENIZER, MeshConfig(), print)


def test_prepare_says_that_benchmarks_run_after_the_last_step_only():
    lines = []
    prepare(dataclasses.replace(TASKS, every=8), MODEL, TRAIN, TOKENIZER, MESH, lines.append)
    assert lines[0].startswith("benchmarks after the last step only (--evaluate.every")
    assert "8 steps" in lines[0] and "--train.num_steps is 6" in lines[0]
    prepare(TASKS, MODEL, TRAIN, TOKENIZER, MESH, lines.append)
    assert lines[1].startswith("benchmarks every 4 steps: toy")


def test_benchmarks_have_the_context_of_max_length():
    """Shorter: prompts are cut. Longer than the model's: they are not."""
    short = dataclasses.replace(MODEL, context_length=6)
    lines, scores = [], []
    params = jax.jit(init_params, static_argnums=0)(short, jax.random.key(0))
    for length in (None, 32):
        settings = dataclasses.replace(TASKS, max_length=length, every=2)
        found = prepare(settings, short, TRAIN, TOKENIZER, MESH, lines.append)
        scores.append(found(2, params, False))
    cut = [line for line in lines if "lost their beginning" in line]
    assert cut == ["warning: toy: 8 of 8 prompts lost their beginning"]
    assert any(
        line.startswith("context of the benchmarks: 32 tokens (trained at 6") for line in lines
    )
    model = harness.Model(short, params, TOKENIZER)
    assert scores[1]["eval/toy/score"] == scored(model, 32)
    assert scores[0]["eval/toy/score"] == scored(model, None)


def scored(model, max_length):
    with tempfile.TemporaryDirectory() as folder:
        found = run(
            model, ("toy",), data=(".",), output=folder, limit=8, max_length=max_length, log=str
        )
    return found["tasks"]["toy"]["score"]


def test_benchmarks_that_run_programs_are_refused_without_isolation(monkeypatch):
    def refuse(unsafe):
        raise SandboxError("nothing is isolated.", "sandbox", "use Linux.")

    generation = Generation((), 8, lambda text, example: None, sandboxed=True)
    task = dataclasses.replace(TOY, choices=None, generation=generation)
    monkeypatch.setitem(tasks.TASKS, "toy", task)
    monkeypatch.setattr(toolchains.programs, "python", refuse)
    with pytest.raises(SandboxError, match="nothing is isolated"):
        prepare(TASKS, MODEL, TRAIN, TOKENIZER, MESH, print)
