"""Scores of the agent benchmarks without a model: right completions, and those of other items.

    python -m benchmarks.agents.oracles --data=data/agents,FOLDER_OF_BFCL --output=oracles.json

An oracle writes the gold completion, and shows that items can be solved and that graders accept
what is right. A shuffled oracle writes the gold completion of another item of the same file, also
of another task; it shows what a fluent model that does not read the question scores.
"""

import argparse
import pathlib
import random
import time
from collections.abc import Callable, Iterator, Sequence

from qwen_jax.evaluate.data_files import DataFolders
from qwen_jax.evaluate.prompts.questions import read
from qwen_jax.evaluate.summary import summarize
from qwen_jax.evaluate.task import Example, Task, Verdict
from qwen_jax.evaluate.tasks import select
from qwen_jax.grading.code import cut_completion
from qwen_jax.utils.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", required=True, help="folders, separated by commas")
    parser.add_argument("--tasks", default="agents", help="tasks or suites")
    parser.add_argument("--limit", type=int, default=None, help="examples of a task")
    parser.add_argument("--output", default="oracles.json")
    arguments = parser.parse_args()
    data, found = DataFolders(arguments.data.split(",")), {}
    chosen = [
        (task, read(task, data, arguments.limit).examples)
        for task in select(tuple(arguments.tasks.split(",")))
    ]
    pools: dict[tuple[str, ...], list[str]] = {}
    for task, examples in chosen:
        pools.setdefault(task.files, []).extend(map(_gold(task), examples))
    for task, examples in chosen:
        begin = time.monotonic()
        writers = _writers(task, examples, pools[task.files])
        found[task.key] = {name: _scored(task, examples, texts) for name, texts in writers}
        for name, record in found[task.key].items():
            low, high = record["interval"]
            others = {key: value for key, value in record.items() if key.startswith("score_")}
            extra = "".join(f", {key[6:]} {value:.1f}" for key, value in others.items())
            print(f"{task.key} {name}: {record['score']:.1f} [{low:.1f}, {high:.1f}]{extra}")
        print(f"{task.key}: {len(examples)} examples, {time.monotonic() - begin:.0f} s", flush=True)
    write_json(pathlib.Path(arguments.output), found)


def _gold(task: Task) -> Callable[[Example], str]:
    assert task.generation is not None and task.generation.gold is not None
    gold, stops = task.generation.gold, task.generation.stops
    return gold if task.generation.follow else lambda one: cut_completion(gold(one), stops)


def _writers(
    task: Task, examples: Sequence[Example], pool: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
    """Yields names and completions of each writer."""
    assert task.generation is not None
    gold = list(map(_gold(task), examples))
    yield "oracle", gold
    rng = random.Random(task.key)
    if len(set(pool)) > 1:  # all items of bfcl_irrelevance have the same gold completion
        others = [rng.choice([text for text in pool if text != own]) for own in gold]
        yield "shuffled oracle", others
    for name, write in task.generation.floors.items():
        yield name, [write(one) for one in examples]


def _scored(task: Task, examples: Sequence[Example], texts: Sequence[str]) -> dict:
    assert task.generation is not None
    rows = []
    for one, text in zip(examples, texts, strict=True):
        verdict: Verdict = task.generation.verdict(text, one)
        also = {f"correct_{name}": value for name, value in verdict.also.items()}
        rows.append(
            {**one.identity, "correct": verdict.correct, "extracted": verdict.extracted, **also}
            | {"rule": verdict.rule, "truncated": 0, "completion": text, "finish": "stop"}
            | {"completion_tokens": None}
        )
    record = summarize(task, rows)
    keys = ("n", "score", "interval", "groups", "rules")
    return {key: value for key, value in record.items() if key in keys or key.startswith("score_")}


if __name__ == "__main__":
    main()
