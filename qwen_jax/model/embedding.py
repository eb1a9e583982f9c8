"""Embedding lookup on a mesh, without gathering the full table or its full gradient.

Each device holds a shard of the table, over both the vocabulary and D. It looks up its shard of D
for the tokens of all devices in its group. An all-to-all then gives each device all of D for its
own tokens. The backward pass does the reverse. The messages are as large as the result, whereas a
gathered table and its float32 gradient would take gigabytes. (By default, XLA replicates the
gradient on every device and warns about "involuntary full rematerialization".)

The gradient is also summed here when only the tokens are sharded. If XLA partitions the scatter, it
adds to the sum of earlier micro-batches on one device and to zeros on the others. Its pass
while-loop-all-reduce-code-motion then moves the sum over devices out of the loop and loses what the
others had accumulated (openxla/xla#49143; libtpu 0.0.48 and 0.0.48.1, not 0.0.50.1).

B batch, T positions, D model, V vocabulary, each per device inside map_shards.
"""

import functools

import jax
import jax.numpy as jnp

from qwen_jax.parallel.sharding import map_shards, sharded_axes
from qwen_jax.types import Array

_TOKENS = ("batch", "length")
_TABLE = ("vocab", "embed")


def embed(tokens_BT: Array, embed_VD: Array, *, dtype) -> Array:
    """Returns the embeddings of `tokens_BT`: [B, T, D] in `dtype`."""
    (B, T), (V, D) = tokens_BT.shape, embed_VD.shape
    embed_axes, batch_axes = sharded_axes(D, "embed"), sharded_axes(B, "batch")
    sharded = embed_axes or batch_axes or sharded_axes(V, "vocab") or sharded_axes(T, "length")
    if not sharded or not set(embed_axes) <= set(batch_axes):
        return jnp.take(embed_VD, tokens_BT, axis=0).astype(dtype)
    return _lookup(tokens_BT, embed_VD, jnp.dtype(dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _lookup(tokens_BT, embed_VD, dtype):
    embed_axes = sharded_axes(embed_VD.shape[1], "embed")
    vocab_axes = sharded_axes(embed_VD.shape[0], "vocab")

    def on_device(tokens_BT, embed_VD):
        ids, here = _local(_gathered(tokens_BT, embed_axes), embed_VD.shape[0], vocab_axes)
        x = jnp.where(here[..., None], jnp.take(embed_VD, ids, axis=0), 0).astype(dtype)
        # One device of the group holds the token's embedding; the others contribute zeros.
        x = jax.lax.psum(x, vocab_axes) if vocab_axes else x
        return _exchanged(x, embed_axes, split=0, join=2)

    return map_shards(
        on_device, tokens_BT, embed_VD, axes=(_TOKENS, _TABLE), out_axes=(*_TOKENS, None)
    )


def _lookup_forward(tokens_BT, embed_VD, dtype):
    # Keeping the table as a residual copies nothing; only its shape and dtype are used.
    return _lookup(tokens_BT, embed_VD, dtype), (tokens_BT, embed_VD)


def _lookup_backward(dtype, residuals, dx_BTD):
    del dtype
    tokens_BT, embed_VD = residuals
    embed_axes = sharded_axes(embed_VD.shape[1], "embed")
    vocab_axes = sharded_axes(embed_VD.shape[0], "vocab")
    others = tuple(
        axis
        for axis in (
            *sharded_axes(tokens_BT.shape[0], "batch"),
            *sharded_axes(tokens_BT.shape[1], "length"),
        )
        if axis not in embed_axes
    )

    def on_device(tokens_BT, embed_VD, dx_BTD):
        dx_BTD = _exchanged(dx_BTD, embed_axes, split=2, join=0)
        ids, here = _local(_gathered(tokens_BT, embed_axes), embed_VD.shape[0], vocab_axes)
        dx_BTD = jnp.where(here[..., None], dx_BTD, 0).astype(jnp.float32)
        gradient = jnp.zeros(embed_VD.shape, jnp.float32).at[ids].add(dx_BTD)
        gradient = jax.lax.psum(gradient, others) if others else gradient
        return gradient.astype(embed_VD.dtype)

    return None, map_shards(
        on_device,
        tokens_BT,
        embed_VD,
        dx_BTD,
        axes=(_TOKENS, _TABLE, (*_TOKENS, None)),
        out_axes=_TABLE,
    )


_lookup.defvjp(_lookup_forward, _lookup_backward)


def _gathered(tokens_BT: Array, axes: tuple[str, ...]) -> Array:
    return jax.lax.all_gather(tokens_BT, axes, axis=0, tiled=True) if axes else tokens_BT


def _exchanged(x_BTD: Array, axes: tuple[str, ...], *, split: int, join: int) -> Array:
    if not axes:
        return x_BTD
    return jax.lax.all_to_all(x_BTD, axes, split_axis=split, concat_axis=join, tiled=True)


def _local(tokens_BT: Array, V: int, vocab_axes: tuple[str, ...]) -> tuple[Array, Array]:
    """Returns each token's index in this device's vocabulary shard, and whether it is in range."""
    if not vocab_axes:
        return tokens_BT, jnp.ones(tokens_BT.shape, bool)
    index = tokens_BT - jax.lax.axis_index(vocab_axes) * V
    return jnp.clip(index, 0, V - 1), (index >= 0) & (index < V)
