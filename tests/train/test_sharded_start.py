"""The state is created sharded: no device ever holds a full weight or moment."""

import dataclasses

import jax
import pytest

from qwen_jax import sizes
from qwen_jax.config import MeshConfig, OptimizerConfig
from qwen_jax.model.spec import init_from, param_specs
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.train.optimizer import make_optimizer
from qwen_jax.train.state import abstract_state, make_state
from qwen_jax.train.telemetry.memory import bytes_per_device

CONFIG = dataclasses.replace(sizes.TOY_8M, num_layers=2, unroll_layers=1)
OPTIMIZER = make_optimizer(OptimizerConfig(), 100)


@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (1, 4, 2, 1)])
def test_make_state_shards_every_matrix_and_moment(shape):
    mesh, specs = make_mesh(MeshConfig(*shape)), param_specs(CONFIG)
    abstract = abstract_state(specs, OPTIMIZER, mesh, dtype="float32")
    state = make_state(0, specs, OPTIMIZER, abstract)
    matrices = [leaf for leaf in jax.tree.leaves(state) if leaf.size > 10_000]
    assert len(matrices) == 3 * 9  # weights and both moments
    for leaf in matrices:
        assert {shard.data.size for shard in leaf.addressable_shards} == {leaf.size // 8}
    small = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.size <= 10_000)
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert bytes_per_device(state) < total / 8 + small


@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (1, 4, 2, 1)])
def test_init_from_needs_no_memory_for_a_full_weight(shape):
    """Random numbers are sampled on their own device, so the workspace is that of one shard."""
    mesh, specs = make_mesh(MeshConfig(*shape)), param_specs(CONFIG)
    abstract = abstract_state(specs, OPTIMIZER, mesh, dtype="float32").params
    made = jax.jit(
        lambda key: init_from(specs, key, "float32"),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract),
    )
    compiled = made.lower(jax.random.key(0)).compile()
    analysis = compiled.memory_analysis()
    assert analysis.output_size_in_bytes < 1.1 * bytes_per_device(abstract) + 4096
    largest = max(leaf.size * 4 for leaf in jax.tree.leaves(abstract))
    assert analysis.temp_size_in_bytes < largest  # of one full weight
    for leaf, sharding in zip(
        jax.tree.leaves(abstract), jax.tree.leaves(compiled.output_shardings), strict=True
    ):
        assert sharding.is_equivalent_to(leaf.sharding, leaf.ndim)
