"""The runs that kills.py disturbs: a tiny one of each stage, and what its result is.

A stage has the command of its run, how far the run has come (from its files), from where another
start went on, and the result whose bits must not depend on kills.
"""

import dataclasses
import pathlib
import random
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from qwen_jax import sizes
from qwen_jax.checkpoint import arrays, description, step_folders
from qwen_jax.data import shards
from qwen_jax.data.document import Document
from qwen_jax.model.spec import init_params
from qwen_jax.pretrained.from_run import save_run
from qwen_jax.pretrained.huggingface import save_pretrained
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.utils.jsonl import read_rows, write_rows

TOKENIZER = Tokenizer({bytes([byte]): byte for byte in range(256)})
MODEL = dataclasses.replace(sizes.TINY, vocab_size=TOKENIZER.vocab_size, context_length=96)
STEPS, SAVE_EVERY = 60, 4
_TIMES = ("perf/", "time", "host/")  # metrics that differ between two equal runs


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
      name: its module in experiments/.
      flags: of its command; {inputs} and {run} are the folders of its inputs and of its run.
      progress: run folder -> how much of the work its files hold; grows up to the end.
      done: run folder -> what another start must not do again: the newest complete checkpoint, the
        number of finished lines; None: nothing.
      resumed: (run folder, output of the start) -> what that start did not do again.
      result: run folder -> {name: content} of everything that must be equal, bit for bit.
      unfinished: pattern of what is in its folder only while it writes.
    """

    name: str
    flags: tuple[str, ...]
    progress: Callable[[pathlib.Path], int]
    done: Callable[[pathlib.Path], int | None]
    resumed: Callable[[pathlib.Path, str], int | None]
    result: Callable[[pathlib.Path], dict[str, Any]]
    unfinished: str = "**/*.writing"


def write_inputs(folder: pathlib.Path) -> None:
    """Writes an untrained model, a chat model that never stops, conversations, pairs and text."""
    params = jax.jit(init_params, static_argnums=0)(MODEL, jax.random.key(0))
    save_run(folder / "base", MODEL, params, tokenizer=TOKENIZER)
    longer = dataclasses.replace(MODEL, context_length=1024)
    letters = slice(ord("a"), ord("z") + 1)
    # Only letters, never a stop token: all other logits are 0.
    head = jax.numpy.zeros_like(params.head).at[:, letters].set(params.head[:, letters] * 50)
    save_pretrained(folder / "chat", longer, params.replace(head=head), tokenizer=TOKENIZER)
    rng = random.Random(0)
    sums = [(rng.randrange(5), rng.randrange(5)) for _ in range(64)]
    asked = [[{"role": "user", "content": f"{a}+{b}"}] for a, b in sums]
    said = [{"role": "assistant", "content": str(a + b)} for a, b in sums]
    chats = [{"messages": [*turns, answer]} for turns, answer in zip(asked, said, strict=True)]
    write_rows(folder / "chats.jsonl", chats)
    pairs = [
        {"messages": turns, "chosen": answer["content"], "rejected": "no"}
        for turns, answer in zip(asked, said, strict=True)
    ]
    write_rows(folder / "pairs.jsonl", pairs)
    prompts = [{"prompt": f"number {i}", "max_new_tokens": 20 + i % 40} for i in range(200)]
    write_rows(folder / "prompts.jsonl", prompts)
    seeds = [
        {"instruction": f"Explain in a few words what a {word} does.", "output": f"It is a {word}."}
        for word in ("baker", "fox", "river", "judge", "cloud", "nurse", "clock")
    ]
    write_rows(folder / "seeds.jsonl", seeds)
    words = "the river rose slowly over many quiet fields and nobody in town saw it".split()
    texts = [" ".join(rng.choices(words, k=150)) for _ in range(300)]
    write_rows(folder / "raw.jsonl", [{"text": text} for text in texts])
    shards.write(
        [Document(str(i), text) for i, text in enumerate(texts)], folder / "text", TOKENIZER
    )
    TOKENIZER.save(folder / "bytes.tiktoken")


def _lines(path: pathlib.Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def checkpoints(run: pathlib.Path) -> list[int]:
    """Returns the steps whose checkpoints are complete."""
    return step_folders.numbered(run / "checkpoints") if (run / "checkpoints").exists() else []


def _last_attempt(run: pathlib.Path, _: str) -> int | None:
    events = [row for _, row in read_rows(run / "events.jsonl", bad=[])]
    begun = [row["step"] for row in events if row["event"] in ("start", "resume")]
    return begun[-1] if begun else None


def _trained(run: pathlib.Path) -> dict[str, Any]:
    """Returns the metrics without times, and every array of the last checkpoint.

    Older checkpoints differ: a run that SIGTERM stops saves one more.
    """
    metrics = [
        {name: value for name, value in row.items() if not name.startswith(_TIMES)}
        for _, row in read_rows(run / "metrics.jsonl")
    ]
    step = max(checkpoints(run))
    last = run / "checkpoints" / str(step)
    record = description.read(last)
    names = [name for name in record["leaves"] if name not in record["scalars"]]
    stored = arrays.open_stored(last, names)
    contents = {name: np.asarray(store.read().result()).tobytes() for name, store in stored.items()}
    return {"metrics": metrics, "last": step, "scalars": record["scalars"], **contents}


def _training(name: str, *flags: str, steps: int = STEPS, save_every: int = SAVE_EVERY) -> Stage:
    common = (
        "--recipe=smoke",
        "--run_dir={run}",
        f"--train.num_steps={steps}",
        f"--train.save_every={save_every}",
        "--train.log_every=1",
    )
    return Stage(
        name,
        common + flags,
        progress=lambda run: _lines(run / "metrics.jsonl"),
        done=lambda run: max(checkpoints(run), default=0),
        resumed=_last_attempt,
        result=_trained,
        unfinished="checkpoints/*.saving",
    )


def _files(run: pathlib.Path, *without: str) -> dict[str, Any]:
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.name not in without and path.suffix != ".writing"
    }


def _self_instruct(run: pathlib.Path) -> dict[str, Any]:
    """Responses are appended in the order in which they end, which depends on what is left."""
    cached = sorted((run / "responses.jsonl").read_bytes().splitlines())
    return _files(run, "responses.jsonl") | {"responses.jsonl": cached}


def _count(pattern: str) -> Callable[[pathlib.Path, str], int | None]:
    def find(_: pathlib.Path, output: str) -> int | None:
        found = re.search(pattern, output)
        return int(found[1]) if found else None

    return find


_BASE = ("--init_from={inputs}/base",)
_REWARDED = (
    *_BASE,
    "--data.prompts={inputs}/chats.jsonl",
    "--reward_functions=qwen_jax.align.rewards:arithmetic",
)
STAGES = {
    stage.name: stage
    for stage in (
        _training(
            "pretrain",
            "--data.sources={inputs}/text/train",
            "--model.hidden_size=32",
            "--model.dropout=0.1",
            "--train.eval_every=20",
        ),
        _training("sft", *_BASE, "--data.conversations={inputs}/chats.jsonl"),
        _training("reward_model", *_BASE, "--data.pairs={inputs}/pairs.jsonl"),
        _training("dpo", *_BASE, "--data.pairs={inputs}/pairs.jsonl"),
        _training("ppo", *_REWARDED, "--data.pretrain.sources={inputs}/text/train", steps=24),
        _training("grpo", *_REWARDED, steps=24),
        Stage(
            "prepare_data",
            (
                "--recipe=unfiltered",
                "--sources={inputs}/raw.jsonl",
                "--tokenizer={inputs}/bytes.tiktoken",
                "--output={run}",
                "--partition_mb=0.02",
                "--exact_dedup=document,paragraph",
                "--eval_fraction=0.1",
                "--shard_tokens=8000",
                "--workers=0",
            ),
            progress=lambda run: sum(1 for path in run.rglob("*.*") if path.is_file()),
            done=lambda run: None,
            resumed=lambda run, output: None,
            result=lambda run: _files(run, "pipeline.json", "pipeline.lock"),
        ),
        Stage(
            "generate",
            (
                "--checkpoint={inputs}/chat",
                "--input={inputs}/prompts.jsonl",
                "--output={run}/out.jsonl",
                "--context=128",
            ),
            progress=lambda run: _lines(run / "out.jsonl.partial") + _lines(run / "out.jsonl"),
            done=lambda run: (
                None if (run / "out.jsonl").exists() else _lines(run / "out.jsonl.partial")
            ),
            unfinished="*.partial",
            resumed=_count(r"(\d+) already done"),
            result=_files,
        ),
        Stage(
            "self_instruct",
            (
                "--recipe=smoke",
                "--checkpoint={inputs}/chat",
                "--seeds={inputs}/seeds.jsonl",
                "--output={run}",
                "--settings.rounds=8",
                "--settings.question_lists=0",
                "--settings.instruction_lists=3",
            ),
            progress=lambda run: _lines(run / "responses.jsonl"),
            unfinished="responses.jsonl",
            done=lambda run: None,
            resumed=lambda run, output: None,
            result=_self_instruct,
        ),
        Stage(
            "long_context",
            (
                "--recipe=smoke",
                "--model={inputs}/base",
                "--data={inputs}/text/train",
                "--tokens=2000",
                "--multiples=1,2",
                "--output={run}",
            ),
            progress=lambda run: len(_files(run)),
            unfinished="long_context.json",
            done=lambda run: None,
            resumed=lambda run, output: None,
            result=_files,
        ),
    )
}
