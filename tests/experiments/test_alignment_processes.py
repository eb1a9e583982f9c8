"""SFT, DPO and the reward model give the same numbers on two processes (PPO: test_alignment)."""

import json
import random
import subprocess
import sys

import jax
import pytest

from qwen_jax.model.spec import init_params
from qwen_jax.pretrained.from_run import save_run
from tests.helpers.alignment import MODEL, records
from tests.helpers.tiny_checkpoint import ROOT, TOKENIZER, environment


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with an untrained model, conversations about sums and preference pairs."""
    folder = tmp_path_factory.mktemp("processes")
    params = jax.jit(init_params, static_argnums=0)(MODEL, jax.random.key(0))
    save_run(folder / "base", MODEL, params, tokenizer=TOKENIZER)
    rng, rows = random.Random(0), {"conversations": [], "pairs": []}
    for _ in range(60):
        a, b = rng.randrange(50), rng.randrange(5)
        prompt = [{"role": "user", "content": f"{a}+{b}"}]
        answer = {"role": "assistant", "content": str(a + b)}
        rows["conversations"].append({"messages": [*prompt, answer]})
        rows["pairs"].append({"messages": prompt, "chosen": str(a + b), "rejected": "no" * a})
    for name, found in rows.items():
        for suffix, part in (("", found[:49]), ("_held", found[49:])):  # the last batch is not full
            (folder / f"{name}{suffix}.jsonl").write_text(
                "".join(json.dumps(row) + "\n" for row in part)
            )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, data",
    [
        ("sft", "conversations=conversations"),
        ("dpo", "pairs=pairs"),
        ("reward_model", "pairs=pairs"),
    ],
)
def test_stage_on_two_processes_matches_one_process(folder, tmp_path, stage, data):
    """The same mesh of two devices, in one process and in two, gives bitwise the same numbers."""
    kind, name = data.split("=")
    for processes in (1, 2):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "launch.local",
                f"--processes={processes}",
                f"--devices={2 // processes}",
                "--max_restarts=0",
                "--heartbeat=300",
                "--",
                "-m",
                f"experiments.{stage}",
                "--recipe=smoke",
                f"--run_dir={tmp_path}/{processes}",
                f"--init_from={folder}/base",
                f"--data.{kind}={folder}/{name}.jsonl",
                f"--data.eval_{kind}={folder}/{name}_held.jsonl",
                "--train.num_steps=8",
                "--train.eval_every=4",
                "--train.save_every=8",
                "--train.log_every=1",
                "--optimizer.warmup_steps=2",
                "--model.unroll_layers=2",
            ],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=900,
            env=environment(),
        )
        assert done.returncode == 0, done.stdout[-3000:]
    one, two = records(tmp_path / "1"), records(tmp_path / "2")
    assert [record["step"] for record in one if "train/loss" in record] == list(range(1, 9))
    assert sum("train/loss" not in record for record in one) == 2  # held out
    assert two == one
    if stage == "reward_model":
        assert (tmp_path / "1/calibration.json").read_bytes() == (
            tmp_path / "2/calibration.json"
        ).read_bytes()
