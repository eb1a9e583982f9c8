"""The state begins in pieces: no device ever holds the whole of a weight or of a moment."""

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
def test_every_matrix_and_moment_lies_in_pieces(shape):
    mesh, specs = make_mesh(MeshConfig(*shape)), param_specs(CONFIG)
    abstract = abstract_state(specs, OPTIMIZER, mesh, dtype="float32")
    state = make_state(0, specs, OPTIMIZER, abstract)
    matrices = [leaf for leaf in jax.tree.leaves(state) if leaf.size > 10_000]
    assert len(matrices) == 3 * 9  # weights and both moments
    for leaf in matrices:
        assert {shard.data.size for shard in leaf.addressable_shards} == {leaf.size // 8}
    small = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.size <= 10_000)
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert bytes_per_device(state) < whole / 8 + small


@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (1, 4, 2, 1)])
def test_the_program_that_makes_it_needs_no_room_for_a_whole_model(shape):
    """Random numbers are drawn where they will live: its scratch is that of a piece."""
    mesh, specs = make_mesh(MeshConfig(*shape)), param_specs(CONFIG)
    abstract = abstract_state(specs, OPTIMIZER, mesh, dtype="float32").params
    made = jax.jit(
        lambda key: init_from(specs, key, "float32"),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract),
    )
    compiled = made.lower(jax.random.key(0)).compile()
    plan = compiled.memory_analysis()
    assert plan.output_size_in_bytes < 1.1 * bytes_per_device(abstract) + 4096
    largest = max(leaf.size * 4 for leaf in jax.tree.leaves(abstract))
    assert plan.temp_size_in_bytes < largest  # one weight's, were it whole
    for leaf, sharding in zip(
        jax.tree.leaves(abstract), jax.tree.leaves(compiled.output_shardings), strict=True
    ):
        assert sharding.is_equivalent_to(leaf.sharding, leaf.ndim)
