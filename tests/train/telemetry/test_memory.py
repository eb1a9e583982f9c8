"""The memory of a step is known before it runs, and refused if it is too large."""

import dataclasses
import functools
import math

import jax
import pytest

from qwen_jax import sizes
from qwen_jax.config import MeshConfig, OptimizerConfig
from qwen_jax.errors import TrainingError
from qwen_jax.model.spec import param_specs
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.parallel.sharding import batch_sharding, use_layout
from qwen_jax.train.language_model import make_objective
from qwen_jax.train.optimizer import make_optimizer
from qwen_jax.train.state import abstract_state
from qwen_jax.train.step import make_train_step
from qwen_jax.train.telemetry import memory
from tests.helpers.batches import make_batch


@functools.cache
def compiled_step(config, shape):
    """A compiled step and the state that it takes. tests/train/test_step.py compiles some, too."""
    mesh = make_mesh(MeshConfig(*shape), devices=jax.devices()[: math.prod(shape)])
    optimizer = make_optimizer(OptimizerConfig(peak_learning_rate=0.01, epsilon=1e-4), 100)
    step = make_train_step(make_objective(config), optimizer, seed=0)
    with use_layout(mesh):
        abstract = abstract_state(param_specs(config), optimizer, mesh, dtype="float32")
        batch = jax.device_put(
            make_batch(0, 8, config.context_length, config.vocab_size), batch_sharding(mesh)
        )
        return step.lower(abstract, batch).compile(), abstract


def measure_step(available=None, shape=(1, 1, 1), **changes):
    compiled, abstract = compiled_step(dataclasses.replace(sizes.TINY, **changes), shape)
    return memory.measure(compiled, abstract, platform="cpu", available=available)


def test_measure_counts_parameters_and_moments_per_device():
    single, sharded = measure_step(), measure_step(shape=(2, 2, 2))
    assert single.optimizer == pytest.approx(2 * single.parameters, abs=64)  # and two counters
    # A quarter of the matrices, and all norms.
    assert single.parameters / 4 < sharded.parameters < single.parameters / 3.5
    assert single.workspace > single.parameters  # at least the gradients


def test_measure_needs_less_with_remat():
    settings = {"context_length": 256, "ffn_size": 512, "num_layers": 6}
    assert (
        measure_step(remat="block", **settings).workspace < 0.7 * measure_step(**settings).workspace
    )


def test_measure_refuses_what_does_not_fit_with_advice():
    need = measure_step().total
    assert measure_step(available=need).total == need
    with pytest.raises(TrainingError, match=r"remat=block(.|\n)*--recipe=smoke"):
        measure_step(available=need - 1)


def test_capacity_can_be_set_in_gib():
    assert memory.capacity(jax.devices()[0], override_gib=1.5) == 3 * 2**29
