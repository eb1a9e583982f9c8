"""Accepted edge values of flags, drawn by lot: the run ends well, or with an error of ours."""

import math
import random
import typing

import pytest

from experiments import dpo, pretrain, reward_model, sft
from qwen_jax.cli import flags
from qwen_jax.errors import ConfigError, QwenJaxError
from tests.helpers.flag_values import HARD_VALUES, flags_of
from tests.helpers.programs import recipes_of

DRAWN = 30
STAGES = {"pretrain": pretrain, "sft": sft, "reward_model": reward_model, "dpo": dpo}


def accepted() -> list[tuple[str, str]]:
    """(stage, argument) of every value that parses and changes the smoke recipe."""
    found = []
    for name in STAGES:
        recipes = recipes_of(f"experiments.{name}")
        for flag in flags_of(recipes["smoke"]):
            if flag.name.startswith("data.") or str in (flag.annotation, *typing.get_args(flag[3])):
                continue  # set by the test, or names of files
            for text in HARD_VALUES:
                argument = f"--{flag.name}={text}"
                try:
                    config = flags.parse("", recipes, ["p", "--recipe=smoke", argument])[1]
                except ConfigError:
                    continue
                if config != recipes["smoke"]:
                    found.append((name, argument))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", range(DRAWN))
def test_accepted_flag_runs(number, folder, tmp_path, capsys):
    stage, argument = random.Random(0).sample(accepted(), DRAWN)[number]
    data = {
        "pretrain": (f"--data.sources={folder}/text/train", "--optimizer.warmup_steps=1"),
        "sft": (f"--data.conversations={folder}/conversations.jsonl",),
    }.get(stage, (f"--data.pairs={folder}/pairs.jsonl", "--data.epochs=none"))
    start = () if stage == "pretrain" else (f"--init_from={folder}/base",)
    steps = () if "warmup_steps" in argument else ("--optimizer.warmup_steps=0",)
    arguments = ["--recipe=smoke", "--train.num_steps=2", *data, *start, *steps, argument]
    recipes = recipes_of(f"experiments.{stage}")
    config = flags.parse("", recipes, ["p", f"--run_dir={tmp_path}/run", *arguments])[1]
    try:
        STAGES[stage].main(config)
    except QwenJaxError as error:
        print(f"{stage} {argument}: {type(error).__name__}: {error.what}")
        assert error.where and error.fix
        return
    shown = capsys.readouterr().out
    print(f"{stage} {argument}: ran")
    steps = [line for line in shown.splitlines() if line.startswith("step ") and "loss " in line]
    assert steps and all(math.isfinite(float(line.split("loss ")[1].split()[0])) for line in steps)
