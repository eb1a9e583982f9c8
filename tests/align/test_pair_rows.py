"""The number of steps of a run on pairs."""

import dataclasses

import pytest

from experiments import dpo, reward_model, sft
from qwen_jax.align.pair_rows import PairData, PairTrainConfig
from qwen_jax.cli import flags
from qwen_jax.errors import ConfigError
from qwen_jax.train.optimizer import make_schedule
from qwen_jax.train.supervised_examples import for_epochs


@pytest.mark.parametrize("page", [reward_model, dpo])
def test_for_epochs_sets_the_steps_unless_epochs_is_none(page):
    assert page.RECIPE.train.num_steps is None and page.RECIPE.data.epochs == 1.0
    assert for_epochs(page.RECIPE, 6400).train.num_steps == 100
    _, config = flags.parse(
        page.__doc__, page.RECIPES, ["page", "--train.num_steps=7", "--data.epochs=none"]
    )
    assert for_epochs(config, 6400).train.num_steps == 7


def test_for_epochs_overrides_num_steps_and_needs_one_of_them():
    lines = []
    both = dataclasses.replace(reward_model.SMOKE, data=PairData(epochs=2.0))
    assert for_epochs(both, 40, lines.append).train.num_steps == 10
    assert lines == [f"data.epochs=2 overrides train.num_steps={both.train.num_steps}"]
    neither = dataclasses.replace(both, data=PairData(epochs=None), train=PairTrainConfig(8))
    with pytest.raises(ConfigError, match="neither the number of epochs nor"):
        for_epochs(neither, 40)


@pytest.mark.parametrize(
    "page, examples, steps, warmup",
    [
        (sft, 3, 1, 0),  # 60 conversations, packed
        (sft, 2000, 47, 4),
        (sft, 61_056, 1431, 1430),  # the report's warm-up fits
        (dpo, 1000, 47, 4),
    ],
)
def test_for_epochs_shortens_a_warmup_that_does_not_fit(page, examples, steps, warmup):
    lines = []
    recipe = page.RECIPE
    data = dataclasses.replace(recipe.data, epochs=3.0)
    config = for_epochs(dataclasses.replace(recipe, data=data), examples, lines.append)
    assert (config.train.num_steps, config.optimizer.warmup_steps) == (steps, warmup)
    shortened = f"optimizer.warmup_steps={recipe.optimizer.warmup_steps} becomes {warmup}, a tenth"
    assert any(shortened in line for line in lines) == (warmup != recipe.optimizer.warmup_steps)
    make_schedule(config.optimizer, steps)
    assert dataclasses.replace(config.optimizer, warmup_steps=9) == dataclasses.replace(
        recipe.optimizer, warmup_steps=9
    )
