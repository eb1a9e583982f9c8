"""Makes a toy model and training rows for the agent benchmarks: what does SFT do to it?

    python -m experiments.generate_agent_data --output=data/agents
    python -m benchmarks.agents.toy --data=data/agents --output=runs/toy
    python -m experiments.sft --recipe=smoke --init_from=runs/toy/base --run_dir=runs/toy/sft \\
        --data.conversations=runs/toy/train.jsonl,data/agents/tool_use_train.jsonl \\
        --data.context_length=640 --train.num_steps=2000
    python -m experiments.evaluate --checkpoint=runs/toy/sft --tasks=agents --data=data/agents ...

and the last command again with --checkpoint=runs/toy/base. Tools, values and phrasings of tool use
are held out (experiments.generate_agent_data). Those of the interpreter and of the Hugging Face
agent are not: their rows are other items of the same generators, without the benchmark's questions.
"""

import argparse
import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import jax

from qwen_jax import sizes
from qwen_jax.agent.calls import shorten, without_labels
from qwen_jax.agent.interpreter import Interpreter
from qwen_jax.evaluate.data_files import DataFolders
from qwen_jax.evaluate.task import Example, Task
from qwen_jax.evaluate.tasks import TASKS
from qwen_jax.evaluate.tasks.agents import hf_agent, interpreter
from qwen_jax.model.spec import count, init_params
from qwen_jax.pretrained.huggingface import save_pretrained
from qwen_jax.synthetic.tool_use import hf_tasks, interpreter_tasks
from qwen_jax.tokenizer import extend
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.utils.jsonl import read_rows, write_rows

VOCABULARY = 2048
MODEL = dataclasses.replace(
    sizes.by_name("0.6m"), vocab_size=VOCABULARY + 208, context_length=1280, hidden_size=128,
    num_heads=4, ffn_size=352,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", required=True, help="folder of experiments.generate_agent_data")
    parser.add_argument("--output", required=True, help="folder for rows and model")
    parser.add_argument("--seed", type=int, default=1000, help="of the rows; 0 is the benchmark's")
    parser.add_argument("--math", type=int, default=240)
    parser.add_argument("--charts", type=int, default=60)
    parser.add_argument("--general", type=int, default=120)
    parser.add_argument("--hf", type=int, default=800)
    flags = parser.parse_args()
    folder = pathlib.Path(flags.output)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [*_interpreter_rows(flags), *_hf_rows(flags)]
    write_rows(folder / "train.jsonl", rows)
    rows += [row for _, row in read_rows(pathlib.Path(flags.data) / "tool_use_train.jsonl")]
    texts = ["\n".join(message["content"] for message in row["messages"]) for row in rows]
    tokenizer = Tokenizer(extend.train(texts, vocab_size=VOCABULARY))
    lengths = sorted(len(tokenizer.encode(text)) for text in texts[:: len(texts) // 300])
    params = jax.jit(init_params, static_argnums=0)(MODEL, jax.random.key(0))
    save_pretrained(folder / "base", MODEL, params, layout="qwen2", tokenizer=tokenizer)
    print(f"{len(rows):,} rows; tokens of a row: median {lengths[len(lengths) // 2]:,}, ", end="")
    print(f"90 % {lengths[len(lengths) * 9 // 10]:,}; {count(MODEL):,} parameters")


def _interpreter_rows(flags: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields right transcripts with what the programs return."""
    items = interpreter_tasks.items(
        math=flags.math,
        hard=flags.charts // 2,
        easy=flags.charts // 2,
        general=flags.general,
        seed=flags.seed,
    )
    categories = ("math", "visualization", "general")
    tasks = {name: TASKS[f"code_interpreter_{name}"] for name in categories}
    known = _questions(flags.data, tuple(tasks.values()))
    # One session for all programs, which are ours: each would else import matplotlib again.
    with contextlib.closing(Interpreter(cell_seconds=120)) as session:
        for index, item in enumerate(items):
            if item["question"] in known:
                continue
            for name, content in item["files"].items():
                (session.folder / name).write_text(content, "utf-8")
            gold = item["gold"]
            answer = str(gold.get("number", gold.get("text", gold.get("file", "a chart"))))
            example = Example(index, item, answer, item["language"])
            call, mark, rest = interpreter.gold(example).partition("\nObservation: ...")
            shown = shorten(session.run(item["program"]).text, interpreter.MAX_OBSERVATION)[0]
            transcript = f"{call}{mark.removesuffix('...')}{without_labels(shown)}{rest}"
            yield _row(tasks[item["category"]].prompt(example, ()), transcript)


def _hf_rows(flags: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields right programs in run mode, and first steps in chat mode."""
    tasks = {mode: TASKS[f"hf_agent_{mode}"] for mode in ("run", "chat")}
    known = _questions(flags.data, tuple(tasks.values()))
    for index, item in enumerate(
        hf_tasks.items(run=flags.hf, chats=flags.hf // 4, seed=flags.seed)
    ):
        question = "\n".join(item["tasks"])
        if question in known or len(item["tasks"]) > 1:
            continue
        example = Example(index, item | {"question": question}, item["programs"][-1], "")
        yield _row(tasks[item["mode"]].prompt(example, ()), hf_agent.gold(example))


def _questions(data: str, tasks: tuple[Task, ...]) -> set[str]:
    found = set()
    for task in tasks:
        found |= {one.fields["question"] for one in task.read(DataFolders([data])).examples}
    return found


def _row(prompt: str, completion: str) -> dict[str, Any]:
    turns = (("user", prompt), ("assistant", completion))
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


if __name__ == "__main__":
    main()
