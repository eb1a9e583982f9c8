"""Report 3.2, Figure 4: RLHF with a learned reward model beats SFT, judged by the true checker.

The reward model is trained on template answers that no model wrote, on the SFT model's own samples,
or on these and once more on samples of the policy that PPO has made, as the report does. Two more
arms have template answers with five times the KL penalty, and the true checker as the reward, for
PPO and for GRPO at equal samples. Responses are sampled as the released chat models sample them.
"""

import pathlib
from collections.abc import Callable
from typing import Any

from benchmarks.reproduce import family, feedback, stages, study
from benchmarks.reproduce.bootstrap import difference
from benchmarks.reproduce.claim import Cell, Curve, Measured, Outcome, Row, verdict_of
from benchmarks.reproduce.lab import Claim, Lab, rows_of
from benchmarks.reproduce.learner import train
from benchmarks.reproduce.scoring import answers
from benchmarks.reproduce.study import Probe, conversations, probe
from benchmarks.reproduce.tables import row
from qwen_jax.config import ModelConfig
from qwen_jax.synthetic.worlds import sums
from qwen_jax.synthetic.worlds.problem import Problem, sample
from qwen_jax.types import Params

SIZE, NEW = "0.6m", 24  # tokens of a response, at most
LEVELS = ("one digit", "two digits", "times one digit")
SFT_STEPS = 3000
SAMPLES, PROMPTS = 4, 800  # responses per prompt, and prompts, that preferences are collected from
CHAT = {"temperature": 1.0, "top_p": 0.8}  # generation_config.json of the released chat models
ARMS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {  # sources of pairs, settings of PPO
    "template answers": (("templates",), {}),
    "template answers, 5 x KL": (("templates",), {"kl_coefficient": 0.2}),
    "own samples": (("samples",), {}),
    "own samples, twice": (("samples", "samples"), {}),
}
CHECKER = {"checker (PPO)": "ppo", "checker (GRPO)": "grpo"}


def cells(lab: Lab) -> list[Cell]:
    """Returns the SFT model, an arm for each source of preferences, and the checker's; 3 seeds."""
    cost = lab.cost(family.SIZES[SIZE], lab.form.steps(feedback.PPO_STEPS), 3 * feedback.BATCH, 96)
    return [
        Cell(arm, seed, lambda arm=arm, seed=seed: _run(lab, arm, seed), **cost)
        for seed in lab.form.costly().seeds
        for arm in ("SFT", *ARMS, *CHECKER)
    ]


def _run(lab: Lab, arm: str, seed: int) -> dict[str, Any]:
    """Returns what is right, sampled and greedy, and how often the reward model is right."""
    model, params = sft_model(lab, seed)
    tokenizer, asked = family.tokenizer(lab), held_out(lab)
    found: dict[str, Any] = {}
    if arm in ARMS:
        sources, settings = ARMS[arm]
        collect: dict[str, Callable[[Params, int], feedback.Pairs]] = {
            "templates": lambda params, turn: template_pairs(seed),
            "samples": lambda params, turn: sampled_pairs(lab, model, params, seed, turn),
        }
        start = params
        params, found = feedback.align(
            lab, f"rlhf_{sources[0]}_{seed}", sft_folder(lab, seed), model, params,
            [collect[s] for s in sources], prompts(seed, 2000), seed=seed,
            variant="_kl" if settings else "", max_new_tokens=NEW, **settings,
        )  # fmt: skip
        if folder := found.pop("reward_model", ""):
            # The SFT model's own held-out samples: the same pairs for every reward model.
            pairs = feedback.sampled_pairs(lab, model, start, asked, samples=4, seed=seed)
            if pairs:
                found["agrees"] = stages.pair_accuracy(
                    lab, model, tokenizer, pathlib.Path(folder), pairs, f"rlhf_{seed}"
                )
    elif arm in CHECKER:
        params, curves = feedback.policy(
            lab, f"{CHECKER[arm]}_checker_{seed}", sft_folder(lab, seed), prompts(seed, 2000),
            seed=seed, reward_folder=None, objective=CHECKER[arm], max_new_tokens=NEW,
        )  # fmt: skip
        found = {"curves": curves}
    for key, settings in (("right", CHAT), ("greedy", {})):
        texts = answers(
            model, params, tokenizer, asked.questions, max_new_tokens=NEW, seed=seed, **settings
        )
        found[key] = asked.grade(texts)
    return found


def held_out(lab: Lab) -> Probe:
    """Returns the sums that no stage has seen."""
    return _probe(sample(sums.make, LEVELS, lab.form.items, seed=0, held_out=True, distinct=True))


def _probe(problems: list[Problem]) -> Probe:
    return Probe([each.question for each in problems], probe(problems).grade, NEW)


def sft_folder(lab: Lab, seed: int) -> pathlib.Path:
    """Returns the folder of the model that RLHF starts from."""
    return lab.folder / "models" / f"rlhf_sft_{seed}"


def sft_model(lab: Lab, seed: int) -> tuple[ModelConfig, Params]:
    """Returns the model that RLHF starts from: right on some of the sums, wrong on others."""
    model, start = family.base(lab, SIZE)
    tokenizer, steps = family.tokenizer(lab), lab.form.steps(SFT_STEPS)

    def make() -> Params:
        problems = sample(sums.make, LEVELS, study.PER_STEP * steps, seed=seed, held_out=False)
        rows = conversations(lab, [(each.question, each.answer) for each in problems])
        return train(model, rows, study.schedule(steps), seed=seed, start=start)

    return model, lab.model(f"rlhf_sft_{seed}", model, tokenizer, make)


def prompts(seed: int, number: int) -> list[dict[str, str]]:
    """Returns rows of prompts, none of them held out."""
    problems = sample(sums.make, LEVELS, number, seed=seed + 1, held_out=False)
    return [{"prompt": each.question, "result": each.result} for each in problems]


def template_pairs(seed: int) -> feedback.Pairs:
    """Returns pairs of a right answer and one with an error of 1, 2 or 10: nobody sampled it."""
    problems = sample(sums.make, LEVELS, 4 * PROMPTS, seed=seed + 2, held_out=False)
    return [
        {"prompt": each.question, "chosen": each.answer, "rejected": each.wrong}
        for each in problems
    ]


def sampled_pairs(
    lab: Lab, model: ModelConfig, params: Params, seed: int, turn: int = 0
) -> feedback.Pairs:
    """Returns pairs of a model's samples, of other prompts in every round."""
    problems = sample(sums.make, LEVELS, PROMPTS, seed=seed + 3 + 1000 * turn, held_out=False)
    return feedback.sampled_pairs(
        lab, model, params, _probe(problems), samples=SAMPLES, seed=seed + 1000 * turn
    )


def judge(lab: Lab, measured: Measured) -> Outcome:
    """Compares RLHF on own samples, collected twice, with SFT on held-out sums."""
    sft = rows_of(measured, "SFT", "right")
    rows, curves = [], {}
    for arm, by_seed in measured.items():
        rows.append(row(measured, arm, "right", f"{arm}: held-out sums right, sampled"))
        rows.append(row(measured, arm, "greedy", f"{arm}: held-out sums right, greedy"))
        if arm != "SFT":
            gain = difference(rows_of(measured, arm, "right"), sft)
            rows.append(Row(f"{arm}: minus SFT, sampled", *gain))
        if arm in ARMS:
            rows += _agreement(measured, arm)
        for seed, found in by_seed.items():
            for name, points in found.get("curves", {}).items():
                curves.setdefault(name, {}).setdefault(arm, {})[seed] = points
    found = difference(rows_of(measured, "own samples, twice", "right"), sft)
    fooled = difference(rows_of(measured, "template answers", "right"), sft)
    return Outcome(
        rows,
        verdict_of(found.low, found.high),
        (found.low, found.high),
        f"PPO on the reward model of own samples, collected twice, changes held-out sums right by "
        f"{100 * found.estimate:+.1f} points; on that of template answers by "
        f"{100 * fooled.estimate:+.1f}{_judged(measured)}{_without_pairs(measured)}",
        [
            Curve(name, "step", name, {arm: _mean(lines) for arm, lines in arms.items()})
            for name, arms in curves.items()
        ],
    )


def _judged(measured: Measured) -> str:
    """Says how many pairs of held-out samples each reward model orders right."""
    shares = [f"{r.ours:.0%} ({arm})" for arm in ARMS for r in _agreement(measured, arm)]
    return f"; pairs of held-out samples that its reward model orders right: {', '.join(shares)}"


def _agreement(measured: Measured, arm: str) -> list[Row]:
    """Returns how often a reward model prefers the right one of two held-out samples, by seed."""
    shares = [
        sum(found["agrees"]) / len(found["agrees"])
        for found in measured[arm].values()
        if found.get("agrees")
    ]
    if not shares:
        return []
    by_seed = {seed: {"share": share} for seed, share in enumerate(shares)}
    name = f"{arm}: pairs of the SFT model's held-out samples that the reward model orders right"
    return [row({arm: by_seed}, arm, "share", name)]


def _mean(lines: dict[int, list[tuple[float, float]]]) -> list[tuple[float, float]]:
    return [
        (points[0][0], sum(value for _, value in points) / len(points))
        for points in zip(*lines.values(), strict=False)
    ]


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
        rule="holds if the 95 % interval of PPO minus SFT in held-out sums right, sampled with "
        "top-p 0.8 as the released chat models do, lies above zero; the reward model is trained on "
        "own samples collected twice",
        cells=cells,
        judge=judge,
    ),
)
