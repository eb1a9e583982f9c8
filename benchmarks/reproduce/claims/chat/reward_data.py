"""Report 3.2.1, Table 4: preference model pretraining, then fine-tuning, beats either of them.

PMP has many pairs of several kinds, a fifth of them labelled the wrong way round; fine-tuning has
few clean ones. Accuracy is on held-out pairs of the clean kind.
"""

import numpy as np

from benchmarks.reproduce import family, stages
from benchmarks.reproduce.bootstrap import difference, mean
from benchmarks.reproduce.claim import Cell, Measured, Outcome, Row, verdict_of
from benchmarks.reproduce.claims.chat import rlhf
from benchmarks.reproduce.lab import Claim, Lab, rows_of
from qwen_jax.synthetic.worlds import instructions, sums, word_problems
from qwen_jax.synthetic.worlds.problem import Problem, sample

CLEAN = (50, 200, 1000)
_PMP_PAIRS, _PMP_STEPS, _STEPS = 4000, 200, 120
_NOISE = 0.2
_KINDS = ((sums.make, sums.LEVELS), (word_problems.make, word_problems.LEVELS),
          (instructions.make, instructions.LEVELS))  # fmt: skip


def cells(lab: Lab) -> list[Cell]:
    """Returns PMP, and fine-tuning on each number of clean pairs with and without PMP before it."""
    cost = lab.cost(family.SIZES[rlhf.SIZE], lab.form.steps(_PMP_STEPS + _STEPS), 32, 128)
    arms = ["PMP only", *(f"{kind}, {n} pairs" for n in CLEAN for kind in ("clean only", "both"))]
    return [
        Cell(arm, seed, lambda arm=arm, seed=seed: _run(lab, arm, seed), **cost)
        for seed in lab.form.costly().seeds
        for arm in arms
    ]


def _run(lab: Lab, arm: str, seed: int) -> dict:
    start = rlhf.sft_folder(lab, seed)
    rlhf.sft_model(lab, seed)
    if not arm.startswith("clean only"):
        start = stages.train_reward_model(
            lab, f"pmp_{seed}", start, _noisy_pairs(seed),
            steps=lab.form.steps(_PMP_STEPS), seed=seed,
        )  # fmt: skip
    if arm != "PMP only":
        number = int(arm.split()[-2])
        start = stages.train_reward_model(
            lab, f"table4_{arm.replace(' ', '_').replace(',', '')}_{seed}", start,
            _clean_pairs(number, seed, held_out=False), steps=lab.form.steps(_STEPS), seed=seed,
        )  # fmt: skip
    held_out = _clean_pairs(lab.form.items, 0, held_out=True)
    model, tokenizer = family.SIZES[rlhf.SIZE], family.tokenizer(lab)
    return {"right": stages.pair_accuracy(lab, model, tokenizer, start, held_out, "clean")}


def _pairs(problems: list[Problem]) -> list[dict[str, str]]:
    return [
        {"prompt": each.question, "chosen": each.answer, "rejected": each.wrong}
        for each in problems
    ]


def _clean_pairs(number: int, seed: int, *, held_out: bool) -> list[dict[str, str]]:
    """Returns pairs about sums of one and two digits."""
    return _pairs(sample(sums.make, sums.LEVELS[:2], number, seed=seed + 9, held_out=held_out))


def _noisy_pairs(seed: int) -> list[dict[str, str]]:
    """Returns pairs of every kind, a fifth of them with chosen and rejected exchanged."""
    rng = np.random.default_rng(seed)
    found = []
    for make, levels in _KINDS:
        found += _pairs(
            sample(make, levels, _PMP_PAIRS // len(_KINDS), seed=seed + 5, held_out=False)
        )
    return [
        each | {"chosen": each["rejected"], "rejected": each["chosen"]}
        if rng.random() < _NOISE
        else each
        for each in (found[i] for i in rng.permutation(len(found)))
    ]


def judge(lab: Lab, measured: Measured) -> Outcome:
    """Compares both with the better of the two parts, at 50 clean pairs."""
    rows = []
    for arm in measured:
        values = rows_of(measured, arm, "right")
        per_seed = tuple(sum(row) / len(row) for row in values)
        rows.append(Row(f"{arm}: held-out pairs right", *mean(values), per_seed=per_seed))
    gains = {
        n: difference(
            rows_of(measured, f"both, {n} pairs", "right"),
            rows_of(measured, f"clean only, {n} pairs", "right"),
        )
        for n in CLEAN
    }
    rows += [Row(f"both minus clean only, {n} pairs", *found) for n, found in gains.items()]
    against_pmp = difference(
        rows_of(measured, f"both, {CLEAN[0]} pairs", "right"),
        rows_of(measured, "PMP only", "right"),
    )
    rows.append(Row(f"both, {CLEAN[0]} pairs, minus PMP only", *against_pmp))
    weaker = min(gains[CLEAN[0]], against_pmp, key=lambda each: each.low)
    return Outcome(
        rows,
        verdict_of(weaker.low, weaker.high),
        (weaker.low, weaker.high),
        f"with {CLEAN[0]} clean pairs, PMP before fine-tuning changes accuracy by "
        f"{100 * gains[CLEAN[0]].estimate:+.1f} points, fine-tuning after PMP by "
        f"{100 * against_pmp.estimate:+.1f}",
    )


CLAIMS = (
    Claim(
        number=7,
        name="pmp",
        report="3.2.1, Table 4",
        title="PMP, then fine-tuning, beats either of them",
        statement="A reward model is pretrained on a large set of comparisons (PMP) and then "
        "fine-tuned on a smaller set of better ones.",
        rule="holds if both 95 % intervals lie above zero with 50 clean pairs: PMP and fine-tuning "
        "minus fine-tuning only, and minus PMP only",
        cells=cells,
        judge=judge,
    ),
)
