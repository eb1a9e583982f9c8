"""The memory of a step, known and refused before it runs."""

import dataclasses

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


def plan(available=None, fsdp=1, **changes):
    config = dataclasses.replace(sizes.TINY, **changes)
    mesh = make_mesh(MeshConfig(fsdp=fsdp), devices=jax.devices()[:fsdp])
    optimizer = make_optimizer(OptimizerConfig(), 10)
    step = make_train_step(make_objective(config), optimizer, seed=0)
    with use_layout(mesh):
        abstract = abstract_state(param_specs(config), optimizer, mesh, dtype="float32")
        batch = jax.device_put(
            make_batch(0, 8, config.context_length, config.vocab_size), batch_sharding(mesh)
        )
        return memory.measure(
            step.lower(abstract, batch).compile(), abstract, platform="cpu", available=available
        )


def test_parameters_and_moments_are_counted_per_device():
    alone, shared = plan(), plan(fsdp=8)
    assert alone.optimizer == pytest.approx(2 * alone.parameters, abs=64)  # and two counters
    assert shared.parameters < alone.parameters / 4
    assert alone.workspace > alone.parameters  # the gradients, at the least


def test_recomputation_needs_less():
    settings = {"context_length": 256, "ffn_size": 512, "num_layers": 6}
    assert plan(remat="block", **settings).workspace < 0.7 * plan(**settings).workspace


def test_what_does_not_fit_is_refused_with_advice():
    need = plan().total
    assert plan(available=need).total == need
    with pytest.raises(TrainingError, match="remat=block"):
        plan(available=need - 1)


def test_the_memory_of_a_device_can_be_set_in_gib():
    assert memory.capacity(jax.devices()[0], override_gib=1.5) == 3 * 2**29
