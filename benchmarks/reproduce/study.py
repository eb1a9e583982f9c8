"""Fine-tuning arms that differ in one thing, measured on the same held-out problems.

Every arm has the same start, steps, batch and learning rates, and of each the best rate counts.
"""

import dataclasses
from collections.abc import Callable, Sequence

from benchmarks.reproduce import family
from benchmarks.reproduce.bootstrap import difference, mean
from benchmarks.reproduce.claim import Cell, Curve, Measured, Row
from benchmarks.reproduce.lab import Lab, rows_of
from benchmarks.reproduce.learner import Rows, Schedule, chat_example, train
from benchmarks.reproduce.scoring import answers
from qwen_jax.config import ModelConfig
from qwen_jax.data.chat.sft_rows import PackedRows
from qwen_jax.grading.statistics import Interval
from qwen_jax.synthetic.worlds.problem import Problem, is_right
from qwen_jax.types import Params

# Of every fine-tuning: many small steps, which teach a small model more than few large ones.
LENGTH, BATCH, RATE = 128, 4, 1.5e-3
PER_STEP = 16  # conversations of one turn that a step takes, at most


def schedule(steps: int, rate: float = RATE) -> Schedule:
    """Returns how a model is fine-tuned: a constant rate after the warm-up."""
    return Schedule(steps, rate, BATCH, cosine=False)


@dataclasses.dataclass(frozen=True)
class Probe:
    """Held-out questions and their grades."""

    questions: Sequence[str]
    grade: Callable[[Sequence[str]], list[int]]  # responses -> 1 where right, in order
    max_new_tokens: int = 40


def probe(problems: Sequence[Problem], right: Callable[[Problem, str], bool] = is_right) -> Probe:
    """Returns the probe of problems whose results are compared."""
    return Probe(
        [each.question for each in problems],
        lambda texts: [int(right(p, text)) for p, text in zip(problems, texts, strict=True)],
    )


@dataclasses.dataclass(frozen=True)
class Study:
    """Arms of fine-tuning, with everything that they share.

    Attributes:
      arms: name -> (lab, seed, number of training steps) -> rows to train on.
      probes: lab -> name -> held-out questions.
      points: measurements during training, the last at its end.
    """

    arms: dict[str, Callable[[Lab, int, int], Rows]]
    probes: Callable[[Lab], dict[str, Probe]]
    size: str = "0.6m"
    steps: int = 4000
    rates: tuple[float, ...] = (1e-3, 2e-3)
    points: int = 1
    start: Callable[[Lab], tuple[ModelConfig, Params]] | None = None  # None: the base of the size

    def cells(self, lab: Lab) -> list[Cell]:
        """Returns a cell for each arm, learning rate and seed."""
        steps = lab.form.steps(self.steps)
        return [
            Cell(
                _name(arm, rate),
                seed,
                lambda arm=arm, rate=rate, seed=seed: self._run(lab, arm, rate, seed),
                **lab.cost(family.SIZES[self.size], steps, BATCH, LENGTH),
            )
            for arm in self.arms
            for rate in self.rates
            for seed in lab.form.seeds
        ]

    def _run(self, lab: Lab, arm: str, rate: float, seed: int) -> dict:
        """Trains an arm; returns probe -> {curve, area, last}.

        The area of a question is the share of the measurements at which it was right.
        """
        steps, tokenizer = lab.form.steps(self.steps), family.tokenizer(lab)
        model, start = (self.start or (lambda lab: family.base(lab, self.size)))(lab)
        probes = self.probes(lab)
        found: dict[str, dict[int, list[int]]] = {name: {} for name in probes}

        def measure(step: int, params: Params) -> None:
            for name, each in probes.items():
                texts = answers(
                    model,
                    params,
                    tokenizer,
                    each.questions,
                    max_new_tokens=each.max_new_tokens,
                )
                found[name][step] = each.grade(texts)

        train(
            model,
            self.arms[arm](lab, seed, steps),
            schedule(steps, rate),
            seed=seed,
            start=start,
            measure=measure,
            measure_at=sorted(
                {max(1, steps * i // self.points) for i in range(1, self.points + 1)}
            ),
        )
        return {
            name: {
                "curve": {str(step): sum(v) / len(v) for step, v in by_step.items()},
                "area": [sum(v) / len(by_step) for v in zip(*by_step.values(), strict=True)],
                "last": by_step[max(by_step)],
            }
            for name, by_step in found.items()
        }

    def best(self, measured: Measured, arm: str, name: str, key: str) -> str:
        """Returns the arm with the learning rate of the best mean of a probe."""
        return max(
            (_name(arm, rate) for rate in self.rates),
            key=lambda each: mean(_values(measured, each, name, key)).estimate,
        )

    def difference(
        self, measured: Measured, first: str, second: str, name: str, key: str = "last"
    ) -> Interval:
        """Returns first - second of a probe, each with its best learning rate."""
        a, b = (self.best(measured, arm, name, key) for arm in (first, second))
        return difference(_values(measured, a, name, key), _values(measured, b, name, key))

    def rows(self, measured: Measured, keys: dict[str, str], report: dict[str, str]) -> list[Row]:
        """Returns a row for each arm, rate, probe and key.

        Args:
          keys: "last" or "area" -> what it is called.
          report: arm -> what the report has there.
        """
        found = []
        for arm in self.arms:
            for rate in self.rates:
                for name in next(iter(next(iter(measured.values())).values())):
                    for key, called in keys.items():
                        values = _values(measured, _name(arm, rate), name, key)
                        found.append(
                            Row(
                                f"{name}, {arm}, rate {rate:g}{called}",
                                *mean(values),
                                per_seed=tuple(sum(row) / len(row) for row in values),
                                report=report.get(arm, ""),
                            )
                        )
        return found

    def curve(self, measured: Measured, name: str, title: str) -> Curve:
        """Returns the accuracy of a probe over training, a line for each arm and rate."""
        lines = {}
        for arm, by_seed in measured.items():
            steps = next(iter(by_seed.values()))[name]["curve"]
            lines[arm] = [
                (float(s), sum(m[name]["curve"][s] for m in by_seed.values()) / len(by_seed))
                for s in steps
            ]
        return Curve(title, "step", "share right", lines)


def conversations(
    lab: Lab,
    pairs: Sequence[tuple[str, str]],
    *,
    masked: bool = True,
    length: int = LENGTH,
) -> PackedRows:
    """Returns packed conversations of one question and one response each."""
    tokenizer = family.tokenizer(lab)
    return PackedRows(
        [
            chat_example([("user", question), ("assistant", text)], tokenizer, masked=masked)
            for question, text in pairs
        ],
        context_length=length,
    )


def _name(arm: str, rate: float) -> str:
    return f"{arm}, {rate:g}"


def _values(measured: Measured, arm: str, name: str, key: str) -> list[list[float]]:
    return rows_of({arm: {seed: m[name] for seed, m in measured[arm].items()}}, arm, key)
