"""Report 3.2: SFT overfits; RLHF on the same prompts generalizes better.

One model is fine-tuned on a few sums, over and over. Then it is fine-tuned on them for longer, or
goes through RLHF on the same prompts, with as many examples as completions.
"""

import pathlib
from typing import Any

from benchmarks.reproduce import family, feedback, study
from benchmarks.reproduce.bootstrap import mean
from benchmarks.reproduce.claim import Cell, Measured, Outcome, Row, verdict_of
from benchmarks.reproduce.claims.chat import rlhf
from benchmarks.reproduce.lab import Claim, Lab
from benchmarks.reproduce.learner import train
from benchmarks.reproduce.scoring import answers
from benchmarks.reproduce.study import Probe, conversations, probe
from benchmarks.reproduce.tables import row
from qwen_jax.config import ModelConfig
from qwen_jax.synthetic.worlds import sums
from qwen_jax.synthetic.worlds.problem import Problem, sample
from qwen_jax.types import Params

PROBLEMS, STEPS = 500, 2000
_LONGER = 2  # steps of SFT with as many conversations as one of PPO has completions
SAMPLES = 4
ARMS = ("SFT", "SFT, longer", "RLHF")
_SIDES = {"trained": "prompts that were trained on", "unseen": "unseen prompts"}


def cells(lab: Lab) -> list[Cell]:
    """Returns the SFT model, and both ways to train it further; three seeds."""
    steps = lab.form.steps(STEPS) + _LONGER * lab.form.steps(feedback.PPO_STEPS)
    cost = lab.cost(family.SIZES[rlhf.SIZE], steps, study.BATCH, study.LENGTH)
    return [
        Cell(arm, seed, lambda arm=arm, seed=seed: _run(lab, arm, seed), **cost)
        for seed in lab.form.costly().seeds
        for arm in ARMS
    ]


def problems(seed: int) -> list[Problem]:
    """Returns the few sums that everything trains on, in every wording of a seed."""
    return sample(sums.make, rlhf.LEVELS, PROBLEMS, seed=seed, held_out=False, distinct=True)


def _fine_tuned(lab: Lab, seed: int, steps: int, start: Params, order: int) -> Params:
    rows = conversations(lab, [(each.question, each.answer) for each in problems(seed)])
    schedule = study.schedule(steps)
    return train(family.SIZES[rlhf.SIZE], rows, schedule, seed=seed + order, start=start)


def _sft(lab: Lab, seed: int) -> tuple[ModelConfig, Params, pathlib.Path]:
    model, start = family.base(lab, rlhf.SIZE)
    name = f"overfitting_sft_{seed}"

    def make() -> Params:
        return _fine_tuned(lab, seed, lab.form.steps(STEPS), start, 0)

    params = lab.model(name, model, family.tokenizer(lab), make)
    return model, params, lab.folder / "models" / name


def _run(lab: Lab, arm: str, seed: int) -> dict[str, Any]:
    model, params, folder = _sft(lab, seed)
    known = _probe(problems(seed))
    if arm == "SFT, longer":
        params = _fine_tuned(lab, seed, _LONGER * lab.form.steps(feedback.PPO_STEPS), params, 500)
    elif arm == "RLHF":

        def collect(policy: Params, turn: int) -> feedback.Pairs:
            return feedback.sampled_pairs(
                lab, model, policy, known, samples=SAMPLES, seed=seed + 1000 * turn
            )

        prompts = [{"prompt": p.question, "result": p.result} for p in problems(seed)]
        params, _ = feedback.align(
            lab, f"overfitting_{seed}", folder, model, params, [collect, collect], prompts,
            seed=seed, max_new_tokens=rlhf.NEW,
        )  # fmt: skip
    few = problems(seed)[: lab.form.items]
    found = {}
    for key, side in (("trained", _probe(few)), ("unseen", rlhf.held_out(lab))):
        texts = answers(
            model, params, family.tokenizer(lab), side.questions, max_new_tokens=rlhf.NEW,
            seed=seed, **rlhf.CHAT,
        )  # fmt: skip
        found[key] = side.grade(texts)
    return found


def _probe(found: list[Problem]) -> Probe:
    return Probe([each.question for each in found], probe(found).grade, rlhf.NEW)


def judge(lab: Lab, measured: Measured) -> Outcome:
    """Compares how far trained prompts are ahead of unseen ones after longer SFT and RLHF."""
    rows = [
        row(measured, arm, key, f"{arm}: sums right, {name}")
        for arm in ARMS
        for key, name in _SIDES.items()
    ]
    gaps = {arm: _gaps(measured, arm) for arm in ARMS}
    rows += [
        Row(f"{arm}: trained minus unseen prompts", *mean([[g] for g in gap]), per_seed=tuple(gap))
        for arm, gap in gaps.items()
    ]
    found = mean([[a - b] for a, b in zip(gaps["SFT, longer"], gaps["RLHF"], strict=True)])
    return Outcome(
        rows,
        verdict_of(found.low, found.high),
        (found.low, found.high),
        f"after longer SFT, trained prompts are ahead of unseen ones by "
        f"{100 * mean([[g] for g in gaps['SFT, longer']]).estimate:+.1f} points, after RLHF on the "
        f"same prompts by {100 * mean([[g] for g in gaps['RLHF']]).estimate:+.1f}",
    )


def _gaps(measured: Measured, arm: str) -> list[float]:
    return [
        sum(found["trained"]) / len(found["trained"]) - sum(found["unseen"]) / len(found["unseen"])
        for _, found in sorted(measured[arm].items())
    ]


CLAIMS = (
    Claim(
        number=0,
        name="overfitting",
        report="3.2",
        title="SFT overfits more than RLHF",
        statement="SFT is effective, but its generalization is limited and it is prone to "
        "overfitting, which RLHF addresses.",
        rule="holds if the 95 % interval (over seeds) of the gap between trained and unseen "
        "prompts, after longer SFT minus after RLHF on the same prompts, lies above zero",
        cells=cells,
        judge=judge,
    ),
)
