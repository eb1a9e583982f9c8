"""ModelOverrides: what a stage can change of the model that it starts from."""

import dataclasses

import pytest

from qwen_jax import sizes
from qwen_jax.errors import ConfigError
from qwen_jax.pretrained.overrides import ModelOverrides


def test_model_overrides_change_only_how_a_model_is_computed():
    overrides = ModelOverrides(dropout=0.1, remat="dots", unroll_layers=2, attention="xla")
    assert overrides.apply(sizes.QWEN_7B) == dataclasses.replace(
        sizes.QWEN_7B, dropout=0.1, remat="dots", unroll_layers=2, attention="xla"
    )
    assert ModelOverrides.of(overrides.apply(sizes.QWEN_7B)) == overrides
    assert ModelOverrides() == ModelOverrides.of(sizes.QWEN_7B)


def test_model_overrides_reject_bad_values_as_model_config_does():
    with pytest.raises(ConfigError, match="compute_dtype='float64' is unknown"):
        ModelOverrides(compute_dtype="float64")


def test_refuse_names_the_flag_and_the_reason():
    assert ModelOverrides.refuse("no_such_field") is None
    error = ModelOverrides.refuse("hidden_size")
    assert error.where == "--model.hidden_size" and "--init_from" in error.what
