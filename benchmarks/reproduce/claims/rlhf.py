"""Report 3.2, Figure 4: RLHF with a learned reward model beats SFT, judged by the true checker.

The reward model is trained on template answers that no model wrote, on the SFT model's own samples,
or on these and once more on samples of the policy that PPO has made, as the report does. The last
arm has the true checker as its reward, for GRPO at equal samples.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

from benchmarks.reproduce import family, stages
from benchmarks.reproduce.bootstrap import difference, mean
from benchmarks.reproduce.claim import Cell, Curve, Measured, Outcome, Row, verdict_of
from benchmarks.reproduce.lab import Claim, Lab, rows_of
from benchmarks.reproduce.learner import Schedule, train
from benchmarks.reproduce.scoring import answers, rights
from benchmarks.reproduce.study import conversations
from qwen_jax.config import ModelConfig
from qwen_jax.synthetic.worlds import sums
from qwen_jax.synthetic.worlds.problem import Problem, is_right, sample
from qwen_jax.types import Params

SIZE, BATCH = "0.6m", 32
LEVELS = ("one digit", "two digits", "times one digit")
SFT_STEPS, REWARD_STEPS, PPO_STEPS = 250, 150, 120
SAMPLES, PROMPTS = 8, 400  # responses per prompt, and prompts, that preferences are collected from
ARMS = {
    "template answers": ("templates",),
    "own samples": ("samples",),
    "own samples, twice": ("samples", "policy"),
}


def cells(lab: Lab) -> list[Cell]:
    """Returns the SFT model, an arm for each source of preferences, and the checker."""
    cost = lab.cost(family.SIZES[SIZE], lab.form.steps(PPO_STEPS), 3 * BATCH, 96)
    arms = ["SFT", *ARMS, "checker (GRPO)"]
    return [
        Cell(arm, seed, lambda arm=arm, seed=seed: _run(lab, arm, seed), **cost)
        for seed in lab.form.seeds
        for arm in arms
    ]


def _run(lab: Lab, arm: str, seed: int) -> dict[str, Any]:
    model, params = sft_model(lab, seed)
    found: dict[str, Any] = {}
    if arm in ARMS:
        params, found = _with_learned_reward(lab, arm, seed, params)
    elif arm != "SFT":
        params, curves = stages.train_policy(
            lab, f"grpo_{seed}", sft_folder(lab, seed), prompts(seed, 2000),
            steps=lab.form.steps(PPO_STEPS), seed=seed, batch_size=BATCH, objective="grpo",
        )  # fmt: skip
        found = {"curves": curves}
    return found | {
        "right": rights(model, params, family.tokenizer(lab), held_out(lab), max_new_tokens=32)
    }


def held_out(lab: Lab) -> list[Problem]:
    """Returns the sums that no stage has seen."""
    return sample(sums.make, LEVELS, lab.form.items, seed=0, held_out=True, distinct=True)


def sft_folder(lab: Lab, seed: int) -> pathlib.Path:
    """Returns the folder of the model that RLHF starts from."""
    return lab.folder / "models" / f"rlhf_sft_{seed}"


def sft_model(lab: Lab, seed: int) -> tuple[ModelConfig, Params]:
    """Returns the model that RLHF starts from: right on some of the sums, wrong on others."""
    model, start = family.base(lab, SIZE)
    tokenizer, steps = family.tokenizer(lab), lab.form.steps(SFT_STEPS)

    def make() -> Params:
        problems = sample(sums.make, LEVELS, 20 * steps, seed=seed, held_out=False)
        rows = conversations(lab, [(each.question, each.answer) for each in problems])
        return train(model, rows, Schedule(steps, 2e-3, 8, cosine=False), seed=seed, start=start)

    return model, lab.model(f"rlhf_sft_{seed}", model, tokenizer, make)


def _with_learned_reward(
    lab: Lab, arm: str, seed: int, params: Params
) -> tuple[Params, dict[str, Any]]:
    """Trains a reward model and PPO on it, as often as the arm says."""
    model, sft = family.SIZES[SIZE], sft_folder(lab, seed)
    pairs: list[dict[str, str]] = []
    found: dict[str, Any] = {}
    for turn, source in enumerate(ARMS[arm]):
        name = f"{arm.replace(' ', '_').replace(',', '')}_{seed}_{turn}"
        if source == "templates":
            pairs += template_pairs(seed)
        else:
            pairs += sampled_pairs(lab, model, params, seed + 1000 * turn)
        if not pairs:  # nothing to learn a reward from: the model stays as it is
            return params, {"curves": {}, "pairs": 0}
        judge = stages.train_reward_model(
            lab, f"reward_{name}", sft, pairs, steps=lab.form.steps(REWARD_STEPS), seed=seed
        )
        params, curves = stages.train_policy(
            lab, f"ppo_{name}", sft, prompts(seed, 2000),
            steps=lab.form.steps(PPO_STEPS), seed=seed, batch_size=BATCH, reward_folder=judge,
            value_warmup_steps=lab.form.steps(10),
        )  # fmt: skip
        found = {"curves": curves, "pairs": len(pairs)}
    return params, found


def prompts(seed: int, number: int) -> list[dict[str, str]]:
    """Returns rows of prompts, none of them held out."""
    problems = sample(sums.make, LEVELS, number, seed=seed + 1, held_out=False)
    return [{"prompt": each.question, "result": each.result} for each in problems]


def template_pairs(seed: int) -> list[dict[str, str]]:
    """Returns pairs of a right answer and one with an error of 1, 2 or 10: nobody sampled it."""
    problems = sample(sums.make, LEVELS, 4 * PROMPTS, seed=seed + 2, held_out=False)
    return [
        {"prompt": each.question, "chosen": each.answer, "rejected": each.wrong}
        for each in problems
    ]


def sampled_pairs(lab: Lab, model: ModelConfig, params: Params, seed: int) -> list[dict[str, str]]:
    """Returns pairs of a right and a wrong sample of the model, judged by the checker.

    There are none if the model is never or always right.
    """
    problems = sample(sums.make, LEVELS, PROMPTS, seed=seed + 3, held_out=False)
    repeated = [each for each in problems for _ in range(SAMPLES)]
    texts = answers(
        model,
        params,
        family.tokenizer(lab),
        [each.question for each in repeated],
        max_new_tokens=32,
        temperature=1.0,
        seed=seed,
    )
    found = []
    for index, problem in enumerate(problems):
        sampled = texts[index * SAMPLES : (index + 1) * SAMPLES]
        found += pairs_of(problem, sampled)
    return found


def pairs_of(problem: Problem, texts: Sequence[str]) -> list[dict[str, str]]:
    """Returns up to four pairs of different texts, one right and one wrong."""
    right = list(dict.fromkeys(text for text in texts if is_right(problem, text)))
    wrong = list(dict.fromkeys(text for text in texts if not is_right(problem, text)))
    return [
        {"prompt": problem.question, "chosen": good, "rejected": bad}
        for good in right[:2]
        for bad in wrong[:2]
        if good.strip() and bad.strip()
    ]


def judge(lab: Lab, measured: Measured) -> Outcome:
    """Compares RLHF on own samples, collected twice, with SFT on held-out sums."""
    sft = rows_of(measured, "SFT", "right")
    rows, curves = [], {}
    for arm in measured:
        values = rows_of(measured, arm, "right")
        per_seed = tuple(sum(row) / len(row) for row in values)
        rows.append(Row(f"{arm}: held-out sums right", *mean(values), per_seed=per_seed))
        if arm != "SFT":
            gain = difference(values, sft)
            rows.append(Row(f"{arm}: minus SFT", *gain))
            for seed, found in measured[arm].items():
                for name, points in found["curves"].items():
                    curves.setdefault(name, {})[f"{arm}, seed {seed}"] = points
    found = difference(rows_of(measured, "own samples, twice", "right"), sft)
    return Outcome(
        rows,
        verdict_of(found.low, found.high),
        (found.low, found.high),
        f"PPO on the reward model of own samples changes held-out sums right by "
        f"{100 * found.estimate:+.1f} points{_without_pairs(measured)}",
        [Curve(name.capitalize(), "step", name, lines) for name, lines in curves.items()],
    )


def _without_pairs(measured: Measured) -> str:
    """Names the cells in which nothing was trained; "" if there are none."""
    cells = [
        f"{arm}, seed {seed}"
        for arm in ARMS
        for seed, found in measured[arm].items()
        if not found["pairs"]
    ]
    listed = "; ".join(cells)
    return f"; not trained, without a prompt of right and wrong samples: {listed}" if cells else ""


CLAIMS = (
    Claim(
        number=8,
        name="rlhf",
        report="3.2, 3.3, Figure 4",
        title="RLHF with a learned reward model beats SFT",
        statement="People prefer the answers of the RLHF model to those of the SFT model.",
        rule="holds if the 95 % interval of PPO minus SFT in held-out sums right, with a reward "
        "model of own samples collected twice, lies above zero",
        cells=cells,
        judge=judge,
    ),
)
