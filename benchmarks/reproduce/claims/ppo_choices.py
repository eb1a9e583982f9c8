"""Report 3.2.2: each choice of PPO undone, with the reward model of own samples.

Every arm has the same SFT model, reward model, prompts, number of completions and learning rates.
"""

import pathlib
from typing import Any

from benchmarks.reproduce import family, stages
from benchmarks.reproduce.bootstrap import difference, mean
from benchmarks.reproduce.claim import Cell, Curve, Measured, Outcome, Row, verdict_of
from benchmarks.reproduce.claims import rlhf
from benchmarks.reproduce.lab import Claim, Lab, rows_of
from benchmarks.reproduce.scoring import rights

REPORT = "as in the report"
ARMS: dict[str, dict[str, Any]] = {
    REPORT: {},
    "no value warm-up": {"value_warmup_steps": 0},
    "one sample, twice the prompts": {"samples_per_prompt": 1},
    "top-p 1.0": {"top_p": 1.0},
    "no value clip": {"value_clip": 1e6},
    "no KL penalty": {"kl_coefficient": 0.0},
    "five times the KL penalty": {"kl_coefficient": 0.2},
}
_LAST = 0.2  # of the steps: what "at the end" averages over


def cells(lab: Lab) -> list[Cell]:
    """Returns an arm for each choice; three seeds."""
    cost = lab.cost(family.SIZES[rlhf.SIZE], lab.form.steps(rlhf.PPO_STEPS), 3 * rlhf.BATCH, 96)
    return [
        Cell(arm, seed, lambda arm=arm, seed=seed: _run(lab, arm, seed), **cost)
        for seed in lab.form.costly().seeds
        for arm in ARMS
    ]


def _run(lab: Lab, arm: str, seed: int) -> dict[str, Any]:
    model, _ = rlhf.sft_model(lab, seed)
    reward_folder, source = _reward_model(lab, seed)
    settings: dict[str, Any] = {"value_warmup_steps": lab.form.steps(10)} | ARMS[arm]
    params, curves = stages.train_policy(
        lab,
        f"choice_{arm.replace(' ', '_').replace(',', '')}_{seed}",
        rlhf.sft_folder(lab, seed),
        rlhf.prompts(seed, 2000),
        steps=lab.form.steps(rlhf.PPO_STEPS),
        seed=seed,
        batch_size=rlhf.BATCH,
        reward_folder=reward_folder,
        **settings,
    )
    right = rights(model, params, family.tokenizer(lab), rlhf.held_out(lab), max_new_tokens=32)
    ends = {name: _end(points) for name, points in curves.items()}
    return {"curves": curves, "right": right, "end": ends, "preferences": source}


def _reward_model(lab: Lab, seed: int) -> tuple[pathlib.Path, str]:
    """Returns the reward model of the SFT model's own samples, and what its pairs are of.

    A model that is never or always right has no pair: its pairs are of template answers.
    """
    model, params = rlhf.sft_model(lab, seed)
    for source in ("samples", "templates"):
        name = f"reward_choices_{source}_{seed}"
        if (lab.folder / "runs" / name).exists():
            pairs = []  # its file is there
        elif source == "samples":
            pairs = rlhf.sampled_pairs(lab, model, params, seed)
            if not pairs:
                continue
        else:
            pairs = rlhf.template_pairs(seed)
        folder = stages.train_reward_model(
            lab, name, rlhf.sft_folder(lab, seed), pairs,
            steps=lab.form.steps(rlhf.REWARD_STEPS), seed=seed,
        )  # fmt: skip
        return folder, source
    raise AssertionError("there are always template answers")


def _end(points: list[tuple[float, float]]) -> float:
    last = points[-max(1, round(_LAST * len(points))) :]
    return sum(value for _, value in last) / len(last)


def judge(lab: Lab, measured: Measured) -> Outcome:
    """Compares entropy and reward of top-p 0.9 with 1.0; the other choices are rows."""
    rows, curves = [], {}
    for arm, by_seed in measured.items():
        values = rows_of(measured, arm, "right")
        per_seed = tuple(sum(row) / len(row) for row in values)
        rows.append(Row(f"{arm}: held-out sums right", *mean(values), per_seed=per_seed))
        for name in next(iter(by_seed.values()))["end"]:
            ends = [[found["end"][name]] for found in by_seed.values()]
            rows.append(
                Row(
                    f"{arm}: {name} at the end",
                    *mean(ends),
                    per_seed=tuple(value for (value,) in ends),
                    percent=False,
                )
            )
            lines = curves.setdefault(name, {})
            lines[arm] = _mean_line([found["curves"][name] for found in by_seed.values()])
    found = difference(_ends(measured, REPORT), _ends(measured, "top-p 1.0"))
    return Outcome(
        rows,
        verdict_of(found.low, found.high),
        (found.low, found.high),
        f"top-p 0.9 instead of 1.0 changes the reward at the end by {found.estimate:+.3f}"
        + _on_templates(measured),
        [Curve(name.capitalize(), "step", name, lines) for name, lines in curves.items()],
    )


def _on_templates(measured: Measured) -> str:
    """Names the seeds whose reward model could not learn from own samples; "" if there are none."""
    cells = measured[REPORT].items()
    seeds = [str(seed) for seed, found in cells if found["preferences"] == "templates"]
    listed = ", ".join(seeds)
    return f"; seed {listed}: the model has no own pairs, template answers instead" if seeds else ""


def _ends(measured: Measured, arm: str) -> list[list[float]]:
    return [[found["end"]["reward"]] for found in measured[arm].values()]


def _mean_line(lines: list[list[tuple[float, float]]]) -> list[tuple[float, float]]:
    return [
        (points[0][0], sum(value for _, value in points) / len(points))
        for points in zip(*lines, strict=True)
    ]


CLAIMS = (
    Claim(
        number=9,
        name="ppo_choices",
        report="3.2.2",
        title="The choices of PPO",
        statement="The value model is warmed up for 50 steps, two responses are sampled per "
        "prompt, and top-p 0.9 instead of 1.0 lowers the entropy slightly and gives a reward that "
        "rises faster and higher.",
        rule="holds if the 95 % interval of the reward at the end, top-p 0.9 minus 1.0, lies above "
        "zero",
        cells=cells,
        judge=judge,
    ),
)
