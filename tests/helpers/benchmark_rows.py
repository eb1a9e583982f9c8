"""Files of benchmarks with rows of ours, and what every reader does with them."""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from qwen_jax.errors import DataError
from qwen_jax.evaluate import likelihood
from qwen_jax.evaluate.data_files import DataFolders
from qwen_jax.evaluate.prompts import questions
from qwen_jax.evaluate.summary import ceiling
from qwen_jax.evaluate.task import Item, Task


def write(path: pathlib.Path, rows: Sequence[Any]) -> None:
    """Writes a JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def read(task: Task, folder: pathlib.Path) -> questions.Work:
    return questions.read(task, DataFolders([folder]), None)


def assert_gold_is_right(task: Task, work: questions.Work) -> None:
    """Right completions, or the likelihood of a model that knows, have to score 100 %."""
    assert work.examples
    if task.choices is None:
        assert ceiling(task, work.examples) == 100
        return
    for example in work.examples:
        choices = task.choices(example)
        sizes = [len(one.strip().encode()) if task.per_byte else 1 for one in choices]
        right = list(task.letters).index(example.answer)
        logprobs = [[-size * (1.0 if i == right else 1.1)] for i, size in enumerate(sizes)]
        item = Item(example, work.prompt(example), 0)
        found = likelihood.compared(
            item, choices, logprobs, task, prompt_tokens=None, separate=False
        )
        assert found["correct"] and not found["ties"], example


def assert_refused(
    task: Task,
    folder: pathlib.Path,
    file: str,
    number: int,
    change: Callable[[dict], object],
    what: str,
) -> None:
    """A changed row (from 1) has to be refused, and the error has to name it and say `what`."""
    path = folder / file
    before = path.read_text(encoding="utf-8")
    rows = [json.loads(line) for line in before.splitlines()]
    change(rows[number - 1])
    write(path, rows)
    with pytest.raises(DataError, match=f"(?s){what}.*{path.name} row {number}\n"):
        read(task, folder)
    path.write_text(before, encoding="utf-8")
    read(task, folder)
