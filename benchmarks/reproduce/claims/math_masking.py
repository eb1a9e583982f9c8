"""Report 5.1: masking the system and user turns speeds up the convergence of math SFT.

Masking leaves fewer tokens in the mean of the loss, so each answer token weighs more. Both arms
therefore try the same learning rates, and the best of each is compared.
"""

from benchmarks.reproduce import family
from benchmarks.reproduce.bootstrap import difference, mean
from benchmarks.reproduce.claim import Cell, Claim, Curve, Measured, Outcome, Row, verdict_of
from benchmarks.reproduce.lab import Lab, rows_of
from benchmarks.reproduce.learner import Schedule, chat_example, train
from benchmarks.reproduce.scoring import rights
from qwen_jax.data.chat.sft_rows import PackedRows
from qwen_jax.synthetic.worlds import word_problems
from qwen_jax.synthetic.worlds.problem import sample

SIZE, STEPS, LENGTH, BATCH = "0.6m", 400, 256, 8
RATES = (2e-3, 4e-3)
LEVELS = ("one step", "one step, distractor", "two steps")
_POINTS = 5  # measurements during training


def cells(lab: Lab) -> list[Cell]:
    """Returns an arm for each mask and learning rate."""
    steps = lab.form.steps(STEPS)
    return [
        Cell(
            f"{'masked' if masked else 'all tokens'}, {rate:g}",
            seed,
            lambda masked=masked, rate=rate, seed=seed: _run(lab, masked, rate, seed, steps),
            **lab.cost(family.SIZES[SIZE], steps, BATCH, LENGTH),
        )
        for masked in (True, False)
        for rate in RATES
        for seed in lab.form.seeds
    ]


def _run(lab: Lab, masked: bool, rate: float, seed: int, steps: int) -> dict:
    tokenizer = family.tokenizer(lab)
    model, start = family.base(lab, SIZE)
    problems = sample(word_problems.make, LEVELS, 30 * steps, seed=seed, held_out=False)
    rows = PackedRows(
        [
            chat_example([("user", p.question), ("assistant", p.steps)], tokenizer, masked=masked)
            for p in problems
        ],
        context_length=LENGTH,
    )
    held_out = sample(
        word_problems.make, LEVELS, lab.form.items, seed=0, held_out=True, distinct=True
    )
    found: dict[int, list[int]] = {}
    train(
        model,
        rows,
        Schedule(steps, rate, BATCH, cosine=False),
        seed=seed,
        start=start,
        measure=lambda step, params: found.__setitem__(
            step, rights(model, params, tokenizer, held_out)
        ),
        measure_at=_steps(steps),
    )
    # The area under the curve: each problem's share of measurements at which it was right.
    area = [sum(values) / len(found) for values in zip(*found.values(), strict=True)]
    return {
        "curve": {str(step): sum(values) / len(values) for step, values in found.items()},
        "area": area,
        "last": found[max(found)],
    }


def _steps(steps: int) -> list[int]:
    return sorted({max(1, steps * i // _POINTS) for i in range(1, _POINTS + 1)})


def judge(lab: Lab, measured: Measured) -> Outcome:
    """Compares the mean accuracy over training of the best learning rate of each mask."""
    best = {
        masked: max(
            (arm for arm in measured if arm.startswith(masked)),
            key=lambda arm: mean(rows_of(measured, arm, "area")).estimate,
        )
        for masked in ("masked", "all tokens")
    }
    found = difference(
        rows_of(measured, best["masked"], "area"), rows_of(measured, best["all tokens"], "area")
    )
    rows = []
    for arm in measured:
        for key, name in (("area", "mean accuracy over training"), ("last", "at the end")):
            values = rows_of(measured, arm, key)
            interval = mean(values)
            per_seed = tuple(sum(row) / len(row) for row in values)
            rows.append(Row(f"{arm}: {name}", *interval, per_seed=per_seed))
    verdict = verdict_of(found.low, found.high)
    curves = {
        arm: [
            (float(step), mean([[m["curve"][step]] for m in by_seed.values()]).estimate)
            for step in next(iter(by_seed.values()))["curve"]
        ]
        for arm, by_seed in measured.items()
    }
    return Outcome(
        rows,
        verdict,
        (found.low, found.high),
        f"with the better learning rate of each arm, masking changes the mean accuracy over "
        f"training by {100 * found.estimate:+.1f} points",
        (Curve("Accuracy on held-out word problems", "step", "share right", curves),),
    )


CLAIM = Claim(
    number=12,
    name="math_masking",
    report="5.1",
    title="Masking speeds up math SFT",
    statement="System and user turns are masked in math SFT; in preliminary experiments training "
    "converges faster with the mask.",
    rule="holds if the 95 % interval of the difference in mean accuracy over training, masked "
    "minus all tokens, each with its better learning rate, lies above zero",
    cells=cells,
    judge=judge,
)
