"""Declares the shape, logical axes and initializer of each weight, in one place.

Initialization, shardings, parameter counts, memory estimates, checkpoint checks and the mapping to
the released layout all use these declarations.

L layers, D model, N heads, K key-value heads, H head size, F ffn, V vocabulary.
"""

import math
import zlib

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from qwen_jax.config import ModelConfig
from qwen_jax.parallel.sharding import sharding_for
from qwen_jax.types import AttentionParams, LayerParams, MLPParams, Params, Spec


def param_specs(config: ModelConfig) -> Params:
    """Returns a Params whose leaves are Specs.

    Report: 2.3; config.variant has what later models changed. Weights are initialized as in the
    released code: N(0, 0.02^2). The two projections that write to the residual stream are divided
    by sqrt(2 L), so its variance does not depend on the depth.
    """
    L, D, F, V = config.num_layers, config.hidden_size, config.ffn_size, config.vocab_size
    N, K, H = config.num_heads, config.kv_heads, config.head_dim
    std = config.initializer_range
    residual_std = std / math.sqrt(2 * L)

    def normal(shape, axes, scale=std):
        return Spec(shape, axes, "normal", scale)

    def bias(heads: int, axis: str) -> Spec | None:
        axes = ("layers", axis, "head_dim")
        return Spec((L, heads, H), axes, "zeros") if config.variant.qkv_bias else None

    head_norm = Spec((L, H), ("layers", "norm"), "ones") if config.variant.qk_norm else None

    return Params(
        embed=normal((V, D), ("vocab", "embed")),
        layers=LayerParams(
            attention_norm=Spec((L, D), ("layers", "norm"), "ones"),
            attention=AttentionParams(
                wq=normal((L, D, N, H), ("layers", "embed", "heads", "head_dim")),
                bq=bias(N, "heads"),
                wk=normal((L, D, K, H), ("layers", "embed", "kv_heads", "head_dim")),
                bk=bias(K, "kv_heads"),
                wv=normal((L, D, K, H), ("layers", "embed", "kv_heads", "head_dim")),
                bv=bias(K, "kv_heads"),
                wo=normal((L, N, H, D), ("layers", "heads", "head_dim", "embed"), residual_std),
                q_norm=head_norm,
                k_norm=head_norm,
            ),
            mlp_norm=Spec((L, D), ("layers", "norm"), "ones"),
            mlp=MLPParams(
                w_gate=normal((L, D, F), ("layers", "embed", "ffn")),
                w_up=normal((L, D, F), ("layers", "embed", "ffn")),
                w_down=normal((L, F, D), ("layers", "ffn", "embed"), residual_std),
            ),
        ),
        final_norm=Spec((D,), ("norm",), "ones"),
        head=None if config.tie_embeddings else normal((D, V), ("embed", "vocab")),
    )


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Initializes the weights of a language model in config.param_dtype."""
    return init_from(param_specs(config), key, config.param_dtype)


def init_from(specs, key: jax.Array, dtype):
    """Initializes the weights of a tree of Specs.

    Each weight's random key is derived from its path, so its values do not depend on the mesh or
    on other weights. Under jit with out_shardings, each device creates only its own shards.
    """
    dtype = jnp.dtype(dtype)

    def init(path, spec: Spec) -> jax.Array:
        if spec.init == "zeros":
            return jnp.zeros(spec.shape, dtype)
        if spec.init == "ones":
            return jnp.ones(spec.shape, dtype)
        name = jax.tree_util.keystr(path).encode()
        weight_key = jax.random.fold_in(key, zlib.crc32(name) & 0x7FFFFFFF)
        sample = jax.random.normal(weight_key, spec.shape, jnp.float32) * jnp.float32(spec.std)
        return sample.astype(dtype)

    return jax.tree_util.tree_map_with_path(init, specs)


def abstract(specs, dtype: str, mesh: Mesh | None = None):
    """Returns the jax.ShapeDtypeStructs for a tree of Specs, with shardings if a mesh is given.

    Raises:
      ShardingError: weights cannot be divided evenly over the mesh.
    """
    if mesh is None:
        return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, jnp.dtype(dtype)), specs)
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, jnp.dtype(dtype), sharding=sharding),
        specs,
        sharding_for(specs, mesh),
    )


def count(config: ModelConfig) -> int:
    """Returns the number of parameters of a language model."""
    return size(param_specs(config))


def layer_bytes(config: ModelConfig) -> int:
    """Returns the size of the weights of one layer, in the dtype of the computation."""
    weights = size(param_specs(config).layers) // config.num_layers
    return weights * jnp.dtype(config.compute_dtype).itemsize


def size(specs) -> int:
    """Returns the number of parameters in a tree of Specs."""
    return sum(math.prod(spec.shape) for spec in jax.tree.leaves(specs))
