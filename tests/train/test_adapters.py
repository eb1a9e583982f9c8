"""A step of adapters: equal on every mesh, with an unchanged base that is not in the state."""

import dataclasses

import jax
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.attention_config import AttentionVariant
from qwen_jax.config import MeshConfig, OptimizerConfig
from qwen_jax.model.lora import LoRAConfig
from qwen_jax.model.spec import init_params
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.parallel.sharding import batch_sharding, use_layout
from qwen_jax.train.adapters import Adapters, FrozenBase, LoRABatch
from qwen_jax.train.language_model import make_objective
from qwen_jax.train.optimizer import make_optimizer
from qwen_jax.train.state import abstract_state, make_state
from qwen_jax.train.telemetry import memory, metrics
from tests.helpers.batches import assert_same, make_batch

CONFIG = dataclasses.replace(sizes.TINY, initializer_range=0.1)
OPTIMIZER = make_optimizer(OptimizerConfig(peak_learning_rate=0.01, epsilon=1e-3), 100)
LORA = LoRAConfig(rank=4, alpha=8.0)


def two_steps(mesh_config: MeshConfig, micro_batches: int = 1):
    """Returns state and metrics after two steps (the first changes only B), the base before and
    after, and the memory."""
    mesh = make_mesh(
        mesh_config,
        devices=jax.devices()[: mesh_config.data * mesh_config.fsdp * mesh_config.tensor],
    )
    with use_layout(mesh):
        frozen = FrozenBase(
            Adapters(LORA, {}),
            CONFIG,
            mesh,
            lambda abstract: jax.device_put(
                jax.jit(init_params, static_argnums=0)(CONFIG, jax.random.key(0)),
                jax.tree.map(lambda leaf: leaf.sharding, abstract),
            ),
        )
        abstract = abstract_state(frozen.specs, OPTIMIZER, mesh, dtype="float32")
        state = make_state(0, frozen.specs, OPTIMIZER, abstract)
        step = frozen.make_train_step(
            make_objective(CONFIG), OPTIMIZER, seed=0, micro_batches=micro_batches
        )
        batch = jax.device_put(make_batch(0, 8, 16, CONFIG.vocab_size), batch_sharding(mesh))
        inputs = LoRABatch(frozen.weights, batch)
        before = jax.device_get(inputs.base)
        compiled = step.lower(abstract, LoRABatch(frozen.abstract, batch)).compile()
        measured = memory.measure(
            compiled, abstract, platform="tpu", available=None, frozen=frozen.abstract
        )
        # A step donates the full state and nothing else.
        donated = jax.tree.map(lambda info: info.donated, compiled.args_info[0])
        assert all(jax.tree.leaves(donated[0])) and not any(jax.tree.leaves(donated[1]))
        for _ in range(2):
            state, found = compiled(state, inputs)
    return jax.device_get((state, found)), (before, jax.device_get(inputs.base)), measured


@pytest.fixture(scope="module")
def single():
    return two_steps(MeshConfig(fsdp=1))


def test_make_train_step_is_equal_on_a_mesh_and_in_micro_batches(single):
    found, _, measured = two_steps(MeshConfig(2, 2, 2), micro_batches=2)
    assert_same(single[0], found)
    # A device holds a shard of the base: a quarter of the matrices, and all norms.
    assert single[2].frozen / 4 <= measured.frozen < single[2].frozen / 3


def test_make_train_step_keeps_the_base_and_trains_only_adapters(single):
    (state, _), (before, after), measured = single
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)
    rank = {leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim}
    assert rank and all(LORA.rank in shape for shape in rank)
    assert not rank & {leaf.shape for leaf in jax.tree.leaves(before)}
    for adapter in jax.tree.leaves(state.params):
        assert np.any(adapter != 0)
    assert measured.frozen == sum(leaf.nbytes for leaf in jax.tree.leaves(before))
    assert "frozen weights" in str(measured)


def test_flops_per_token_excludes_gradients_of_frozen_weights():
    full = metrics.flops_per_token(sizes.QWEN_7B)
    N = 7_721_324_544 - 151936 * 4096
    ours = metrics.flops_per_token(sizes.QWEN_7B, adapters=1000)
    for a, b in zip(full, ours, strict=True):
        assert a - b == pytest.approx(2.0 * N - 6000.0, rel=1e-9)


def test_flops_per_token_counts_only_the_keys_in_a_sliding_window():
    T, window = sizes.TINY.context_length, 4
    variant = AttentionVariant(sliding_window=window, sliding_layers=(1,))
    full, ours = (
        metrics.flops_per_token(config)[0]
        for config in (sizes.TINY, dataclasses.replace(sizes.TINY, variant=variant))
    )
    seen = np.minimum(np.arange(T) + 1, window).mean()
    # The formula takes half a token of each query's own: T / 2 keys, not (T + 1) / 2.
    assert full - ours == pytest.approx(12 * 4 * 8 * (T / 2 - seen), rel=0.1)
