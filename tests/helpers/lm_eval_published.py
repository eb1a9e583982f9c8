"""lm-eval's own task files on our data: what it asks a model, and its verdicts on completions.

Nothing is downloaded: its tasks get their rows from our readers, in the columns of the hub's data
sets, and the metric that it would load from the hub is replaced by one that runs the same programs.
"""

import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qwen_jax.evaluate.task import Example

SEED = 1234  # lm-eval's default --seed of worked examples
LETTERS = "ABCD"


class Asked(NamedTuple):
    """What lm-eval asks about a row: a prompt, and its choices or settings of a completion."""

    prompt: str
    choices: tuple[str, ...]
    settings: Mapping[str, Any]
    gold: Any


def task(file: str, shots: int | None, **splits: Sequence[Mapping[str, Any]]):
    """Returns lm-eval's task of one of its YAML files, on rows of ours.

    Args:
      file: path under lm_eval/tasks.
      shots: worked examples, where the file does not say.
      splits: name of a split -> its rows.
    """
    import datasets
    import lm_eval
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    found = {name: datasets.Dataset.from_list(list(rows)) for name, rows in splits.items()}
    config = load_yaml(pathlib.Path(lm_eval.__file__).parent / "tasks" / file)
    config["custom_dataset"] = lambda **_: found
    built = ConfigurableTask(config=config)
    if built.config.num_fewshot is None:
        built.set_config("num_fewshot", shots)
    built.set_fewshot_seed(SEED)
    return built


def asked(built, limit: int | None = None) -> list[Asked]:
    """Returns what a task asks about each of its first rows."""
    built.build_all_requests(limit=limit)
    found: list[Asked] = []
    for one in built.instances:
        prompt, rest = one.args
        if one.idx:  # another choice of the same row
            assert prompt == found[-1].prompt
            found[-1] = found[-1]._replace(choices=(*found[-1].choices, rest))
            continue
        gold = built.doc_to_target(one.doc)
        choices, settings = ((rest,), {}) if isinstance(rest, str) else ((), rest)
        found.append(Asked(prompt, choices, settings, gold))
    return found


def verdicts(built, texts: Sequence[str]) -> list[dict[str, bool]]:
    """Returns filter and metric -> verdict on a completion of each of the first rows."""
    built.build_all_requests(limit=len(texts))
    for one, text in zip(built.instances, texts, strict=True):
        one.resps = [text]
    built.apply_filters()
    found = []
    for one in built.instances:
        by_metric = {}
        for name, filtered in one.filtered_resps.items():
            for metric, value in built.process_results(one.doc, [filtered]).items():
                by_metric[f"{name} {metric}"] = bool(value)
        found.append(by_metric)
    return found


class CodeEval:
    """Stands for the hub's metric code_eval, which is not installed: runs program and test."""

    def compute(self, *, references, predictions, k):
        passed = [
            subprocess.run(
                [sys.executable, "-c", f"{candidates[0]}\n{tests}"],
                capture_output=True,
                timeout=60,
                check=False,
            ).returncode
            == 0
            for tests, candidates in zip(references, predictions, strict=True)
        ]
        return {"pass@1": sum(passed) / len(passed)}, {}


# Rows as the hub's data sets have them.


def mmlu_row(one: Example) -> dict[str, Any]:
    return {
        "question": one.fields["question"],
        "choices": [one.fields[letter] for letter in LETTERS],
        "answer": LETTERS.index(one.answer),
    }


def letters_row(one: Example) -> dict[str, Any]:
    """C-Eval's and CMMLU's columns."""
    return {
        "question": one.fields["question"],
        "Question": one.fields["question"],
        **{letter: one.fields[letter] for letter in LETTERS},
        "answer": one.answer,
        "Answer": one.answer,
    }


def plain_row(*keys: str):
    """Returns a function that takes these columns of the distribution's row."""
    return lambda one: {key: one.fields[key] for key in keys}


def bbh_row(one: Example) -> dict[str, Any]:
    return {"input": one.fields["question"], "target": one.answer}
