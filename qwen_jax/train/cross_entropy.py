"""Cross-entropy of hidden states and output projection, without all the logits in memory.

Tokens are taken in chunks. When a gradient is asked for, a chunk's share of it is computed while
its logits are there: three products with the output projection where recomputing them takes four.
On a mesh each device works on its own tokens and its own part of the vocabulary; the projection is
put together once and its gradient added up once, whatever the number of chunks.

B batch, T positions, D model, V vocabulary, M tokens of one device, C tokens of a chunk.
"""

import functools
import math

import jax
import jax.numpy as jnp

from qwen_jax.kernels.target import target_of
from qwen_jax.parallel.rules import cut, map_shards
from qwen_jax.types import Array

# Float32 logits of one chunk, bytes. On an accelerator a chunk also reads and writes the gradient
# of the projection (8 D V bytes) for 6 C D V operations: below some 500 tokens that would take
# longer than the products do. 1 GiB is 1,766 tokens of Qwen's vocabulary.
_CHUNK_BYTES = {"cpu": 256 << 20}
_DEFAULT_CHUNK_BYTES = 1 << 30


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def cross_entropy(x_BTD: Array, head_DV: Array, targets_BT: Array, weights_BT: Array,
                  z_loss: float | None = None) -> tuple[Array, Array]:
    """(sum of w (-log p(target) + z_loss log(Z)^2), sum of w (-log p(target))), float32.

    p is the softmax of x W and Z its denominator, both in float32. Products take x's dtype and add
    up in float32, as does the gradient of W.

    Args:
      x_BTD: normed hidden states.
      head_DV: the output projection, cast to x's dtype on the way.
      targets_BT: int32.
      weights_BT: float32. No gradient goes to it, and none comes from the second result.
      z_loss: None is 0.
    """
    return _sums(x_BTD, head_DV, targets_BT, weights_BT, z_loss, gradient=False)


def _forward(x_BTD, head_DV, targets_BT, weights_BT, z_loss):
    loss, nll, dx_BTD, dhead_DV = _sums(x_BTD, head_DV, targets_BT, weights_BT, z_loss,
                                        gradient=True)
    return (loss, nll), (dx_BTD, dhead_DV.astype(head_DV.dtype))


def _backward(z_loss, gradients, cotangents):
    del z_loss
    scaled = [(g.astype(jnp.float32) * cotangents[0]).astype(g.dtype) for g in gradients]
    return (*scaled, None, None)


cross_entropy.defvjp(_forward, _backward)


def _sums(x_BTD, head_DV, targets_BT, weights_BT, z_loss, *, gradient: bool):
    """Loss and cross-entropy and, if asked for, their gradients with respect to x and W."""
    B, T, _ = x_BTD.shape
    D, V = head_DV.shape
    token_axes = cut(B, "batch") + cut(T, "length")
    vocab_axes = cut(V, "act_vocab")
    # Where the projection is stored in pieces of D, each device needs its piece of the sum alone.
    scatter_axes = cut(D, "embed")
    if not set(scatter_axes) <= set(token_axes):
        scatter_axes = ()
    limit = _CHUNK_BYTES.get(target_of(x_BTD).platform, _DEFAULT_CHUNK_BYTES)

    def on_device(x_BTD, head_DV, targets_BT, weights_BT):
        tokens, size = targets_BT.size, _chunk_size(targets_BT.size, head_DV.shape[1], limit)
        # Rows that fill up the last chunk weigh nothing.
        chunks = [_chunked(a.reshape(tokens, *a.shape[2:]), size)
                  for a in (x_BTD, targets_BT, weights_BT)]
        step = functools.partial(_chunk, head_DV=head_DV, z_loss=z_loss, vocab_axes=vocab_axes,
                                 gradient=gradient)
        sums, dx_BTD, dhead_DV = _over_chunks(step, chunks, head_DV.shape)
        sums = tuple(_sum_over(s, token_axes) for s in sums)
        if not gradient:
            return sums
        dx_BTD = _sum_over(dx_BTD.reshape(-1, D)[:tokens], vocab_axes).reshape(x_BTD.shape)
        if scatter_axes:
            dhead_DV = jax.lax.psum_scatter(dhead_DV, scatter_axes, scatter_dimension=0, tiled=True)
        rest = tuple(axis for axis in token_axes if axis not in scatter_axes)
        return (*sums, dx_BTD, _sum_over(dhead_DV, rest))

    tokens = ("batch", "length")
    gradient_axes = ((*tokens, None), ("embed" if scatter_axes else None, "act_vocab"))
    return map_shards(
        on_device, x_BTD, head_DV.astype(x_BTD.dtype), targets_BT, weights_BT,
        axes=((*tokens, None), (None, "act_vocab"), tokens, tokens),
        out_axes=((), ()) + (gradient_axes if gradient else ()))


def _chunk_size(tokens: int, vocab_size: int, limit: int) -> int:
    """Tokens in a chunk: all, or an even share of them whose float32 logits take `limit` bytes."""
    number = -(-4 * tokens * vocab_size // limit)
    return tokens if number <= 1 else 128 * math.ceil(tokens / number / 128)


def _chunked(array_M: Array, size: int) -> Array:
    """[M, ...] -> [chunks, size, ...], filled up with zeros."""
    M = array_M.shape[0]
    filled = jnp.pad(array_M, ((0, -M % size),) + ((0, 0),) * (array_M.ndim - 1))
    return filled.reshape(-1, size, *array_M.shape[1:])


def _over_chunks(step, chunks: list[Array], head_shape):
    """step(x, targets, weights) -> (two sums, dx, dhead or None), added up over the chunks."""
    if chunks[0].shape[0] == 1:
        return step(*(a[0] for a in chunks))

    def body(total, chunk):
        sums, dx_CD, dhead_DV = step(*chunk)
        sums, dhead_DV = jax.tree.map(jnp.add, total, (sums, dhead_DV))
        return (sums, dhead_DV), dx_CD

    shapes = jax.eval_shape(step, *(a[0] for a in chunks))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0], shapes[2]))
    (sums, dhead_DV), dx = jax.lax.scan(body, zeros, tuple(chunks))
    return sums, dx, dhead_DV


def _chunk(x_CD, targets_C, weights_C, *, head_DV, z_loss, vocab_axes, gradient: bool):
    """One chunk on one device, whose projection may be a part of the vocabulary."""
    logits_CV = jax.lax.dot_general(x_CD, head_DV, (((1,), (0,)), ((), ())),
                                    preferred_element_type=jnp.float32)
    top_C = jnp.max(logits_CV, axis=-1)
    if vocab_axes:
        top_C = jax.lax.pmax(top_C, vocab_axes)
        targets_C = targets_C - jax.lax.axis_index(vocab_axes) * logits_CV.shape[1]
    total_C = jnp.sum(jnp.exp(logits_CV - top_C[:, None]), axis=-1)
    # Gathered, which is faster than summing a masked copy; a target that is elsewhere counts 0.
    inside_C = (targets_C >= 0) & (targets_C < logits_CV.shape[1])
    nearest_C = jnp.clip(targets_C, 0, logits_CV.shape[1] - 1)
    chosen_C = jnp.where(inside_C, jnp.take_along_axis(logits_CV, nearest_C[:, None], 1)[:, 0], 0.0)
    total_C, chosen_C = _sum_over(jnp.stack([total_C, chosen_C]), vocab_axes)
    log_z_C = jnp.log(total_C) + top_C
    z_weight = jnp.float32(z_loss or 0.0)
    cross_entropy = jnp.sum(weights_C * (log_z_C - chosen_C))
    sums = cross_entropy + z_weight * jnp.sum(weights_C * jnp.square(log_z_C)), cross_entropy
    if not gradient:
        return sums, None, None
    scale_C = weights_C * (1.0 + 2.0 * z_weight * log_z_C)
    word = jnp.arange(logits_CV.shape[1], dtype=targets_C.dtype)
    target_CV = word[None, :] == targets_C[:, None]
    softmax_CV = jnp.exp(logits_CV - log_z_C[:, None])
    dlogits_CV = softmax_CV * scale_C[:, None] - jnp.where(target_CV, weights_C[:, None], 0.0)
    dlogits_CV = dlogits_CV.astype(x_CD.dtype)
    dx_CD = jax.lax.dot_general(dlogits_CV, head_DV, (((1,), (1,)), ((), ())))
    # The input on the left: XLA transposes that one (layers.linear).
    dhead_DV = jax.lax.dot_general(x_CD, dlogits_CV, (((0,), (0,)), ((), ())),
                                   preferred_element_type=jnp.float32)
    return sums, dx_CD, dhead_DV


def _sum_over(x: Array, axes: tuple[str, ...]) -> Array:
    return jax.lax.psum(x, axes) if axes else x
