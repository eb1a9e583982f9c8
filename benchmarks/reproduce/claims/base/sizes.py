"""Report Table 2: bigger models are better at equal tokens, on tasks that these sizes can do.

The tasks are multiple choice with four options, as MMLU and C-Eval are: what follows a sum, and the
color or place that a story names again. A free answer is at its floor after so few tokens.
"""

import numpy as np

from benchmarks.reproduce import family
from benchmarks.reproduce.bootstrap import difference
from benchmarks.reproduce.claim import Cell, Measured, Outcome, Row, verdict_of
from benchmarks.reproduce.lab import Claim, Lab, rows_of
from benchmarks.reproduce.learner import held_out_losses
from benchmarks.reproduce.scoring import Choice, chosen_right
from benchmarks.reproduce.tables import gap, row
from qwen_jax.synthetic.worlds import stories, sums
from qwen_jax.synthetic.worlds.problem import LANGUAGES, is_held_out, sample

STEPS = 1000  # of 2 rows of 256 tokens; 8.4M parameters take half a second a step
_LEVELS, _OPTIONS, _CHUNKS = ("one digit", "two digits"), 4, 24
_TASKS = {"sums": "sums, 4 options", "stories": "stories, 4 options"}
_TEXTS = ("docs", "code", "worlds")
_REPORT = {"0.6m": "44.6 (1.8B, MMLU)", "2.6m": "58.2 (7B, MMLU)", "8.4m": "66.3 (14B, MMLU)"}


def cells(lab: Lab) -> list[Cell]:
    """Returns a base model of each size, three seeds: the largest takes minutes."""
    steps = lab.form.steps(STEPS)
    return [
        Cell(
            size,
            seed,
            lambda size=size, seed=seed: measure(lab, size, seed),
            **lab.cost(model, steps, family.BASE_BATCH, family.LENGTH),
        )
        for seed in lab.form.costly().seeds
        for size, model in family.SIZES.items()
    ]


def measure(lab: Lab, size: str, seed: int) -> dict:
    """Returns what a base model chooses rightly, and its held-out losses, part by part."""
    model, params = family.base(lab, size, seed=seed, steps=STEPS)
    tokenizer, text = family.tokenizer(lab), family.text(lab)
    questions = {"sums": sum_choices(lab.form.items), "stories": story_choices(lab.form.items)}
    return {
        name: chosen_right(model, params, tokenizer, asked) for name, asked in questions.items()
    } | {
        f"loss, {name}": held_out_losses(model, params, tokens, family.LENGTH, chunks=_CHUNKS)
        for name, tokens in text.held_out.items()
    }


def sum_choices(number: int) -> list[Choice]:
    """Returns held-out sums with the right result and three near it."""
    rng = np.random.default_rng(5)
    found = []
    for each in sample(sums.make, _LEVELS, number, seed=0, held_out=True, languages=("en",)):
        expression, result = each.answer.rstrip(".").split(" = ")
        others = [int(result) + d for d in (-10, -2, -1, 1, 2, 10)]
        options = [result, *map(str, rng.choice(others, _OPTIONS - 1, replace=False))]
        found.append(Choice(f"{expression} =", tuple(f" {option}." for option in options)))
    return found


def story_choices(number: int) -> list[Choice]:
    """Returns stories that no training text has, up to a color or place that they name again."""
    rng = np.random.default_rng(6)
    found: list[Choice] = []
    while len(found) < number:
        language = LANGUAGES[len(found) % 2]
        story = stories.make(rng, language)
        if not is_held_out(story.key) or story.text.count(story.answer) < 2:
            continue
        others: list[str] = []
        while len(others) < _OPTIONS - 1:
            other = stories.make(rng, language)
            if _kind(other) == _kind(story) and other.answer not in (story.answer, *others):
                others.append(other.answer)
        space = " " if language == "en" else ""
        context = story.text[: story.text.rindex(story.answer)].removesuffix(" ")
        found.append(Choice(context, tuple(space + each for each in (story.answer, *others))))
    return found


def _kind(story: stories.Story) -> bool:
    """Whether a story is asked for a color; otherwise for its place."""
    return "color" in story.question or "颜色" in story.question


def judge(lab: Lab, measured: Measured) -> Outcome:
    """Compares the largest with the smallest on both tasks, and the losses."""
    rows = [
        row(measured, size, task, f"{size}: {name}", report=_REPORT[size] if task == "sums" else "")
        for size in measured
        for task, name in _TASKS.items()
    ]
    rows += [
        row(
            measured, size, f"loss, {name}", f"{size}: held-out loss, {name} (nats per token)",
            percent=False,
        )
        for size in measured
        for name in _TEXTS
    ]  # fmt: skip
    found = difference(*(_both(measured, size) for size in ("8.4m", "0.6m")))
    middle = difference(*(_both(measured, size) for size in ("2.6m", "0.6m")))
    rows += [
        Row("8.4m minus 0.6m: both tasks", *found), Row("2.6m minus 0.6m: both tasks", *middle)
    ]  # fmt: skip
    losses = ", ".join(
        f"{gap(measured, '8.4m', '0.6m', f'loss, {name}').estimate:+.2f} ({name})"
        for name in _TEXTS
    )
    return Outcome(
        rows,
        verdict_of(found.low, found.high),
        (found.low, found.high),
        f"8.4M minus 0.6M on both tasks: {100 * found.estimate:+.1f} points; held-out loss in nats "
        f"per token: {losses}; a random choice is right on 25 %",
    )


def _both(measured: Measured, size: str) -> list[list[float]]:
    return [
        [*a, *b] for a, b in zip(*(rows_of(measured, size, task) for task in _TASKS), strict=True)
    ]


CLAIMS = (
    Claim(
        number=2,
        name="sizes",
        report="2.6, Table 2",
        title="Bigger is better at equal tokens",
        statement="On every benchmark of Table 2, 14B is better than 7B, and 7B than 1.8B.",
        rule="holds if the 95 % interval of 8.4M minus 0.6M on both multiple-choice tasks together "
        "lies above zero",
        cells=cells,
        judge=judge,
    ),
)
