"""Training that starts from weights."""

import dataclasses

import jax
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.config import MeshConfig, OptimizerConfig
from qwen_jax.errors import ConfigError
from qwen_jax.model.spec import init_params, param_specs
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.pretrained.huggingface import save_pretrained
from qwen_jax.pretrained.start import weights_of
from qwen_jax.train.optimizer import make_optimizer
from qwen_jax.train.state import abstract_state, make_state


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    folder = tmp_path_factory.mktemp("released") / "qwen"
    params = init_params(sizes.TINY, jax.random.key(3))
    save_pretrained(folder, sizes.TINY, params, param_dtype="bfloat16")
    return folder, params


def test_weights_of_gives_the_weights_on_the_mesh_in_the_training_dtype(released):
    folder, params = released
    optimizer = make_optimizer(OptimizerConfig(), 10)
    specs, mesh = param_specs(sizes.TINY), make_mesh(MeshConfig(fsdp=4, tensor=2))
    abstract = abstract_state(specs, optimizer, mesh, dtype="float32")
    like = dataclasses.replace(sizes.TINY, context_length=8, dropout=0.1)
    initial = weights_of(folder, like)
    state = make_state(0, specs, optimizer, abstract, params=initial(abstract.params))
    assert int(state.step) == 0
    for found, saved, want in zip(
        *map(jax.tree.leaves, (state.params, params, abstract.params)), strict=True
    ):
        assert found.sharding == want.sharding and found.dtype == np.float32
        assert np.array_equal(found, saved.astype("bfloat16").astype("float32"))
    moments = jax.tree.leaves(state.opt_state)
    assert len(moments) > 2 * 15 and not any(np.any(leaf) for leaf in moments)


def test_weights_of_rejects_another_architecture_with_the_flags_to_set(released):
    config = dataclasses.replace(sizes.TINY, num_kv_heads=2, rope_base=1e6)
    with pytest.raises(ConfigError) as error:
        weights_of(released[0], config)
    assert error.value.fix == (
        "set --model.num_kv_heads=4 (not 2), --model.rope_base=10000.0 (not 1000000.0)."
    )
