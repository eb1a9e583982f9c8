"""Report 3.1: masking system and user turns, and conversations in people's own words.

The report describes natural-style data, not formatted with templates. Here, template data have one
phrasing per kind of question, natural-style data many; the questions that are asked have all.
"""

from collections.abc import Sequence

import numpy as np

from benchmarks.reproduce.claim import Measured, Outcome, verdict_of
from benchmarks.reproduce.lab import Claim, Lab
from benchmarks.reproduce.learner import Rows
from benchmarks.reproduce.study import PER_STEP, Probe, Study, conversations, probe
from qwen_jax.synthetic.worlds import instructions, sums
from qwen_jax.synthetic.worlds.problem import Problem, sample

_SUMS = ("one digit", "two digits")


def _problems(number: int, seed: int) -> list[Problem]:
    first = sample(sums.make, _SUMS, number // 2, seed=seed, held_out=False)
    second = sample(instructions.make, instructions.LEVELS, number // 2, seed=seed, held_out=False)
    found = [*first, *second]
    return [found[i] for i in np.random.default_rng(seed).permutation(len(found))]


def _pairs(problems: Sequence[Problem]) -> list[tuple[str, str]]:
    return [(each.question, each.answer) for each in problems]


def _masked(lab: Lab, seed: int, steps: int) -> Rows:
    return conversations(lab, _pairs(_problems(PER_STEP * steps, seed)))


def _all_tokens(lab: Lab, seed: int, steps: int) -> Rows:
    return conversations(lab, _pairs(_problems(PER_STEP * steps, seed)), masked=False)


def _template(lab: Lab, seed: int, steps: int) -> Rows:
    """Returns the same problems, each kind in the one phrasing of its first occurrence."""
    pairs = []
    for each in _problems(PER_STEP * steps, seed):
        content = (
            each.question if each.level in instructions.LEVELS else each.answer.split(" = ")[0]
        )
        listed = content.split("：" if each.language == "zh" else ": ")[-1]
        pairs.append((f"### Task: {each.level}\n### Input: {listed}\n### Output:", each.answer))
    return conversations(lab, pairs)


def _probes(lab: Lab) -> dict[str, Probe]:
    items = lab.form.items
    asked = sample(
        instructions.make, instructions.LEVELS, items, seed=0, held_out=True, distinct=True
    )
    return {
        "sums": probe(sample(sums.make, _SUMS, items, seed=0, held_out=True, distinct=True)),
        "instructions": probe(asked, instructions.is_right),
    }


MASK = Study(arms={"masked": _masked, "all tokens": _all_tokens}, probes=_probes, points=4)
STYLE = Study(arms={"natural": _masked, "template": _template}, probes=_probes)


def _judge_mask(lab: Lab, measured: Measured) -> Outcome:
    found = MASK.difference(measured, "masked", "all tokens", "instructions", "area")
    return Outcome(
        MASK.rows(measured, {"last": ", at the end", "area": ", over training"}, {}),
        verdict_of(found.low, found.high),
        (found.low, found.high),
        f"masking changes the mean accuracy on instructions over training by "
        f"{100 * found.estimate:+.1f} points",
        (MASK.curve(measured, "instructions", "Accuracy on held-out instructions"),),
    )


def _judge_style(lab: Lab, measured: Measured) -> Outcome:
    found = STYLE.difference(measured, "natural", "template", "instructions")
    return Outcome(
        STYLE.rows(measured, {"last": ""}, {}),
        verdict_of(found.low, found.high),
        (found.low, found.high),
        f"on questions in people's words, natural-style data differ by "
        f"{100 * found.estimate:+.1f} points from template data",
    )


CLAIMS = (
    Claim(
        number=6,
        name="sft_mask",
        report="3.1.2",
        title="The loss mask of SFT",
        statement="The model is trained with loss masks on system and user turns.",
        rule="holds if the 95 % interval of masked minus all tokens in the mean accuracy over "
        "training on instructions, each with its best learning rate, lies above zero",
        cells=MASK.cells,
        judge=_judge_mask,
    ),
    Claim(
        number=6,
        name="sft_style",
        report="3.1.1",
        title="Natural-style conversations instead of template data",
        statement="Data formatted with prompt templates are excluded, since generalizing to "
        "questions in people's own words matters.",
        rule="holds if the 95 % interval of natural minus template on held-out instructions in "
        "people's words, each with its best learning rate, lies above zero",
        cells=STYLE.cells,
        judge=_judge_style,
    ),
)
