"""What recomputation runs again: never the forward pass of an attention kernel."""

import dataclasses
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.config import MeshConfig
from qwen_jax.kernels import reference
from qwen_jax.kernels.attention import IMPLEMENTATIONS
from qwen_jax.kernels.backend import differentiable
from qwen_jax.model import spec
from qwen_jax.model.lora import LoRAConfig, lora_specs, with_adapters
from qwen_jax.model.transformer import hidden_states
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.parallel.sharding import use_layout

TOKENS = jnp.arange(16, dtype=jnp.int32).reshape(2, 8)
POSITIONS = jnp.tile(jnp.arange(8, dtype=jnp.int32)[None], (2, 1))


def by_definition(q, k, v, scale):
    return reference.attention(q, k, v, segment_ids=None, positions=None, window=None, scale=scale)


@jax.jit
def forward_kernel(q, k, v):
    return by_definition(q, k, v, q.shape[-1] ** -0.5), jnp.zeros(q.shape[:3], jnp.float32)


@jax.jit
def backward_kernel(q, k, v, dout):
    return jax.vjp(lambda *qkv: by_definition(*qkv, q.shape[-1] ** -0.5), q, k, v)[1](dout)


@pytest.fixture(params=[None, "cpu"], ids=["plain", "in shard_map"])
def stand_in(request, monkeypatch):
    """A back end made as the kernels are, of two functions that can be counted."""
    module = types.ModuleType("stand_in_attention")
    module.PLATFORM = request.param
    module.refuse = lambda call: None
    module.attention = differentiable(
        lambda q, k, v, k_start, q_end, *, scale: forward_kernel(q, k, v),
        lambda q, k, v, k_start, q_end, out, lse, dout, *, scale: backward_kernel(q, k, v, dout),
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(IMPLEMENTATIONS, "stand_in", module.__name__)
    return dataclasses.replace(sizes.TINY, attention="stand_in", initializer_range=0.1)


def calls(jaxpr, name: str) -> int:
    """How often a jitted function of this name stands in a program; a loop's body counts once."""
    found = 0
    for equation in jaxpr.eqns:
        found += equation.params.get("name") == name
        for parameter in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(parameter, "jaxpr", parameter)  # of a closed one
            if hasattr(inner, "eqns"):
                found += calls(inner, name)
    return found


def dots(jaxpr) -> int:
    """How many products with a weight stand in a program; a loop's body counts once."""
    found = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found += not equation.params["dimension_numbers"][1][0]  # attention's have a batch
        for parameter in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(parameter, "jaxpr", parameter)  # of a closed one
            if hasattr(inner, "eqns"):
                found += dots(inner)
    return found


@pytest.mark.parametrize("remat", ["none", "dots", "block"])
def test_the_forward_kernel_runs_once(stand_in, remat):
    config = dataclasses.replace(stand_in, remat=remat)
    params = spec.init_params(config, jax.random.key(0))

    def loss(params):
        return jnp.sum(hidden_states(params, TOKENS, POSITIONS, config=config))

    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), devices=jax.devices()[:4])
    with use_layout(mesh):
        program = jax.make_jaxpr(jax.grad(loss))(params)
    assert calls(program.jaxpr, "forward_kernel") == 1
    assert calls(program.jaxpr, "backward_kernel") == 1


def test_the_gradient_is_that_of_the_plain_back_end(stand_in):
    params = spec.init_params(stand_in, jax.random.key(0))

    def gradient(**settings):
        config = dataclasses.replace(stand_in, **settings)
        # Not the squares, whose sum is the same for every normed vector.
        return jax.jit(
            jax.grad(
                lambda params: jnp.sum(hidden_states(params, TOKENS, POSITIONS, config=config))
            )
        )(params)

    for ours, wanted in zip(
        jax.tree.leaves(gradient(remat="block")),
        jax.tree.leaves(gradient(attention="reference")),
        strict=True,
    ):
        np.testing.assert_allclose(ours, wanted, atol=1e-5 * float(jnp.abs(wanted).max()))


@pytest.mark.parametrize("lora", [False, True])
def test_dots_keeps_the_products_and_block_computes_them_again(lora):
    def products(remat):
        config = dataclasses.replace(sizes.TINY, attention="reference", remat=remat)
        params = spec.init_params(config, jax.random.key(0))
        trained, whole = params, lambda params: params
        if lora:
            adapters = LoRAConfig(rank=2)
            trained = spec.init_from(lora_specs(config, adapters), jax.random.key(1), "float32")

            def whole(trained):
                return with_adapters(params, trained, adapters)

        program = jax.make_jaxpr(
            jax.grad(
                lambda trained: jnp.sum(
                    hidden_states(whole(trained), TOKENS, POSITIONS, config=config)
                )
            )
        )(trained)
        return dots(program.jaxpr)

    assert products("dots") == products("none")
    # A block's last product, w_down's, is not needed again; its adapter's x A is. With adapters the
    # other six are three products each: x W, x A and (x A) B.
    assert products("block") == products("none") + (6 * 3 + 1 if lora else 6)
