"""The train step: one answer on every mesh and every accumulation; a bad step changes nothing."""

import dataclasses

import jax
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.config import MeshConfig, OptimizerConfig
from qwen_jax.errors import ShardingError
from qwen_jax.model.spec import param_specs
from qwen_jax.parallel.mesh import check_batch, make_mesh
from qwen_jax.parallel.sharding import batch_sharding, use_layout
from qwen_jax.train.language_model import make_objective
from qwen_jax.train.optimizer import make_optimizer
from qwen_jax.train.state import abstract_state, make_state
from qwen_jax.train.step import make_train_step, split
from tests.helpers.batches import assert_same, make_batch

CONFIG = dataclasses.replace(sizes.TINY, initializer_range=0.1)
OPTIMIZER = make_optimizer(OptimizerConfig(peak_learning_rate=0.01, epsilon=1e-4), 100)


def one_step(mesh_config: MeshConfig, micro_batches: int = 1, config=CONFIG, batch=None):
    devices = jax.devices()[
        : (mesh_config.fsdp or 1) * mesh_config.data * mesh_config.tensor * mesh_config.context
    ]
    mesh = make_mesh(mesh_config, devices=devices)
    batch = make_batch(0, 8, 16, CONFIG.vocab_size) if batch is None else batch
    check_batch(8, micro_batches, mesh)
    with use_layout(mesh):
        abstract = abstract_state(param_specs(config), OPTIMIZER, mesh, dtype="float32")
        state = make_state(0, param_specs(config), OPTIMIZER, abstract)
        step = make_train_step(
            make_objective(config), OPTIMIZER, seed=0, micro_batches=micro_batches
        )
        state, metrics = step(state, jax.device_put(batch, batch_sharding(mesh)))
        for leaf, planned in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
            assert leaf.sharding.is_equivalent_to(planned.sharding, leaf.ndim)
    return jax.device_get(state), jax.device_get(metrics)


@pytest.fixture(scope="module")
def alone():
    return one_step(MeshConfig(fsdp=1))


@pytest.mark.parametrize("shape", [(2, 2, 2, 1), (1, 4, 2, 1), (8, 1, 1, 1), (1, 2, 2, 2)])
def test_the_step_is_the_same_on_every_mesh(alone, shape):
    assert_same(alone, one_step(MeshConfig(*shape)))


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_accumulation_is_exact_under_unequal_masks(alone, micro_batches):
    weights = make_batch(0, 8, 16, CONFIG.vocab_size).loss_weights
    pieces = split(weights, micro_batches).sum(axis=(1, 2))
    assert len(set(pieces.tolist())) == micro_batches  # or the test would prove nothing
    assert_same(alone, one_step(MeshConfig(fsdp=1), micro_batches))


def test_accumulation_on_a_mesh(alone):
    assert_same(alone, one_step(MeshConfig(data=1, fsdp=2, tensor=2), 2))


def test_grouped_heads_and_tied_embeddings_shard_too():
    config = dataclasses.replace(CONFIG, num_kv_heads=2, tie_embeddings=True)
    assert_same(
        one_step(MeshConfig(fsdp=1), config=config), one_step(MeshConfig(2, 2, 2), config=config)
    )


def test_weights_do_not_depend_on_the_mesh_they_are_made_on():
    states = []
    for shape in ((1, 1, 1), (2, 2, 2)):
        mesh = make_mesh(MeshConfig(*shape), devices=jax.devices()[: int(np.prod(shape))])
        abstract = abstract_state(param_specs(CONFIG), OPTIMIZER, mesh, dtype="float32")
        states.append(jax.device_get(make_state(7, param_specs(CONFIG), OPTIMIZER, abstract)))
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_step_that_is_not_finite_changes_nothing_for_good(alone):
    mesh = make_mesh(MeshConfig(fsdp=1), devices=jax.devices()[:1])
    state = make_state(
        0,
        param_specs(CONFIG),
        OPTIMIZER,
        abstract_state(param_specs(CONFIG), OPTIMIZER, mesh, dtype="float32"),
    )
    before = jax.device_get(state)
    good = make_batch(0, 8, 16, CONFIG.vocab_size)
    bad = dataclasses.replace(good, loss_weights=np.zeros((8, 16), np.float32))  # 0 / 0
    step = make_train_step(make_objective(CONFIG), OPTIMIZER, seed=0)
    state, metrics = step(state, bad)
    assert np.isnan(metrics["train/loss"]) and metrics["train/weight"] == 0
    state, metrics = step(state, good)  # the loop hears of the bad step only now
    assert np.isfinite(metrics["train/loss"]) and state.halted and int(state.step) == 0
    for a, b in zip(
        jax.tree.leaves(before.params), jax.tree.leaves(jax.device_get(state.params)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_a_mesh_that_does_not_divide_names_every_weight():
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=8))
    with pytest.raises(ShardingError) as error:
        abstract_state(param_specs(CONFIG), OPTIMIZER, mesh, dtype="float32")
    for name in ("layers.attention.wq", "layers.attention.bk", "layers.attention.wo"):
        assert name in str(error.value)
    assert "w_up" not in str(error.value)  # 48 divides by 8


@pytest.mark.parametrize(
    "config, message",
    [
        (MeshConfig(data=3), "does not divide 8 devices"),
        (MeshConfig(fsdp=4), "4 places for 8 devices"),
    ],
)
def test_a_mesh_of_the_wrong_size_is_refused(config, message):
    with pytest.raises(ShardingError, match=message):
        make_mesh(config)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ShardingError, match="batch_size=12"):
        check_batch(12, 1, make_mesh(MeshConfig()))
