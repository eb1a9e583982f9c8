"""Which pairs, and how long they are trained on."""

import dataclasses

import pytest

from experiments import dpo, reward_model
from qwen_jax.align.pair_rows import PairData, PairTrainConfig, for_epochs
from qwen_jax.cli import flags
from qwen_jax.errors import ConfigError


@pytest.mark.parametrize("page", [reward_model, dpo])
def test_a_recipe_counts_passes_and_says_no_number_of_steps(page):
    assert page.RECIPE.train.num_steps is None and page.RECIPE.data.epochs == 1.0
    assert for_epochs(page.RECIPE, 6400).train.num_steps == 100
    _, config = flags.parse(
        page.__doc__, page.RECIPES, ["page", "--train.num_steps=7", "--data.epochs=none"]
    )
    assert for_epochs(config, 6400).train.num_steps == 7


def test_epochs_go_before_steps_and_one_of_them_is_needed():
    said = []
    both = dataclasses.replace(reward_model.SMOKE, data=PairData(epochs=2.0))
    assert for_epochs(both, 40, said.append).train.num_steps == 10
    assert said == ["data.epochs=2 says how long to train, not train.num_steps"]
    neither = dataclasses.replace(both, data=PairData(epochs=None), train=PairTrainConfig(8))
    with pytest.raises(ConfigError, match="nothing says how long to train"):
        for_epochs(neither, 40)
