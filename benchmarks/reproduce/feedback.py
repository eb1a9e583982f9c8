"""Feedback on a model's own samples: pairs, a reward model, and PPO on it, in rounds. Report: 3.2.

A checker stands for the people who compare responses. The report collects comparisons of samples of
the policy several times; each round here adds pairs, trains a reward model on all pairs so far, and
runs PPO from the SFT model.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.reproduce import family, stages
from benchmarks.reproduce.lab import Lab
from benchmarks.reproduce.scoring import answers
from benchmarks.reproduce.study import Probe
from qwen_jax.config import ModelConfig
from qwen_jax.types import Params

BATCH = 32  # completions per step of PPO
REWARD_STEPS, PPO_STEPS, WARMUP = 300, 300, 10
PER_SIDE = 2  # right and wrong samples of a prompt that are paired with each other
Pairs = list[dict[str, str]]


def sampled_pairs(
    lab: Lab, model: ModelConfig, params: Params, probe: Probe, *, samples: int, seed: int
) -> Pairs:
    """Returns pairs of a right and a wrong sample of the model, for the questions of a probe.

    There are none if the model is never or always right.
    """
    tokenizer, texts, grades = family.tokenizer(lab), [], []
    for index in range(samples):
        texts.append(
            answers(
                model,
                params,
                tokenizer,
                probe.questions,
                max_new_tokens=probe.max_new_tokens,
                temperature=1.0,
                seed=seed * samples + index,
            )
        )
        grades.append(probe.grade(texts[-1]))
    return [
        pair
        for question, of_question, right in zip(
            probe.questions, zip(*texts, strict=True), zip(*grades, strict=True), strict=True
        )
        for pair in pairs_of(question, of_question, right)
    ]


def pairs_of(question: str, texts: Sequence[str], right: Sequence[int]) -> Pairs:
    """Returns up to four pairs of different texts, one right and one wrong."""
    sides: tuple[dict[str, None], dict[str, None]] = ({}, {})
    for text, good in zip(texts, right, strict=True):
        if text.strip():  # an empty response cannot be in a pair
            sides[bool(good)][text] = None
    return [
        {"prompt": question, "chosen": good, "rejected": bad}
        for good in list(sides[1])[:PER_SIDE]
        for bad in list(sides[0])[:PER_SIDE]
    ]


def align(
    lab: Lab,
    name: str,
    start: pathlib.Path,
    model: ModelConfig,
    params: Params,
    rounds: Sequence[Callable[[Params, int], Pairs]],
    prompts: Sequence[Mapping[str, Any]],
    *,
    seed: int,
    variant: str = "",
    **settings: Any,
) -> tuple[Params, dict[str, Any]]:
    """Trains a reward model and PPO on it, as often as there are rounds.

    Args:
      name: of the runs; rounds that other calls with this name have run are not run again.
      variant: of the policies' names: other settings of PPO, on the same reward models.
      start: the SFT model's folder, whose parameters are `params`.
      rounds: each takes the newest policy and the index of the round, and returns its new pairs.
      prompts: of PPO.
      settings: changes to the report's PPO.

    Returns:
      The policy, and {"pairs": number, "curves": name -> points, "reward_model": folder}.
    """
    pairs: Pairs = []
    found: dict[str, Any] = {"curves": {}, "pairs": 0}
    for turn, collect in enumerate(rounds):
        pairs += collect(params, turn)
        if not pairs:  # nothing to learn a reward from: the model stays as it is
            break
        judge = reward_model(lab, f"{name}_{turn}", start, pairs, seed=seed)
        params, curves = policy(
            lab,
            f"{name}_{turn}{variant}",
            start,
            prompts,
            seed=seed,
            reward_folder=judge,
            **settings,
        )
        found = {"curves": curves, "pairs": len(pairs), "reward_model": str(judge)}
    return params, found


def reward_model(
    lab: Lab, name: str, start: pathlib.Path, pairs: Pairs, *, seed: int
) -> pathlib.Path:
    """Returns the folder of a reward model that is trained on pairs."""
    steps = lab.form.steps(REWARD_STEPS)
    return stages.train_reward_model(lab, f"reward_{name}", start, pairs, steps=steps, seed=seed)


def policy(
    lab: Lab,
    name: str,
    start: pathlib.Path,
    prompts: Sequence[Mapping[str, Any]],
    *,
    seed: int,
    reward_folder: pathlib.Path | None,
    **settings: Any,
) -> tuple[Params, stages.Curves]:
    """Returns a policy that PPO trains, and its curves; None: the reward is the true checker's."""
    warmup: dict[str, Any] = {"value_warmup_steps": lab.form.steps(WARMUP)}
    if settings.get("objective") == "grpo":  # it has no value model
        warmup = {}
    return stages.train_policy(
        lab, f"ppo_{name}", start, prompts, steps=lab.form.steps(PPO_STEPS), seed=seed,
        batch_size=BATCH, reward_folder=reward_folder, **warmup | settings,
    )  # fmt: skip
