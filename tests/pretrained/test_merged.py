"""MergedRun: a LoRA run reads as base + delta, and only with the base that it was trained on."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.checkpoint.checkpointer import Checkpointer
from qwen_jax.errors import CheckpointError, ConfigError
from qwen_jax.model.lora import Adapter, LoRAConfig, delta, lora_specs
from qwen_jax.model.spec import param_specs
from qwen_jax.pretrained.adapters import merged
from qwen_jax.pretrained.huggingface import (
    convert_pretrained,
    load_pretrained,
    open_pretrained,
    save_pretrained,
)
from qwen_jax.types import TrainState

MODEL = dataclasses.replace(sizes.TINY, num_kv_heads=2)
LORA = LoRAConfig(rank=3, alpha=4.0, targets=("wk", "wo", "w_down"))


def random_weights(specs):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda spec: 0.1 * rng.standard_normal(spec.shape, np.float32), specs)


def save(folder, config: dict, params, *steps: int):
    """Saves a run with a checkpoint of each step; the weights are `params` times the step."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    checkpoints = Checkpointer(folder / "checkpoints", keep=3)
    for step in steps:
        checkpoints.save(
            step,
            TrainState(
                step=jnp.int32(step),
                params=jax.tree.map(lambda x, step=step: x * np.float32(step), params),
                opt_state=(),
            ),
            {},
        )
    checkpoints.close()
    return folder


def save_adapters(folder, base, dtype=None):
    """Saves a LoRA run on top of the folder `base`; returns the adapters."""
    adapters = random_weights(lora_specs(MODEL, LORA))
    save(
        folder, {"model": dataclasses.asdict(MODEL), "lora": dataclasses.asdict(LORA)}, adapters, 1
    )
    found = merged.identify(base, open_pretrained(base, param_dtype=dtype))
    (folder / merged.NAME).write_text(json.dumps(dataclasses.asdict(found)))
    return adapters


@pytest.fixture
def folders(tmp_path):
    """Runs base with steps 1 and 2, and lora on top of step 2; the weights and the adapters."""
    params = random_weights(param_specs(MODEL))
    base = save(tmp_path / "base", {"model": dataclasses.asdict(MODEL)}, params, 1, 2)
    adapters = save_adapters(tmp_path / "lora", base, "bfloat16")
    return tmp_path, jax.tree.map(lambda x: x * np.float32(2), params), adapters


def merge(weights, adapters):
    return jax.tree.map(
        lambda adapter, weight: weight if adapter is None else weight + delta(adapter, 4.0 / 3.0),
        adapters,
        weights,
        is_leaf=lambda x: x is None or isinstance(x, Adapter),
    )


def assert_close(found, want, dtype="float32"):
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(want), strict=True
    ):
        assert a.dtype == dtype
        # Sums of 3 products in another order.
        np.testing.assert_allclose(a, b, atol=1e-6, err_msg=str(path))


def test_merged_run_is_base_and_delta_however_it_is_read(folders, monkeypatch):
    folder, weights, adapters = folders
    want = merge(weights, adapters)
    monkeypatch.setattr(merged, "_CHUNK_BYTES", 4 * 32 * 7)  # 7 rows of the embedding
    model, params = load_pretrained(folder / "lora")
    assert model == MODEL
    assert_close(params, want)
    assert jnp.array_equal(params.embed, weights.embed)  # no adapter, so the same bits
    mesh = jax.make_mesh(
        (1, 2, 2, 1), ("data", "fsdp", "tensor", "context"), devices=jax.devices()[:4]
    )
    for a, b in zip(
        jax.tree.leaves(load_pretrained(folder / "lora", mesh=mesh)[1]),
        jax.tree.leaves(params),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)  # as above
    rounded = load_pretrained(folder / "lora", param_dtype="bfloat16")[1]
    assert jnp.array_equal(
        rounded.layers.mlp.w_down, params.layers.mlp.w_down.astype("bfloat16")
    )  # summed, then rounded
    read = []
    convert_pretrained(
        open_pretrained(folder / "lora", progress=read.append), folder / "out", layout="qwen2"
    )
    assert_close(load_pretrained(folder / "out")[1], want)
    assert sum(read) == sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def test_merged_run_on_top_of_a_merged_run(folders):
    folder, weights, first = folders
    second = save_adapters(folder / "second", folder / "lora")
    assert_close(load_pretrained(folder / "second")[1], merge(merge(weights, first), second))


def test_check_base_lets_a_base_train_on_and_move_but_not_change(folders):
    folder, weights, adapters = folders
    want = load_pretrained(folder / "lora")[1]
    checkpoints = Checkpointer(folder / "base" / "checkpoints", keep=3)
    checkpoints.save(3, TrainState(jnp.int32(3), jax.tree.map(jnp.zeros_like, weights), ()), {})
    checkpoints.close()
    assert_close(load_pretrained(folder / "lora")[1], want)

    (folder / "base").rename(folder / "moved")
    with pytest.raises(CheckpointError, match="is missing.*base"):
        load_pretrained(folder / "lora")
    record = json.loads((folder / "lora" / merged.NAME).read_text())
    assert record["step"] == 2 and record["dtype"] == "bfloat16"
    record["folder"] = str(folder / "moved")
    (folder / "lora" / merged.NAME).write_text(json.dumps(record))
    assert_close(load_pretrained(folder / "lora")[1], want)

    # A released folder with the same weights is the same base.
    record |= {"folder": str(folder / "released"), "step": None}
    (folder / "lora" / merged.NAME).write_text(json.dumps(record))
    save_pretrained(folder / "released", MODEL, weights, layout="qwen2")
    assert_close(load_pretrained(folder / "lora")[1], want)
    other = weights.replace(final_norm=weights.final_norm * 1.01)
    save_pretrained(folder / "released", MODEL, other, layout="qwen2")
    with pytest.raises(CheckpointError, match="weights of the base model have changed"):
        load_pretrained(folder / "lora")


def test_merged_run_names_what_is_missing(folders):
    folder, _, _ = folders
    shutil.rmtree(folder / "base" / "checkpoints" / "2")
    with pytest.raises(CheckpointError, match="no checkpoint found for step 2"):
        load_pretrained(folder / "lora")
    (folder / "lora" / merged.NAME).write_text('{"folder": "base"}')
    with pytest.raises(CheckpointError, match="has the wrong keys: folder"):
        load_pretrained(folder / "lora")
    (folder / "lora" / merged.NAME).unlink()
    with pytest.raises(CheckpointError, match="file that records the base model"):
        load_pretrained(folder / "lora")
    raw = json.loads((folder / "lora" / "config.json").read_text())
    raw["lora"]["dropout"] = 0.1
    (folder / "lora" / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match="unknown LoRA settings: dropout"):
        load_pretrained(folder / "lora")
