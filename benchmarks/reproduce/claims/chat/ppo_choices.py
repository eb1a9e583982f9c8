"""Report 3.2.2: each choice of PPO undone, with the reward model of own samples.

Every arm has the same SFT model, reward model, prompts, number of completions and learning rates.
The alignment tax is the loss on documentation, which the base was pretrained on.
"""

import functools
import pathlib
from typing import Any

from benchmarks.reproduce import family, feedback
from benchmarks.reproduce.bootstrap import difference, mean
from benchmarks.reproduce.claim import Cell, Curve, Measured, Outcome, Row, verdict_of
from benchmarks.reproduce.claims.chat import rlhf
from benchmarks.reproduce.lab import Claim, Lab
from benchmarks.reproduce.learner import held_out_losses
from benchmarks.reproduce.scoring import answers
from benchmarks.reproduce.tables import gap, row
from qwen_jax.data import shards
from qwen_jax.data.document import Document

REPORT, GRADIENT = "as in the report", "pretraining gradient"
ARMS: dict[str, dict[str, Any]] = {
    REPORT: {},
    "no value warm-up": {"value_warmup_steps": 0},
    "one sample, twice the prompts": {"samples_per_prompt": 1},
    "top-p 1.0": {"top_p": 1.0},
    "no value clip": {"value_clip": 1e6},
    "no KL penalty": {"kl_coefficient": 0.0},
    "five times the KL penalty": {"kl_coefficient": 0.2},
    GRADIENT: {"pretrain_coefficient": 0.1},
    "pretraining gradient, 30 times as large": {"pretrain_coefficient": 3.0},
}
_SMOKE = (REPORT, "top-p 1.0", GRADIENT)  # each arm compiles a program of its own
_PRETRAIN_RATIO = 0.25  # ours: 8 sequences per step, for two CPU cores
_LAST = 0.2  # of the steps: what "at the end" averages over
_CHUNKS = 16  # held-out parts of 2,048 tokens


def cells(lab: Lab) -> list[Cell]:
    """Returns the SFT model and an arm for each choice; three seeds."""
    cost = lab.cost(
        family.SIZES[rlhf.SIZE], lab.form.steps(feedback.PPO_STEPS), 3 * feedback.BATCH, 96
    )
    return [
        Cell(arm, seed, lambda arm=arm, seed=seed: _run(lab, arm, seed), **cost)
        for seed in lab.form.costly().seeds
        for arm in ("SFT", *(_SMOKE if lab.form.name == "smoke" else ARMS))
    ]


def _run(lab: Lab, arm: str, seed: int) -> dict[str, Any]:
    model, params = rlhf.sft_model(lab, seed)
    tokenizer, found = family.tokenizer(lab), {}
    if arm != "SFT":
        start, settings = rlhf.sft_folder(lab, seed), dict(ARMS[arm])
        name, judge = _reward_model(lab, seed)
        if "pretrain_coefficient" in settings:
            settings |= {"pretrain": _shards(lab), "pretrain_ratio": _PRETRAIN_RATIO}
        if arm != REPORT:
            name = f"choice_{arm.replace(' ', '_').replace(',', '')}_{seed}"
        params, curves = feedback.policy(
            lab, name, start, rlhf.prompts(seed, 2000), seed=seed, reward_folder=judge,
            max_new_tokens=rlhf.NEW, **settings,
        )  # fmt: skip
        ends = {name: _end(points) for name, points in curves.items()}
        found = {"curves": curves, "end": ends, "templates": "templates" in judge.name}
    asked = rlhf.held_out(lab)
    texts = answers(
        model, params, tokenizer, asked.questions, max_new_tokens=rlhf.NEW, seed=seed, **rlhf.CHAT
    )
    docs = family.text(lab).held_out["docs"]
    return found | {
        "right": asked.grade(texts),
        "docs": held_out_losses(model, params, docs, family.LENGTH, chunks=_CHUNKS),
    }


@functools.cache
def _reward_model(lab: Lab, seed: int) -> tuple[str, pathlib.Path]:
    """Returns the first reward model of claim 8's arm with own samples: its name and its folder."""
    model, params = rlhf.sft_model(lab, seed)
    pairs, name = rlhf.sampled_pairs(lab, model, params, seed), f"rlhf_samples_{seed}_0"
    if not pairs:  # the model is never or always right
        pairs, name = rlhf.template_pairs(seed), f"rlhf_templates_{seed}_0"
    return name, feedback.reward_model(lab, name, rlhf.sft_folder(lab, seed), pairs, seed=seed)


def _shards(lab: Lab) -> str:
    """Returns the folder of documentation as token shards, for the pretraining gradient."""
    folder = lab.folder / "docs_shards"
    if not folder.exists():
        texts = [t for t in family.all_documents(lab)["docs"] if not family.is_kept_out(t)]
        documents = (Document(str(i), text) for i, text in enumerate(texts))
        shards.write(documents, folder, family.tokenizer(lab))
    return str(folder / "train")


def _end(points: list[tuple[float, float]]) -> float:
    last = points[-max(1, round(_LAST * len(points))) :]
    return sum(value for _, value in last) / len(last)


def judge(lab: Lab, measured: Measured) -> Outcome:
    """Compares entropy and reward of top-p 0.9 with 1.0; the other choices are rows."""
    rows, curves = _rows(measured)
    found = difference(_ends(measured, REPORT), _ends(measured, "top-p 1.0"))
    entropy = "entropy (nats per token)"
    lower = difference(_ends(measured, REPORT, entropy), _ends(measured, "top-p 1.0", entropy))
    return Outcome(
        rows,
        verdict_of(found.low, found.high),
        (found.low, found.high),
        f"top-p 0.9 instead of 1.0 changes the reward at the end by {found.estimate:+.3f}, and the "
        f"entropy by {lower.estimate:+.3f}{_on_templates(measured)}",
        curves,
    )


def _judge_tax(lab: Lab, measured: Measured) -> Outcome:
    """Compares the loss on documentation with and without the pretraining gradient."""
    rows = [
        row(measured, arm, "docs", f"{arm}: loss on documentation (nats per token)", percent=False)
        for arm in measured
    ]
    rows += [row(measured, arm, "right", f"{arm}: held-out sums right") for arm in measured]
    found = gap(measured, REPORT, GRADIENT, "docs")
    tax = gap(measured, REPORT, "SFT", "docs")
    sums = gap(measured, GRADIENT, REPORT, "right")
    return Outcome(
        rows,
        verdict_of(found.low, found.high),
        (found.low, found.high),
        f"PPO without it changes the loss on documentation by {tax.estimate:+.3f} nats per token; "
        f"with it, the loss is {found.estimate:+.3f} lower than without, and sums right change by "
        f"{100 * sums.estimate:+.1f} points",
    )


def _rows(measured: Measured) -> tuple[list[Row], list[Curve]]:
    rows, curves = [], {}
    for arm, by_seed in measured.items():
        rows.append(row(measured, arm, "right", f"{arm}: held-out sums right"))
        if arm == "SFT":
            continue
        for name in next(iter(by_seed.values()))["end"]:
            ends = _ends(measured, arm, name)
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
    return rows, [Curve(name, "step", name, lines) for name, lines in curves.items()]


def _on_templates(measured: Measured) -> str:
    """Names the seeds whose reward model could not learn from own samples; "" if there are none."""
    cells = measured[REPORT].items()
    seeds = [str(seed) for seed, found in cells if found["templates"]]
    listed = ", ".join(seeds)
    return f"; seed {listed}: the model has no own pairs, template answers instead" if seeds else ""


def _ends(measured: Measured, arm: str, name: str = "reward") -> list[list[float]]:
    return [[found["end"][name]] for found in measured[arm].values()]


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
    Claim(
        number=9,
        name="ppo_pretraining",
        report="3.2.2",
        title="A pretraining gradient mitigates the alignment tax",
        statement="The alignment tax is mitigated by a pretraining gradient, with much more "
        "pretraining data than RLHF data; with a coefficient that is too large the reward is not "
        "learned, with one that is too small it has little effect.",
        rule="holds if the 95 % interval of the loss on documentation after PPO without, minus "
        "with a pretraining gradient, lies above zero",
        cells=cells,
        judge=_judge_tax,
        group="ppo_choices",
    ),
)
