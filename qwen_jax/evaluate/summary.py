"""From samples to a task's score, with its standard error and its parts."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from qwen_jax.errors import ConfigError
from qwen_jax.evaluate.samples.repeated import by_question, ks, pass_key
from qwen_jax.evaluate.task import Example, Mean, Task
from qwen_jax.grading import repetition, statistics
from qwen_jax.grading.code import cut_completion

_FEW = 5  # examples of a subject
_Z = 1.959964  # of a 95 % interval
_NAMED = 20  # examples


Has = Callable[[Sequence[Example]], Sequence[bool]]  # of each example, in order


class Decontamination(NamedTuple):
    """The index of test sets that training text was filtered with. Report: 2.1, 3.1.

    Attributes:
      path: the index, for the results.
      has: whether the index has a text of each example, in order.
    """

    path: str
    has: Has

    def record(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Returns how many examples the index has, and the first that it lacks."""
        lacking = [
            one.id for one, found in zip(examples, self.has(examples), strict=True) if not found
        ]
        return {
            "index": self.path,
            "in_index": len(examples) - len(lacking),
            "not_in_index": len(lacking),
            "first_not_in_index": lacking[:_NAMED],
        }


class TrainingText(NamedTuple):
    """Token shards that a model was trained on, to be searched for the examples. Report: 2.1.

    Attributes:
      folders: of the shards, for the results.
      search: reads the shards once, for all examples; returns `has`.
      has: whether the shards have text of each example, in order; None: not searched yet.
    """

    folders: tuple[str, ...]
    search: Callable[[Sequence[Example], Sequence[str]], Has]
    has: Has | None = None

    def searched(self, examples: Sequence[Example], log: Callable[[str], None]) -> "TrainingText":
        """Returns it with the answer for these examples, which takes minutes for a gigabyte."""
        if self.has is not None:
            return self
        log(f"searching the training text for {len(examples):,} examples ...")
        return self._replace(has=self.search(examples, self.folders))

    def record(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Returns how many examples the text has, and the first of them."""
        assert self.has is not None
        has = [one.id for one, found in zip(examples, self.has(examples), strict=True) if found]
        return {"folders": list(self.folders), "examples": len(has), "first": has[:_NAMED]}


def summarize(task: Task, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns a task's record in results.json; scores are in percent.

    Args:
      samples: those that were scored, at least one. Several of one question count as one example:
        the score is the mean share of right ones, pass@1, and "pass@k" has others.
    """
    by_subject: dict[str, list[Mapping[str, Any]]] = {}
    questions = by_question(samples)
    for one in questions:
        by_subject.setdefault(one["subject"], []).append(one)
    answered = [one for one in samples if "error" not in one]
    record = {
        "protocol": task.protocol,
        "source": task.source,
        "checked": task.checked,
        "shots": task.num_shots,
        "n": len(questions),
        "of": task.counts,
        "average": "subjects" if task.macro else "points" if task.points else "examples",
        **_score(task, by_subject, "correct"),
        "truncated": sum(bool(one["truncated"]) for one in samples),
        "ties": sum(bool(one.get("ties")) for one in samples),
        "abstained": sum(one["extracted"] is None for one in answered),
        "errors": len(samples) - len(answered),
        "separate": sum(bool(one.get("separate")) for one in samples),
    }
    if (each := len(samples) // len(questions)) > 1:
        record["samples"] = each
        record["pass@k"] = {str(k): _score(task, by_subject, pass_key(k)) for k in ks(each)}
    if task.points:
        record["points"] = dict(task.points)
    for name in sorted({key for one in answered for key in one if key.startswith("correct_")}):
        record[name.replace("correct", "score")] = _score(task, by_subject, name)["score"]
    if task.generation is not None:
        record |= _completions(task, answered)
    record["groups"] = {
        name: _score(task, {s: by_subject[s] for s in sorted(subjects & by_subject.keys())})
        for name, subjects in task.groups.items()
        if subjects & by_subject.keys()
    }
    if len(by_subject) > 1:
        record["subjects"] = {
            name: {
                "n": len(own),
                "score": 100 * _mean(own, "correct"),
                "interval": [
                    100 * end for end in statistics.wilson(_sum(own, "correct"), len(own))[1:]
                ],
            }
            for name, own in sorted(by_subject.items())
        }
    return record


def warn(task: Task, record: Mapping[str, Any], log: Callable[[str], None]) -> None:
    """Logs what a reader of a task's score has to know.

    Raises:
      ConfigError: all choices of all examples have equal likelihood.
    """
    key, n = task.key, record["n"] * record.get("samples", 1)
    if record["truncated"]:
        log(f"warning: {key}: {record['truncated']} of {n} prompts lost their beginning")
    if record["errors"]:
        log(
            f"warning: {key}: {record['errors']} of {n} examples got no answer and count as wrong; "
            "the same command tries them again"
        )
    if record["ties"] > 0.01 * n:
        log(f"warning: {key}: {record['ties']} of {n} examples have choices of equal likelihood")
    if record["ties"] == n and n > 1:
        raise ConfigError(
            "all choices of all examples have equal likelihood.",
            key,
            "check the model: it does not tell the choices apart.",
        )
    guarded = record.get("decontamination")
    if guarded is not None and guarded["not_in_index"]:
        log(
            f"note: {key}: {guarded['not_in_index']} of {record['n']} examples are not in the "
            "index of test sets that the training text was filtered with; the text may contain them"
        )
    if record.get("training_text", {}).get("examples"):
        log(
            f"warning: {key}: text of {record['training_text']['examples']} of {record['n']} "
            "examples occurs in the training text"
        )
    if not task.checked:
        log(f"note: {key}: not checked against published data")


def mean_of(
    mean: Mean, samples: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any] | None:
    """Returns the mean of several tasks' scores with its standard error, in percent.

    A problem is one observation: its share of tasks in which it is solved.

    Args:
      samples: key of a task -> its samples, for those that were run.

    Returns:
      The record, which lists the tasks that are not in the mean; None if less than two were run.
    """
    found = [key for key in mean.tasks if key in samples]
    if len(found) < 2:
        return None
    problems: dict[str, list[float]] = {}
    for key in found:
        for one in by_question(samples[key]):
            problems.setdefault(one["id"], []).append(float(one["correct"]))
    shares = [sum(own) / len(own) for own in problems.values()]
    n = len(shares)
    share = math.fsum(shares) / n
    error = math.sqrt(math.fsum((one - share) ** 2 for one in shares) / max(1, n - 1) / n)
    low, high = share - _Z * error, share + _Z * error
    if share in (0.0, 1.0):
        _, low, high = statistics.wilson(round(share * n), n)
    return {
        "score": 100 * share,
        "stderr": 100 * error,
        "interval": [max(0.0, 100 * low), min(100.0, 100 * high)],
        "n": n,
        "tasks": found,
        "not_in_it": [key for key in mean.tasks if key not in samples],
    }


def _completions(task: Task, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How completions were made and what they look like; a mean of nothing is None."""
    assert task.generation is not None
    lengths = [one["completion_tokens"] for one in samples if one["completion_tokens"] is not None]
    texts, finishes = ([one[key] for one in samples] for key in ("completion", "finish"))
    shares = repetition.summary(texts, finishes)._asdict()
    return {
        "stops": list(task.generation.stops),
        "max_new_tokens": task.generation.max_new_tokens,
        "mean_completion_tokens": sum(lengths) / len(lengths) if lengths else None,
        **{name: share for name, share in shares.items() if name != "texts"},
        "rules": dict(sorted(Counter(one["rule"] for one in samples).items())),
    }


def ceiling(task: Task, examples: Sequence[Example], *, unsafe: bool = False) -> float | None:
    """Returns the score of right completions through stops, extraction and grading, in percent.

    Args:
      examples: the scored ones.
      unsafe: as in Generation.verdict.

    Returns:
      None for choices, and for a task without completions that are known to be right.
    """
    if task.generation is None or task.generation.gold is None:
        return None
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for one in examples:
        text = task.generation.gold(one)
        if task.generation.follow is None:  # otherwise stops are between its parts
            text = cut_completion(text, task.generation.stops)
        correct = task.generation.verdict(text, one, unsafe=unsafe).correct
        rows.setdefault(one.subject, []).append({"correct": correct})
    return _score(task, rows)["score"]


def floors(task: Task, examples: Sequence[Example]) -> dict[str, float]:
    """Returns scores that need no model, in percent.

    Of choices: the best constant and the longest choice. Of completions: those that the task names.

    Args:
      examples: the scored ones.
    """

    def score(answer, is_right=lambda found, one: found == one.answer) -> float:
        rows: dict[str, list[Mapping[str, Any]]] = {}
        for one in examples:
            rows.setdefault(one.subject, []).append({"correct": is_right(answer(one), one)})
        return _score(task, rows, "correct")["score"]

    if task.generation is not None:
        verdict = task.generation.verdict
        return {
            name: score(write, lambda text, one: verdict(text, one).correct)
            for name, write in task.generation.floors.items()
        }
    found = {"constant": max(score(lambda one, letter=letter: letter) for letter in task.letters)}
    letters = {one.id: [x for x in task.letters if x in one.fields] for one in examples}
    if all(letters.values()):
        found["longest choice"] = score(
            lambda one: max(letters[one.id], key=lambda letter: len(one.fields[letter]))
        )
    return found


def _score(
    task: Task, by_subject: Mapping[str, Sequence[Mapping[str, Any]]], key: str = "correct"
) -> dict[str, Any]:
    """Returns the score, its standard error and its 95 % interval, in percent."""
    n = sum(map(len, by_subject.values()))
    if not (task.macro or task.points):
        rows = [one for own in by_subject.values() for one in own]
        correct = _sum(rows, key)
        error = math.sqrt(_variance(rows, key) / max(1, n - 1))
        _, low, high = (100 * end for end in statistics.wilson(correct, n))
        return {"n": n, "score": 100 * correct / n, "stderr": 100 * error, "interval": [low, high]}
    # The mean of independent means, each with its share of the score: their variances add up.
    means = [_mean(own, key) for own in by_subject.values()]
    sizes = [len(own) for own in by_subject.values()]
    weights = [
        task.points[name] * len(own) if task.points else 1 for name, own in by_subject.items()
    ]
    total = math.fsum(weights)  # Python 3.11's sum rounds differently than that of 3.12
    shares = [weight / total for weight in weights]
    score = math.fsum(w * mean for w, mean in zip(weights, means, strict=True)) / total
    if min(sizes) < _FEW:
        # With --limit a subject has an example or two, which say nothing of its variance; all of
        # them together do. An interval of Wilson has a width even if all are right.
        correct = sum(_sum(own, key) for own in by_subject.values())
        pooled, low, high = statistics.wilson(correct, n)
        spread = math.fsum(share**2 / size for share, size in zip(shares, sizes, strict=True))
        return {
            "n": n,
            "score": 100 * score,
            "stderr": 100 * math.sqrt(pooled * (1 - pooled) * spread),
            "interval": [
                max(0.0, 100 * (score + low - pooled)),
                min(100.0, 100 * (score + high - pooled)),
            ],
        }
    error = math.sqrt(
        math.fsum(
            share**2 * _variance(own, key) / (len(own) - 1)
            for share, own in zip(shares, by_subject.values(), strict=True)
        )
    )
    low, high = max(0.0, score - _Z * error), min(1.0, score + _Z * error)
    return {
        "n": n,
        "score": 100 * score,
        "stderr": 100 * error,
        "interval": [100 * low, 100 * high],
    }


def _sum(samples: Iterable[Mapping[str, Any]], key: str) -> float:
    """The sum of verdicts, or of shares of right samples; an error has no other verdicts."""
    return math.fsum(one.get(key) or 0 for one in samples)


def _mean(samples: Sequence[Mapping[str, Any]], key: str) -> float:
    return _sum(samples, key) / len(samples)


def _variance(samples: Sequence[Mapping[str, Any]], key: str) -> float:
    """The variance of verdicts, or of shares of right samples, around their mean."""
    mean = _mean(samples, key)
    if all(one.get(key, 0) in (0, 1) for one in samples):
        return mean * (1 - mean)
    return math.fsum((one.get(key, 0) - mean) ** 2 for one in samples) / len(samples)
