"""The train step: equal on every mesh and for any accumulation; a bad step changes nothing."""

import dataclasses
import functools

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


@functools.cache
def start(config):
    """The state before the step, which is equal on every mesh, as a test below checks."""
    mesh = make_mesh(MeshConfig(fsdp=1), devices=jax.devices()[:1])
    abstract = abstract_state(param_specs(config), OPTIMIZER, mesh, dtype="float32")
    return jax.device_get(make_state(0, param_specs(config), OPTIMIZER, abstract))


def one_step(mesh_config: MeshConfig, micro_batches: int = 1, config=CONFIG, batch=None):
    devices = jax.devices()[
        : (mesh_config.fsdp or 1) * mesh_config.data * mesh_config.tensor * mesh_config.context
    ]
    mesh = make_mesh(mesh_config, devices=devices)
    batch = make_batch(0, 8, 16, CONFIG.vocab_size) if batch is None else batch
    check_batch(8, micro_batches, mesh)
    with use_layout(mesh):
        abstract = abstract_state(param_specs(config), OPTIMIZER, mesh, dtype="float32")
        state = jax.device_put(start(config), jax.tree.map(lambda leaf: leaf.sharding, abstract))
        step = make_train_step(
            make_objective(config), OPTIMIZER, seed=0, micro_batches=micro_batches
        )
        state, metrics = step(state, jax.device_put(batch, batch_sharding(mesh)))
        for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
            assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
    return jax.device_get(state), jax.device_get(metrics)


@pytest.fixture(scope="module")
def single():
    return one_step(MeshConfig(fsdp=1))


@pytest.mark.parametrize(
    "shape",
    [
        (2, 2, 2, 1),
        pytest.param((1, 4, 2, 1), marks=pytest.mark.slow),
        pytest.param((8, 1, 1, 1), marks=pytest.mark.slow),
        (1, 2, 2, 2),
    ],
)
def test_make_train_step_is_equal_on_every_mesh(single, shape):
    assert_same(single, one_step(MeshConfig(*shape)))


@pytest.mark.parametrize("micro_batches", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_make_train_step_accumulation_is_exact_under_unequal_masks(single, micro_batches):
    weights = make_batch(0, 8, 16, CONFIG.vocab_size).loss_weights
    sums = split(weights, micro_batches).sum(axis=(1, 2))
    assert len(set(sums.tolist())) == micro_batches  # otherwise the test would prove nothing
    assert_same(single, one_step(MeshConfig(fsdp=1), micro_batches))


@pytest.mark.parametrize(
    "shape, micro_batches",
    [
        ((1, 2, 2), 2),
        pytest.param((2, 1, 1), 4, marks=pytest.mark.slow),
        pytest.param((4, 1, 2), 2, marks=pytest.mark.slow),
    ],
)
def test_make_train_step_accumulates_on_a_mesh(single, shape, micro_batches):
    assert_same(single, one_step(MeshConfig(*shape), micro_batches))


def test_make_train_step_shards_and_accumulates_grouped_heads_and_tied_embeddings():
    config = dataclasses.replace(CONFIG, num_kv_heads=2, tie_embeddings=True)
    assert_same(
        one_step(MeshConfig(fsdp=1), config=config), one_step(MeshConfig(2, 2, 2), 2, config=config)
    )


def test_make_state_does_not_depend_on_the_mesh():
    states = []
    for shape in ((1, 1, 1), (2, 2, 2)):
        mesh = make_mesh(MeshConfig(*shape), devices=jax.devices()[: int(np.prod(shape))])
        abstract = abstract_state(param_specs(CONFIG), OPTIMIZER, mesh, dtype="float32")
        states.append(jax.device_get(make_state(7, param_specs(CONFIG), OPTIMIZER, abstract)))
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(a, b)


def test_unless_halted_freezes_the_state_after_a_nonfinite_step(single):
    mesh = make_mesh(MeshConfig(fsdp=1), devices=jax.devices()[:1])
    abstract = abstract_state(param_specs(CONFIG), OPTIMIZER, mesh, dtype="float32")
    before = start(CONFIG)
    state = jax.device_put(before, jax.tree.map(lambda leaf: leaf.sharding, abstract))
    good = make_batch(0, 8, 16, CONFIG.vocab_size)
    bad = dataclasses.replace(good, loss_weights=np.zeros((8, 16), np.float32))  # 0 / 0
    step = make_train_step(make_objective(CONFIG), OPTIMIZER, seed=0)
    state, metrics = step(state, bad)
    assert np.isnan(metrics["train/loss"]) and metrics["train/weight"] == 0
    state, metrics = step(state, good)  # only now does the loop see the bad step
    assert np.isfinite(metrics["train/loss"]) and state.halted and int(state.step) == 0
    for a, b in zip(
        jax.tree.leaves(before.params), jax.tree.leaves(jax.device_get(state.params)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_abstract_state_names_every_weight_that_the_mesh_does_not_divide():
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=8))
    with pytest.raises(ShardingError) as error:
        abstract_state(param_specs(CONFIG), OPTIMIZER, mesh, dtype="float32")
    for name in ("layers.attention.wq", "layers.attention.bk", "layers.attention.wo"):
        assert name in str(error.value)
    assert "w_up" not in str(error.value)  # 48 divides by 8


@pytest.mark.parametrize(
    "config, message",
    [
        (MeshConfig(data=3), "does not divide the number of devices, 8"),
        (MeshConfig(fsdp=4), "4 positions, but there are 8 devices"),
    ],
)
def test_make_mesh_refuses_the_wrong_size(config, message):
    with pytest.raises(ShardingError, match=message):
        make_mesh(config)


def test_check_batch_refuses_a_batch_that_does_not_divide():
    with pytest.raises(ShardingError, match="batch_size=12"):
        check_batch(12, 1, make_mesh(MeshConfig()))
