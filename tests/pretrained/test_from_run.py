"""load_pretrained of a run folder."""

import dataclasses
import errno
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.checkpoint import step_lock
from qwen_jax.checkpoint.checkpointer import Checkpointer
from qwen_jax.errors import CheckpointError, ConfigError, QwenJaxError
from qwen_jax.model.spec import init_params
from qwen_jax.pretrained.from_run import RunFolder
from qwen_jax.pretrained.huggingface import load_pretrained, save_pretrained
from qwen_jax.types import TrainState


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with checkpoints of steps 1 and 2, and the weights of step 2."""
    folder = tmp_path_factory.mktemp("run")
    raw = {"model": dataclasses.asdict(sizes.TINY), "train": {"num_steps": 2}}
    (folder / "config.json").write_text(json.dumps(raw))
    first = init_params(sizes.TINY, jax.random.key(0))
    second = jax.tree.map(lambda leaf: leaf + np.float32(1), first)
    checkpoints = Checkpointer(folder / "checkpoints", keep=2)
    for step, params in ((1, first), (2, second)):
        # With an optimizer state, which must not be needed to read the weights.
        state = TrainState(
            step=jnp.asarray(step, jnp.int32), params=params, opt_state={"mu": params}
        )
        checkpoints.save(step, state, {})
        checkpoints.wait()
    checkpoints.close()
    return folder, second


def test_load_pretrained_reads_the_newest_weights_of_a_run(run):
    folder, newest = run
    config, params = load_pretrained(folder)
    assert config == sizes.TINY
    assert jax.tree.structure(params) == jax.tree.structure(newest)
    for found, want in zip(jax.tree.leaves(params), jax.tree.leaves(newest), strict=True):
        assert found.dtype == want.dtype and np.array_equal(found, want)


def test_load_pretrained_refuses_a_reward_model(tmp_path):
    raw = {"model": dataclasses.asdict(sizes.TINY), "data": {"pairs": ["a.jsonl"]}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="reward model, which scores text"):
        load_pretrained(tmp_path)


def test_load_pretrained_casts_a_run_which_exports(run, tmp_path):
    folder, newest = run
    config, params = load_pretrained(folder, param_dtype="bfloat16")
    assert config.param_dtype == "bfloat16" and params.embed.dtype == jnp.bfloat16
    save_pretrained(tmp_path / "out", config, params)
    assert np.array_equal(load_pretrained(tmp_path / "out")[1].head, params.head)


def test_load_pretrained_names_unknown_settings_and_missing_checkpoints(tmp_path):
    raw = {"model": dataclasses.asdict(sizes.TINY) | {"num_experts": 8}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match="num_experts"):
        load_pretrained(tmp_path)
    del raw["model"]["num_experts"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(QwenJaxError, match="(?i)checkpoint"):
        load_pretrained(tmp_path)


def no_locks(file, operation):
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize("deletions", [1, 100])
def test_load_pretrained_reads_the_latest_step_if_a_run_deletes_its_step(
    run, tmp_path, monkeypatch, deletions
):
    """On a file system without locks. A run that deletes every step is an error."""
    folder, newest = run
    copy = pathlib.Path(shutil.copytree(folder, tmp_path / "run"))
    monkeypatch.setattr(step_lock.fcntl, "flock", no_locks)
    step, real = 2, RunFolder.read

    def read(self, path, index):
        nonlocal step
        if path != "embed" and step - 2 < deletions:
            step += 1
            checkpoints = Checkpointer(copy / "checkpoints", keep=1)
            checkpoints.save(step, {"params": newest}, {})
            checkpoints.close()
            assert [path.name for path in (copy / "checkpoints").iterdir()] == [str(step)]
        return real(self, path, index)

    monkeypatch.setattr(RunFolder, "read", read)
    if deletions > 1:
        with pytest.raises(step_lock.StepGone, match="deleted or replaced"):
            load_pretrained(copy)
        return
    _, params = load_pretrained(copy)
    for found, want in zip(jax.tree.leaves(params), jax.tree.leaves(newest), strict=True):
        assert np.array_equal(found, want)
