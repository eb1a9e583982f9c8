"""experiments.quickstart on a small scale: its output, and that it resumes after kills.

The quick tests run all of it, except the steps of the stages after pretraining: compiling them
takes most of its time, and test_alignment.py runs each of these stages.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from qwen_jax.data import shards
from qwen_jax.pretrained.huggingface import load_pretrained

ROOT = pathlib.Path(__file__).resolve().parents[2]
ONE_DEVICE = {**os.environ, "XLA_FLAGS": ""}  # a batch of 4 does not divide by the suite's 8


# With a third of the standard library: its other pages take longer than the training.
PROGRAM = """
import sys
from experiments import quickstart
from qwen_jax.cli import flags
from qwen_jax.corpus.sources import python_docs
python_docs._LEFT_OUT |= {n for n in sys.stdlib_module_names if not "e" <= n.strip("_") < "m"}
flags.run(quickstart.main, quickstart.__doc__, {"smoke": quickstart.SMOKE}, sys.argv)
"""
# Each stage after pretraining saves the state that it starts with as its last one.
UNTRAINED = """
from qwen_jax.train import run
compile_step, fit = run._compile, run._fit_past_spikes

def compile_pretraining(attempt, available):
    pretrains = attempt.job.training_stage == "pretrain"
    return compile_step(attempt, available) if pretrains else (None, 1.0)

def fit_pretraining(attempt, start, compiled, checkpoints, reporter):
    if compiled is not None:
        return fit(attempt, start, compiled, checkpoints, reporter)
    reporter.metrics.write(1, {"train/loss": 0.0})  # the page shows a stage with metrics
    run._save(attempt, checkpoints, attempt.config.train.num_steps, start.state, 0, ())
    return start.state

run._compile, run._fit_past_spikes = compile_pretraining, fit_pretraining
"""


def command(run_dir, program=PROGRAM):
    return [
        sys.executable,
        "-c",
        program,
        "--recipe=smoke",
        f"--run_dir={run_dir}",
        "--model.hidden_size=16",
        "--model.ffn_size=32",
        "--model.num_layers=1",
        "--align.sft=4",
        "--align.pmp=1",
        "--align.reward=1",
    ]


def finish(folder, program):
    done = subprocess.run(
        command(folder, program), cwd=ROOT, env=ONE_DEVICE, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return finish(tmp_path_factory.mktemp("full"), UNTRAINED + PROGRAM)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return finish(tmp_path_factory.mktemp("trained"), PROGRAM)


def check_output(folder, output):
    page = (folder / "report.html").read_text(encoding="utf-8")
    for part in ("perplexity", "compression", "samples", "data:image/png"):
        assert part in page.lower()
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["model"]["perplexity"] > 1 and evaluation["ngram"]["perplexity"] > 1
    config, params = load_pretrained(folder)
    for layout in ("qwen", "qwen2"):
        exported, weights = load_pretrained(folder / "export" / layout)
        np.testing.assert_array_equal(np.asarray(weights.embed), np.asarray(params.embed))
        assert exported.num_layers == config.num_layers
    assert "10/10" in output and "correct sums before and after PPO" in output
    answers = json.loads((folder / "answers.json").read_text())
    assert all({"question", "after SFT", "after PPO"} == row.keys() for row in answers)
    assert all(part in page for part in ("report 3.2.1", "report 3.2.2", "after PPO"))
    assert load_pretrained(folder / "ppo")[0].num_layers == config.num_layers


def test_quickstart_writes_all_of_its_output(finished):
    check_output(*finished)


@pytest.mark.slow  # compiles and trains the stages after pretraining
def test_quickstart_with_trained_stages_writes_all_of_its_output(trained):
    check_output(*trained)


def test_quickstart_puts_page_and_source_of_a_package_in_one_split(finished):
    folder, _ = finished
    rows = [
        row
        for path in sorted((folder / "text/04-personal/kept").iterdir())
        for row in pq.read_table(path).to_pylist()
    ]
    assert {row["group"] for row in rows if row["path"] == "pydoc:json"} == {"json"}
    assert "json" in {row["group"] for row in rows if row["path"].startswith("stdlib:json/")}
    opened = shards.open_shards(folder / "shards/docs/eval")
    assert 0 < opened.tokens < 0.2 * shards.open_shards(folder / "shards/docs/train").tokens
    assert len({row["text"] for row in rows}) == len(rows)  # exact_document removes duplicates


def test_quickstart_pretrains_on_the_shards_of_the_corpus_pipeline(finished):
    folder, _ = finished
    config = json.loads((folder / "config.json").read_text())
    for name in ("docs", "code"):
        assert any(
            f"{folder}/shards/{name}/train" in source for source in config["data"]["sources"]
        )
    kept = json.loads((folder / "text/counts.json").read_text())["04-personal"]["kept"]
    written = json.loads((folder / "shards/sources.json").read_text())
    assert sum(each["documents"] for each in written.values()) == kept["documents"] > 110  # of 207


@pytest.mark.slow
def test_quickstart_killed_in_every_stage_writes_the_same_files(trained, tmp_path):
    folder, _ = trained
    marks = [
        "1/10",
        "2/10",
        "3/10",
        "4/10",
        "step 20",
        "5/10",
        "6/10",
        "7/10",
        "8/10",
        "     fine-tuning",
        "     preference",
        "     the reward model",
        "     PPO",
        "step 2/4",
        "9/10",
    ]
    for mark in marks:
        process = subprocess.Popen(
            command(tmp_path),
            cwd=ROOT,
            env=ONE_DEVICE,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for line in process.stdout:
            if line.startswith(mark):
                break
        process.kill()
        process.wait()
    done = subprocess.run(
        command(tmp_path), cwd=ROOT, env=ONE_DEVICE, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in (
        "tokenizer.tiktoken",
        "evaluation.json",
        "samples.json",
        "answers.json",
        "export/qwen2/model.safetensors",
    ):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name
