"""LoRA adapters: initially without effect; gradients by the chain rule through the full weight."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.errors import ConfigError
from qwen_jax.model import spec
from qwen_jax.model.lora import (
    TARGETS,
    Adapter,
    LoRAConfig,
    delta,
    input_axes,
    lora_specs,
    with_adapters,
)
from qwen_jax.model.transformer import hidden_states

CONFIG = dataclasses.replace(sizes.TINY, initializer_range=0.2, num_kv_heads=2)
LORA = LoRAConfig(rank=3, alpha=4.0)
TOKENS = np.random.default_rng(5).integers(0, CONFIG.vocab_size, (2, 12), np.int32)
POSITIONS = np.tile(np.arange(12, dtype=np.int32)[None], (2, 1))


def sample(specs, std: float | None = None):
    """Samples weights for Specs, or with one standard deviation for all. NumPy needs no
    compilation."""
    rng = np.random.default_rng(0)
    stds = {"zeros": 0.0, "ones": 1.0}
    return jax.tree.map(
        lambda spec: (
            np.float32(stds.get(spec.init, spec.std) if std is None else std)
            * rng.standard_normal(spec.shape, np.float32)
        ),
        specs,
    )


BASE = sample(spec.param_specs(CONFIG))


@functools.partial(jax.jit, static_argnames="config")
def hidden(params, config=CONFIG):
    return hidden_states(params, TOKENS, POSITIONS, config=config)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_with_adapters_fresh_adapters_change_no_bit(dtype):
    config = dataclasses.replace(CONFIG, compute_dtype=dtype)
    adapted = hidden(with_adapters(BASE, sample(lora_specs(CONFIG, LORA)), LORA), config=config)
    np.testing.assert_array_equal(adapted, hidden(BASE, config=config))


def each_target(adapters):
    """Returns {name: (adapter, function that finds its weight in a Params)}."""
    found = jax.tree_util.tree_leaves_with_path(adapters, is_leaf=lambda x: isinstance(x, Adapter))
    return {
        path[-1].name: (
            adapter,
            lambda params, path=path: functools.reduce(
                lambda tree, key: getattr(tree, key.name), path, params
            ),
        )
        for path, adapter in found
    }


def test_with_adapters_gradients_follow_the_chain_rule_without_weight_gradients():
    adapters = sample(lora_specs(CONFIG, LORA), 0.1)
    targets = each_target(adapters)
    assert tuple(targets) and set(targets) == set(TARGETS)
    merged = jax.tree.map(
        lambda adapter, weight: weight if adapter is None else weight + delta(adapter, LORA.scale),
        adapters,
        BASE,
        is_leaf=lambda x: x is None or isinstance(x, Adapter),
    )
    cotangent = np.random.default_rng(2).standard_normal((2, 12, CONFIG.hidden_size), np.float32)

    def loss(params):
        # Unrolled, so that operations can be counted.
        return jnp.sum(hidden(params, dataclasses.replace(CONFIG, unroll_layers=2)) * cotangent)

    of_weights = jax.jit(jax.grad(loss)).lower(merged).compile()
    of_adapters = (
        jax.jit(jax.grad(lambda adapters, base: loss(with_adapters(base, adapters, LORA))))
        .lower(adapters, BASE)
        .compile()
    )
    full, found = jax.device_get((of_weights(merged), of_adapters(adapters, BASE)))
    ours = each_target(found)
    for name, (adapter, weight_of) in targets.items():
        L, inputs = CONFIG.num_layers, 1 + input_axes(name)
        dW = weight_of(full).reshape(L, int(np.prod(adapter.a.shape[1:inputs])), -1)
        a, b = adapter.a.reshape(L, -1, LORA.rank), adapter.b.reshape(L, LORA.rank, -1)
        scale = 4.0 / 3.0
        for found, wanted in (
            (ours[name][0].a, scale * dW @ b.swapaxes(1, 2)),
            (ours[name][0].b, scale * a.swapaxes(1, 2) @ dW),
        ):
            # Float32 matmuls in two orders: 1e-5 of the largest entry was measured.
            np.testing.assert_allclose(
                found.reshape(wanted.shape),
                wanted,
                atol=1e-4 * np.abs(wanted).max(),
                err_msg=name,
            )
    # Measured: 0.84, because attention dominates at this size; 1.06 with weight gradients.
    fewer, more = (found.cost_analysis()["flops"] for found in (of_adapters, of_weights))
    assert fewer < 0.9 * more


def test_lora_specs_shard_like_their_weights_and_only_at_targets():
    specs = lora_specs(CONFIG, LoRAConfig(rank=3, targets=("wo", "w_up")))
    assert specs.layers.attention.wq is None and specs.embed is None and specs.head is None
    wo, w_up = specs.layers.attention.wo, specs.layers.mlp.w_up
    assert (wo.a.shape, wo.a.axes) == ((2, 4, 8, 3), ("layers", "heads", "head_dim", "rank"))
    assert (wo.b.shape, wo.b.axes) == ((2, 3, 32), ("layers", "rank", "embed"))
    assert (w_up.a.axes, w_up.b.axes) == (("layers", "embed", "rank"), ("layers", "rank", "ffn"))
    assert w_up.a.std == pytest.approx(32**-0.5) and w_up.b.init == "zeros"
    assert spec.size(specs) == 2 * 3 * (4 * 8 + 32 + 32 + 48)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"rank": 0}, "rank=0"),
        ({"rank": 4, "alpha": 0.0}, "alpha=0.0"),
        ({"rank": 4, "targets": ("wq", "w_gates")}, "did you mean 'w_gate'"),
        ({"rank": 4, "targets": ("embed",)}, "Known: w_down, w_gate, w_up, wk, wo, wq, wv"),
        ({"rank": 4, "targets": ()}, "the list of weights that get an adapter is empty"),
    ],
)
def test_lora_config_refuses_invalid_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        LoRAConfig(**settings)
