"""Fixtures: an untrained model with its data, and runs that share a compilation cache."""

import json
import random
import signal
import subprocess
import sys
import time

import jax
import pytest

from qwen_jax.data import shards
from qwen_jax.data.document import Document
from qwen_jax.model.spec import init_params
from qwen_jax.pretrained.from_run import save_run
from tests.helpers.alignment import MODEL
from tests.helpers.tiny_checkpoint import ROOT, TOKENIZER, environment


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with an untrained model, conversations and preference pairs about sums, and text."""
    folder = tmp_path_factory.mktemp("stages")
    params = jax.jit(init_params, static_argnums=0)(MODEL, jax.random.key(0))
    save_run(folder / "base", MODEL, params, tokenizer=TOKENIZER)
    rng = random.Random(0)
    sums = [(rng.randrange(5), rng.randrange(5)) for _ in range(80)]
    conversations = [
        [
            {"role": "system", "content": "Add."},
            {"role": "user", "content": f"{a}+{b}"},
            {"role": "assistant", "content": str(a + b)},
        ]
        for a, b in sums
    ]
    for name, rows in (
        ("conversations", [{"messages": messages} for messages in conversations]),
        (
            "pairs",
            [
                {"messages": messages[:2], "chosen": messages[2]["content"], "rejected": "no"}
                for messages in conversations
            ],
        ),
    ):
        for suffix, part in (("", rows[:64]), ("_held", rows[64:])):
            (folder / f"{name}{suffix}.jsonl").write_text(
                "".join(json.dumps(row) + "\n" for row in part)
            )
    shards.write(
        [Document(str(i), "one and two are three " * 20) for i in range(60)],
        folder / "text",
        TOKENIZER,
    )
    return folder


@pytest.fixture(scope="module")
def run_ppo(folder, tmp_path_factory):
    """Runs the smoke recipe of PPO in a process with one device and returns its output.

    until: sends SIGTERM at the first line that starts with it.
    kill_after: (steps, seconds); sends SIGKILL that many seconds after that many steps.
    """
    env = environment()

    def run(run_dir, *flags, until=None, kill_after=None) -> str:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "experiments.ppo",
                "--recipe=smoke",
                f"--run_dir={run_dir}",
                f"--init_from={folder}/base",
                f"--data.prompts={folder}/conversations.jsonl",
                "--reward_functions=qwen_jax.align.rewards:arithmetic",
                *flags,
            ],
            cwd=ROOT,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        lines = []
        for line in process.stdout:
            lines.append(line)
            if until and line.startswith(until):
                process.send_signal(signal.SIGTERM)
            if kill_after and sum(line.startswith("step ") for line in lines) == kill_after[0]:
                time.sleep(kill_after[1])
                process.kill()
                process.wait()
                return "".join(lines)
        assert process.wait() == 0, "".join(lines)[-3000:]
        return "".join(lines)

    return run
