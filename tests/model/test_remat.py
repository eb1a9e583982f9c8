"""Rematerialization never runs the forward pass of an attention kernel again."""

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
from tests.helpers.weights import initial

TOKENS = np.arange(16, dtype=np.int32).reshape(2, 8)
POSITIONS = np.tile(np.arange(8, dtype=np.int32)[None], (2, 1))


def abstract_params(config):
    return jax.eval_shape(lambda: spec.init_params(config, jax.random.key(0)))


def by_definition(q, k, v, scale):
    return reference.attention(q, k, v, segment_ids=None, positions=None, window=None, scale=scale)


@jax.jit
def forward_kernel(q, k, v):
    return by_definition(q, k, v, q.shape[-1] ** -0.5), jnp.zeros(q.shape[:3], jnp.float32)


@jax.jit
def backward_kernel(q, k, v, dout):
    return jax.vjp(lambda *qkv: by_definition(*qkv, q.shape[-1] ** -0.5), q, k, v)[1](dout)


@pytest.fixture(params=[None, "cpu"], ids=["plain", "in shard_map"])
def fake_backend(request, monkeypatch):
    """An attention backend with the structure of the kernels, whose calls can be counted."""
    module = types.ModuleType("fake_attention")
    module.PLATFORM = request.param
    module.refuse = lambda call: None
    module.attention = differentiable(
        lambda q, k, v, k_start, q_end, *, scale: forward_kernel(q, k, v),
        lambda q, k, v, k_start, q_end, out, lse, dout, *, scale: backward_kernel(q, k, v, dout),
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(IMPLEMENTATIONS, "fake_backend", module.__name__)
    return dataclasses.replace(sizes.TINY, attention="fake_backend", initializer_range=0.1)


def calls(jaxpr, name: str) -> int:
    """Counts calls of a jitted function in a program; the body of a loop counts once."""
    found = 0
    for equation in jaxpr.eqns:
        found += equation.params.get("name") == name
        for parameter in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(parameter, "jaxpr", parameter)  # of a closed jaxpr
            if hasattr(inner, "eqns"):
                found += calls(inner, name)
    return found


def dots(jaxpr) -> int:
    """Counts matmuls with weights in a program; the body of a loop counts once."""
    found = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found += not equation.params["dimension_numbers"][1][
                0
            ]  # those of attention have a batch
        for parameter in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(parameter, "jaxpr", parameter)  # of a closed jaxpr
            if hasattr(inner, "eqns"):
                found += dots(inner)
    return found


@pytest.mark.parametrize("remat", ["none", "dots", "block"])
def test_remat_runs_the_forward_kernel_once(fake_backend, remat):
    config = dataclasses.replace(fake_backend, remat=remat)
    params = abstract_params(config)

    def loss(params):
        return jnp.sum(hidden_states(params, TOKENS, POSITIONS, config=config))

    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), devices=jax.devices()[:4])
    with use_layout(mesh):
        program = jax.make_jaxpr(jax.grad(loss))(params)
    assert calls(program.jaxpr, "forward_kernel") == 1
    assert calls(program.jaxpr, "backward_kernel") == 1


def test_remat_gradient_equals_the_reference_backend(fake_backend):
    params = initial(spec.param_specs(fake_backend))

    def gradient(**settings):
        config = dataclasses.replace(fake_backend, **settings)
        # Not the sum of squares, which is equal for all normalized vectors.
        return jax.device_get(
            jax.jit(
                jax.grad(
                    lambda params: jnp.sum(hidden_states(params, TOKENS, POSITIONS, config=config))
                )
            )(params)
        )

    for ours, wanted in zip(
        jax.tree.leaves(gradient(remat="block")),
        jax.tree.leaves(gradient(attention="reference")),
        strict=True,
    ):
        np.testing.assert_allclose(ours, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("lora", [False, True])
def test_remat_dots_keeps_matmuls_and_block_recomputes_them(lora):
    def matmuls(remat):
        config = dataclasses.replace(sizes.TINY, attention="reference", remat=remat)
        params, adapters = abstract_params(config), LoRAConfig(rank=2)
        trained = params
        if lora:
            specs = lora_specs(config, adapters)
            trained = jax.eval_shape(lambda: spec.init_from(specs, jax.random.key(1), "float32"))

        def loss(trained, params):
            full_model = with_adapters(params, trained, adapters) if lora else trained
            return jnp.sum(hidden_states(full_model, TOKENS, POSITIONS, config=config))

        program = jax.make_jaxpr(jax.grad(loss))(trained, params)
        return dots(program.jaxpr)

    assert matmuls("dots") == matmuls("none")
    # The last matmul of a layer, w_down's, is not recomputed; its adapter's x A is. With adapters,
    # each of the other six is three matmuls: x W, x A and (x A) B.
    assert matmuls("block") == matmuls("none") + (6 * 3 + 1 if lora else 6)
