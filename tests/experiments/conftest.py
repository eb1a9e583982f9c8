"""A model that knows nothing and its data, and runs that share what they compile."""

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
def compiled_once(tmp_path_factory):
    """What one run compiles, the run that goes on from it finds."""
    before = {
        name: getattr(jax.config, name)
        for name in (
            "jax_compilation_cache_dir",
            "jax_persistent_cache_min_compile_time_secs",
            "jax_persistent_cache_min_entry_size_bytes",
        )
    }
    for name, value in zip(
        before, (str(tmp_path_factory.mktemp("compiled")), 0.0, -1), strict=True
    ):
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that knows nothing, sums with their answers, comparisons of answers, text."""
    folder = tmp_path_factory.mktemp("stages")
    params = jax.jit(init_params, static_argnums=0)(MODEL, jax.random.key(0))
    save_run(folder / "base", MODEL, params, tokenizer=TOKENIZER)
    draw = random.Random(0)
    sums = [(draw.randrange(5), draw.randrange(5)) for _ in range(80)]
    talks = [
        [
            {"role": "system", "content": "Add."},
            {"role": "user", "content": f"{a}+{b}"},
            {"role": "assistant", "content": str(a + b)},
        ]
        for a, b in sums
    ]
    for name, rows in (
        ("talks", [{"messages": talk} for talk in talks]),
        (
            "pairs",
            [
                {"messages": talk[:2], "chosen": talk[2]["content"], "rejected": "no"}
                for talk in talks
            ],
        ),
    ):
        for part, chosen in (("", rows[:64]), ("_held", rows[64:])):
            (folder / f"{name}{part}.jsonl").write_text(
                "".join(json.dumps(row) + "\n" for row in chosen)
            )
    shards.write(
        [Document(str(i), "one and two are three " * 20) for i in range(60)],
        folder / "text",
        TOKENIZER,
    )
    return folder


@pytest.fixture(scope="module")
def run_ppo(folder, tmp_path_factory):
    """A process of the smoke on one device; until: SIGTERM when a line begins so; kill_after:
    (steps, seconds), SIGKILL so long after so many lines of steps."""
    env = environment(tmp_path_factory.mktemp("compiled"))

    def run(run_dir, *flags, until=None, kill_after=None) -> str:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "experiments.ppo",
                "--recipe=smoke",
                f"--run_dir={run_dir}",
                f"--init_from={folder}/base",
                f"--data.prompts={folder}/talks.jsonl",
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
