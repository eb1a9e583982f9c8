"""load_pretrained of one of our own run folders."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.checkpoint.checkpointer import Checkpointer
from qwen_jax.errors import ConfigError, QwenJaxError
from qwen_jax.model.spec import init_params
from qwen_jax.pretrained.huggingface import load_pretrained, save_pretrained
from qwen_jax.types import TrainState


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with a checkpoint of steps 1 and 2, and the weights of step 2."""
    folder = tmp_path_factory.mktemp("run")
    raw = {"model": dataclasses.asdict(sizes.TINY), "train": {"num_steps": 2}}
    (folder / "config.json").write_text(json.dumps(raw))
    first = init_params(sizes.TINY, jax.random.key(0))
    second = jax.tree.map(lambda leaf: leaf + np.float32(1), first)
    checkpoints = Checkpointer(folder / "checkpoints", keep=2)
    for step, params in ((1, first), (2, second)):
        # The optimizer's state is there too, and must not be needed to read the weights.
        state = TrainState(
            step=jnp.asarray(step, jnp.int32), params=params, opt_state={"mu": params}
        )
        checkpoints.save(step, state, {})
        checkpoints.wait()
    checkpoints.close()
    return folder, second


def test_a_run_folder_gives_its_newest_weights_and_its_config(run):
    folder, newest = run
    config, params = load_pretrained(folder)
    assert config == sizes.TINY
    assert jax.tree.structure(params) == jax.tree.structure(newest)
    for found, wanted in zip(jax.tree.leaves(params), jax.tree.leaves(newest), strict=True):
        assert found.dtype == wanted.dtype and np.array_equal(found, wanted)


def test_a_run_is_cast_on_request_and_exports(run, tmp_path):
    folder, newest = run
    config, params = load_pretrained(folder, param_dtype="bfloat16")
    assert config.param_dtype == "bfloat16" and params.embed.dtype == jnp.bfloat16
    save_pretrained(tmp_path / "out", config, params)
    assert np.array_equal(load_pretrained(tmp_path / "out")[1].head, params.head)


def test_settings_of_another_version_and_a_run_without_checkpoints_are_named(tmp_path):
    raw = {"model": dataclasses.asdict(sizes.TINY) | {"num_experts": 8}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match="num_experts"):
        load_pretrained(tmp_path)
    del raw["model"]["num_experts"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(QwenJaxError, match="(?i)checkpoint"):
        load_pretrained(tmp_path)
