"""Report Table 2: bigger models are better at equal tokens, on tasks that these sizes can do."""

import numpy as np

from benchmarks.reproduce import family
from benchmarks.reproduce.bootstrap import difference, mean
from benchmarks.reproduce.claim import Cell, Measured, Outcome, Row, verdict_of
from benchmarks.reproduce.code_scoring import passes
from benchmarks.reproduce.lab import Claim, Lab, rows_of
from benchmarks.reproduce.learner import TextRows, held_out_loss
from benchmarks.reproduce.scoring import continuations
from qwen_jax.synthetic.worlds import programs, sums
from qwen_jax.synthetic.worlds.problem import is_held_out, is_right, sample

_SHOTS = 4
_LEVELS = ("one digit", "two digits")
_REPORT = {"0.6m": "1.8B: 44.6 MMLU", "2.6m": "7B: 58.2 MMLU", "8.4m": "14B: 66.3 MMLU"}


def cells(lab: Lab) -> list[Cell]:
    """Returns a base model of each size, three seeds: the largest takes minutes."""
    steps = lab.form.steps(family.BASE_STEPS)
    return [
        Cell(
            size,
            seed,
            lambda size=size, seed=seed: measure(lab, size, seed),
            **lab.cost(model, steps, 16, family.LENGTH),
        )
        for size, model in family.SIZES.items()
        for seed in lab.form.costly().seeds
    ]


def measure(lab: Lab, size: str, seed: int) -> dict:
    """Returns the held-out losses of a base model and what it continues rightly, item by item."""
    model, params = family.base(lab, size, seed=seed)
    tokenizer, text = family.tokenizer(lab), family.text(lab)
    losses = {
        name: held_out_loss(model, params, TextRows(tokens[: 200 * family.LENGTH], family.LENGTH))
        for name, tokens in text.held_out.items()
    }
    problems = sample(sums.make, _LEVELS, lab.form.items, seed=0, held_out=True, languages=("en",))
    shots = sample(sums.make, _LEVELS, _SHOTS, seed=1, held_out=False, languages=("en",))
    head = "\n".join(each.answer for each in shots)
    answers = continuations(
        model,
        params,
        tokenizer,
        [
            [tokenizer.end_of_text, *tokenizer.encode(f"{head}\n{each.answer.split('=')[0]}=")]
            for each in problems
        ],
        max_new_tokens=8,
    )
    found = held_out_programs(lab.form.items)
    bodies = continuations(
        model,
        params,
        tokenizer,
        [[tokenizer.end_of_text, *tokenizer.encode(each.prompt)] for each in found],
        max_new_tokens=64,
    )
    return {
        "losses": losses,
        "sums": [
            int(is_right(each, text.split("\n")[0]))
            for each, text in zip(problems, answers, strict=True)
        ],
        "programs": passes(found, bodies),
    }


def held_out_programs(number: int, levels=programs.LEVELS[:3]) -> list[programs.Program]:
    """Returns Python functions that no training text has."""

    rng, found = np.random.default_rng(0), []
    while len(found) < number:
        level = levels[len(found) % len(levels)]
        program = programs.make(rng, level, ("en", "zh")[len(found) % 2], "python")
        if is_held_out(program.key):
            found.append(program)
    return found


def judge(lab: Lab, measured: Measured) -> Outcome:
    """Compares the largest with the smallest on sums and programs, and the losses in between."""
    rows = []
    for size, by_seed in measured.items():
        for name in ("sums", "programs"):
            values = rows_of(measured, size, name)
            per_seed = tuple(sum(row) / len(row) for row in values)
            rows.append(
                Row(
                    f"{size}: {name}",
                    *mean(values),
                    per_seed=per_seed,
                    report=_REPORT[size] if name == "sums" else "",
                )
            )
        for name in ("docs", "code", "worlds"):
            losses = [[found["losses"][name]] for found in by_seed.values()]
            rows.append(
                Row(
                    f"{size}: held-out loss, {name} (nats per token)",
                    *mean(losses),
                    per_seed=tuple(value for (value,) in losses),
                    percent=False,
                )
            )
    both = {
        size: [
            [*a, *b]
            for a, b in zip(
                rows_of(measured, size, "sums"), rows_of(measured, size, "programs"), strict=True
            )
        ]
        for size in measured
    }
    found = difference(both["8.4m"], both["0.6m"])
    return Outcome(
        rows,
        verdict_of(found.low, found.high),
        (found.low, found.high),
        f"8.4M minus 0.6M on sums and programs together: {100 * found.estimate:+.1f} points",
    )


CLAIMS = (
    Claim(
        number=2,
        name="sizes",
        report="2.6, Table 2",
        title="Bigger is better at equal tokens",
        statement="On every benchmark of Table 2, 14B is better than 7B, and 7B than 1.8B.",
        rule="holds if the 95 % interval of 8.4M minus 0.6M on held-out sums (4-shot) and programs "
        "lies above zero",
        cells=cells,
        judge=judge,
    ),
)
