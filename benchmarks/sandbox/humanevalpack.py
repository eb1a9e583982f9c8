"""Runs HumanEvalPack's canonical and buggy solutions: how many pass, and how many runs a second.

    python -m benchmarks.sandbox.humanevalpack --data=FOLDER [--languages=python,js] [--step=1]

Each solution goes through its task's stops, extraction and grading, in _THREADS threads. A language
without a toolchain is named. Writes benchmarks/results/humanevalpack.md.
"""

import concurrent.futures
import dataclasses
import datetime
import os
import pathlib
import platform
import time
from collections.abc import Sequence

from qwen_jax import sandbox
from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.evaluate.data_files import DataFolders
from qwen_jax.evaluate.task import Example, Task, Verdict
from qwen_jax.evaluate.tasks import TASKS
from qwen_jax.evaluate.tasks.code import toolchains
from qwen_jax.evaluate.tasks.code.pack import LANGUAGES
from qwen_jax.grading.code import cut_completion

RESULTS = pathlib.Path(__file__).resolve().parents[1] / "results" / "humanevalpack.md"
_THREADS = 2


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the measurement."""

    data: tuple[str, ...] = option((), "folders with humanevalpack_LANGUAGE.jsonl")
    languages: tuple[str, ...] = option(tuple(LANGUAGES), "languages")
    step: int = option(1, "every how many problems one is run")
    output: str = option(str(RESULTS), "path of the results")


def verdicts(task: Task, examples: Sequence[Example], texts: Sequence[str]) -> list[Verdict]:
    """Grades one completion of each example."""
    assert task.generation is not None
    settings = task.generation
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        kept = [cut_completion(text, settings.stops) for text in texts]
        return list(pool.map(settings.verdict, kept, examples))


def measure(language: str, data: DataFolders, step: int) -> str:
    """Returns the row of a language."""
    task = TASKS[f"humanevalpack_{language}"]
    if (reason := toolchains.not_run([task]).get(task.key)) is not None:
        return f"| {language} | not run: {reason} | | | | |"
    examples = task.read(data).examples[::step]
    buggy = [one.fields["buggy_solution"] for one in examples]
    verdicts(task, examples[:1], [examples[0].answer])  # starts the zygote
    began = time.perf_counter()
    right = verdicts(task, examples, [one.answer for one in examples])
    middle = time.perf_counter()
    wrong = verdicts(task, examples, buggy)
    seconds = time.perf_counter() - began
    failed = [
        f"{one.fields['task_id']}: {found.rule}"
        for one, found in zip(examples, right, strict=True)
        if not found.correct
    ]
    passed = [
        one.fields["task_id"] for one, found in zip(examples, wrong, strict=True) if found.correct
    ]
    n, load = len(examples), os.getloadavg()[0]
    exceptions = "; ".join([*failed, *(f"{name} passes" for name in passed)])
    row = (
        f"| {language} | {sum(one.correct for one in right)} of {n} "
        f"| {sum(not one.correct for one in wrong)} of {n} | {n / (middle - began):.2f} "
        f"| {2 * n / seconds:.2f} | {load:.1f} | {exceptions} |"
    )
    print(row, flush=True)
    return row


def main(config: Config) -> None:
    data = DataFolders(config.data)
    rows = [measure(language, data, config.step) for language in config.languages]
    command = f"--languages={','.join(config.languages)} --step={config.step}"
    text = "\n".join(
        [
            f"`python -m benchmarks.sandbox.humanevalpack {command}`, "
            f"{datetime.date.today().isoformat()}, Linux {platform.release()}, "
            f"{os.cpu_count()} CPUs, Python {platform.python_version()}, {_THREADS} threads.",
            "",
            f"Layers: {sandbox.layers()}.",
            "",
            "| language | canonical pass | buggy fail | canonical runs/s | all runs/s | load "
            "| exceptions |",
            "|---|---|---|---|---|---|---|",
            *rows,
        ]
    )
    print(text)
    pathlib.Path(config.output).write_text(f"# HumanEvalPack's own solutions\n\n{text}\n")


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
