"""The rows of the embedding for some tokens, on a mesh without a whole table or a whole gradient.

A device holds a part of the vocabulary and of D. It looks up its part of D for the rows of all the
devices that hold the others, and an all-to-all gives each device all of D for its own rows;
backward the same way. What travels is as large as the result, where the table, gathered, and its
gradient in float32 would be gigabytes. (Left to itself XLA makes the gradient whole on every
device: "involuntary full rematerialization".)

B batch, T positions, D model, V vocabulary; here of a device.
"""

import functools

import jax
import jax.numpy as jnp

from qwen_jax.parallel.sharding import map_shards, sharded_axes
from qwen_jax.types import Array

_TOKENS = ("batch", "length")
_TABLE = ("vocab", "embed")


def embed(tokens_BT: Array, embed_VD: Array, *, dtype) -> Array:
    """The rows of the embedding for `tokens_BT`, in `dtype`."""
    B, (V, D) = tokens_BT.shape[0], embed_VD.shape
    pieces, rows = sharded_axes(D, "embed"), sharded_axes(B, "batch")
    if not (pieces or sharded_axes(V, "vocab")) or not set(pieces) <= set(rows):
        return jnp.take(embed_VD, tokens_BT, axis=0).astype(dtype)
    return _lookup(tokens_BT, embed_VD, jnp.dtype(dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _lookup(tokens_BT, embed_VD, dtype):
    pieces = sharded_axes(embed_VD.shape[1], "embed")
    vocab_axes = sharded_axes(embed_VD.shape[0], "vocab")

    def on_device(tokens_BT, embed_VD):
        words, here = _local(_gathered(tokens_BT, pieces), embed_VD.shape[0], vocab_axes)
        x = jnp.where(here[..., None], jnp.take(embed_VD, words, axis=0), 0).astype(dtype)
        # One device of these has the word; the others add zeros.
        x = jax.lax.psum(x, vocab_axes) if vocab_axes else x
        return _exchanged(x, pieces, split=0, join=2)

    return map_shards(
        on_device, tokens_BT, embed_VD, axes=(_TOKENS, _TABLE), out_axes=(*_TOKENS, None)
    )


def _lookup_forward(tokens_BT, embed_VD, dtype):
    # The table is kept for its shape and dtype, and is no copy.
    return _lookup(tokens_BT, embed_VD, dtype), (tokens_BT, embed_VD)


def _lookup_backward(dtype, residuals, dx_BTD):
    del dtype
    tokens_BT, embed_VD = residuals
    pieces = sharded_axes(embed_VD.shape[1], "embed")
    vocab_axes = sharded_axes(embed_VD.shape[0], "vocab")
    others = tuple(
        axis
        for axis in (
            *sharded_axes(tokens_BT.shape[0], "batch"),
            *sharded_axes(tokens_BT.shape[1], "length"),
        )
        if axis not in pieces
    )

    def on_device(tokens_BT, embed_VD, dx_BTD):
        dx_BTD = _exchanged(dx_BTD, pieces, split=2, join=0)
        words, here = _local(_gathered(tokens_BT, pieces), embed_VD.shape[0], vocab_axes)
        dx_BTD = jnp.where(here[..., None], dx_BTD, 0).astype(jnp.float32)
        found = jnp.zeros(embed_VD.shape, jnp.float32).at[words].add(dx_BTD)
        return (jax.lax.psum(found, others) if others else found).astype(embed_VD.dtype)

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
    """Where each token stands in this device's part of the vocabulary, and whether it does."""
    if not vocab_axes:
        return tokens_BT, jnp.ones(tokens_BT.shape, bool)
    place = tokens_BT - jax.lax.axis_index(vocab_axes) * V
    return jnp.clip(place, 0, V - 1), (place >= 0) & (place < V)
