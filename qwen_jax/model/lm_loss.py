"""Chunked cross-entropy and log-probabilities, which never materialize the full logits.

Tokens are processed in chunks. If a gradient is requested, each chunk computes its contribution
while its logits exist. This takes three matmuls with the output projection; recomputing the logits
would take four. On a mesh, each device processes its own tokens and its own vocabulary shard. The
projection is gathered once and its gradient reduced once, regardless of the number of chunks.

B batch and T positions (of all tokens, of a device or of a chunk), D model, V vocabulary, C = B T
tokens in a chunk.
"""

import functools
import math

import jax
import jax.numpy as jnp

from qwen_jax.kernels.platform import target_of
from qwen_jax.parallel.sharding import map_shards, sharded_axes
from qwen_jax.types import Array

# Bytes of the float32 logits of one chunk. On an accelerator, a chunk also reads and writes the
# gradient of the projection (8 D V bytes) for 6 C D V operations. With fewer than about 500 tokens,
# this takes longer than the matmuls. With Qwen's vocabulary, 1 GiB is 1,766 tokens.
_CHUNK_BYTES = {"cpu": 256 << 20}
_DEFAULT_CHUNK_BYTES = 1 << 30
_TILE = 128  # chunk sizes are multiples of this, unless one chunk holds all tokens


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def cross_entropy(
    x_BTD: Array, head_DV: Array, targets_BT: Array, weights_BT: Array, z_loss: float | None = None
) -> tuple[Array, Array]:
    """Returns (sum of w (-log p(target) + z_loss log(Z)^2), sum of w (-log p(target))), float32.

    p is the softmax of x W and Z its denominator, both in float32. Matmuls use x's dtype and
    accumulate in float32; the gradient of W also accumulates in float32.

    Args:
      x_BTD: normalized hidden states.
      head_DV: the output projection, cast to x's dtype.
      targets_BT: int32.
      weights_BT: float32. No gradient is computed for the weights or through the second result.
      z_loss: weight of log(Z)^2; None: 0.
    """
    return _sums(x_BTD, head_DV, targets_BT, weights_BT, z_loss, gradient=False)


def _forward(x_BTD, head_DV, targets_BT, weights_BT, z_loss):
    loss, nll, dx_BTD, dhead_DV = _sums(
        x_BTD, head_DV, targets_BT, weights_BT, z_loss, gradient=True
    )
    return (loss, nll), (dx_BTD, dhead_DV.astype(head_DV.dtype))


def _backward(z_loss, gradients, cotangents):
    del z_loss
    scaled = [(g.astype(jnp.float32) * cotangents[0]).astype(g.dtype) for g in gradients]
    return (*scaled, None, None)


cross_entropy.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def log_likelihoods(
    x_BTD: Array, head_DV: Array, targets_BT: Array, temperature: float = 1.0
) -> tuple[Array, Array]:
    """Returns log p(target) and the entropy of p, float32 [B, T]; p = softmax(x W / temperature).

    The backward pass recomputes the logits. No gradient is computed through the entropy.

    Args:
      x_BTD, head_DV, targets_BT: as in cross_entropy.
    """
    vocab_axes, limit = sharded_axes(head_DV.shape[1], "act_vocab"), _chunk_bytes(x_BTD)

    def on_device(x_BTD, head_DV, targets_BT):
        step = functools.partial(
            _likelihoods, head_DV=head_DV, vocab_axes=vocab_axes, temperature=temperature
        )
        size = _chunk_size(targets_BT.size, head_DV.shape[1], limit)
        chunks = _chunked(x_BTD, size), _chunked(targets_BT, size)
        if chunks[0].shape[0] == 1:
            return step(x_BTD, targets_BT)
        results = jax.lax.map(lambda chunk: step(*chunk), chunks)
        return tuple(_unchunked(x, targets_BT.shape) for x in results)

    tokens = ("batch", "length")
    return map_shards(
        on_device,
        x_BTD,
        head_DV.astype(x_BTD.dtype),
        targets_BT,
        axes=((*tokens, None), (None, "act_vocab"), tokens),
        out_axes=(tokens, tokens),
    )


def _likelihoods_forward(x_BTD, head_DV, targets_BT, temperature):
    return log_likelihoods(x_BTD, head_DV, targets_BT, temperature), (x_BTD, head_DV, targets_BT)


def _likelihoods_backward(temperature, residuals, cotangents):
    x_BTD, head_DV, targets_BT = residuals
    # This is the gradient of sum w (-log p) for w = -cotangent.
    *_, dx_BTD, dhead_DV = _sums(
        x_BTD, head_DV, targets_BT, -cotangents[0], None, gradient=True, temperature=temperature
    )
    return dx_BTD, dhead_DV.astype(head_DV.dtype), None


log_likelihoods.defvjp(_likelihoods_forward, _likelihoods_backward)


def _sums(
    x_BTD, head_DV, targets_BT, weights_BT, z_loss, *, gradient: bool, temperature: float = 1.0
):
    """Returns the loss and the cross-entropy; with `gradient`, also the loss's gradients of x and
    W."""
    B, T, _ = x_BTD.shape
    D, V = head_DV.shape
    token_axes = sharded_axes(B, "batch") + sharded_axes(T, "length")
    vocab_axes = sharded_axes(V, "act_vocab")
    # If the projection is sharded over D, each device needs only its shard of the gradient's sum.
    scatter_axes = sharded_axes(D, "embed")
    if not set(scatter_axes) <= set(token_axes):
        scatter_axes = ()
    limit = _chunk_bytes(x_BTD)

    def on_device(x_BTD, head_DV, targets_BT, weights_BT):
        size = _chunk_size(targets_BT.size, head_DV.shape[1], limit)
        chunks = [_chunked(array, size) for array in (x_BTD, targets_BT, weights_BT)]
        step = functools.partial(
            _chunk,
            head_DV=head_DV,
            z_loss=z_loss,
            vocab_axes=vocab_axes,
            gradient=gradient,
            temperature=temperature,
        )
        sums, dx, dhead_DV = _over_chunks(step, chunks)
        sums = tuple(_sum_over(s, token_axes) for s in sums)
        if not gradient:
            return sums
        dx_BTD = _unchunked(dx, x_BTD.shape)
        if scatter_axes:
            dhead_DV = jax.lax.psum_scatter(dhead_DV, scatter_axes, scatter_dimension=0, tiled=True)
        rest = tuple(axis for axis in token_axes if axis not in scatter_axes)
        return (*sums, _sum_over(dx_BTD, vocab_axes), _sum_over(dhead_DV, rest))

    tokens = ("batch", "length")
    gradient_axes = ((*tokens, None), ("embed" if scatter_axes else None, "act_vocab"))
    return map_shards(
        on_device,
        x_BTD,
        head_DV.astype(x_BTD.dtype),
        targets_BT,
        weights_BT,
        axes=((*tokens, None), (None, "act_vocab"), tokens, tokens),
        out_axes=((), ()) + (gradient_axes if gradient else ()),
    )


def _chunk_bytes(x_BTD: Array) -> int:
    return _CHUNK_BYTES.get(target_of(x_BTD).platform, _DEFAULT_CHUNK_BYTES)


def _chunk_size(tokens: int, vocab_size: int, limit: int) -> int:
    """Returns the tokens per chunk: all, or equal parts whose float32 logits take about `limit`
    bytes."""
    number = -(-4 * tokens * vocab_size // limit)
    return tokens if number <= 1 else _TILE * math.ceil(tokens / number / _TILE)


def _chunked(array_BT: Array, size: int) -> Array:
    """Splits [B, T, ...] into chunks: [chunks, B, T, ...].

    This is one chunk in the original shape, or chunks of shape [size / 128, 128, ...]. They are
    padded with zeros, which have weight 0.
    """
    tokens, rest = array_BT.shape[0] * array_BT.shape[1], array_BT.shape[2:]
    if size == tokens:
        return array_BT[None]
    flat = array_BT.reshape(tokens, *rest)
    filled = jnp.pad(flat, ((0, -tokens % size),) + ((0, 0),) * len(rest))
    return filled.reshape(-1, size // _TILE, _TILE, *rest)


def _unchunked(chunks: Array, shape: tuple[int, ...]) -> Array:
    """Inverse of _chunked: [B, T, ...], with the padding removed."""
    tokens = shape[0] * shape[1]
    return chunks.reshape(-1, *shape[2:])[:tokens].reshape(shape)


def _over_chunks(step, chunks: list[Array]):
    """Sums step(x, targets, weights) -> (two sums, dx, dhead or None) over the chunks."""
    if chunks[0].shape[0] == 1:
        return step(*(a[0] for a in chunks))

    def body(total, chunk):
        sums, dx_BTD, dhead_DV = step(*chunk)
        return jax.tree.map(jnp.add, total, (sums, dhead_DV)), dx_BTD

    shapes = jax.eval_shape(step, *(a[0] for a in chunks))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0], shapes[2]))
    (sums, dhead_DV), dx = jax.lax.scan(body, zeros, tuple(chunks))
    return sums, dx, dhead_DV


def _logits(x_BTD, targets_BT, head_DV, vocab_axes, temperature: float):
    """Returns the logits of a chunk for this device's vocabulary shard, [B, T, V], and 3 x [B, T].

    These are the maximum logit over all shards, the target's index relative to this shard (it may
    be outside), and the target's logit if this shard holds it (else 0).
    """
    logits_BTV = _contract(x_BTD, head_DV, 2, 0, jnp.float32) / temperature
    V = logits_BTV.shape[2]
    top_BT = jnp.max(logits_BTV, axis=-1)
    if vocab_axes:
        top_BT = jax.lax.pmax(top_BT, vocab_axes)
        targets_BT = targets_BT - jax.lax.axis_index(vocab_axes) * V
    # A gather is faster than summing a masked copy. A target in another shard contributes 0.
    nearest_BT = jnp.clip(targets_BT, 0, V - 1)
    chosen_BT = jnp.take_along_axis(logits_BTV, nearest_BT[:, :, None], axis=-1)[:, :, 0]
    return logits_BTV, top_BT, targets_BT, jnp.where(nearest_BT == targets_BT, chosen_BT, 0.0)


def _likelihoods(x_BTD, targets_BT, *, head_DV, vocab_axes, temperature: float):
    """Returns log p(target) and the entropy of p, for one chunk on one device.

    With l = logits - max and Z = sum exp(l), they are l[target] - log Z and
    log Z - sum exp(l) l / Z, which takes one exponential per logit.
    """
    logits_BTV, top_BT, _, chosen_BT = _logits(x_BTD, targets_BT, head_DV, vocab_axes, temperature)
    l_BTV = logits_BTV - top_BT[:, :, None]
    powers_BTV = jnp.exp(l_BTV)
    total_BT, weighted_BT, chosen_BT = _sum_over(
        jnp.stack([jnp.sum(powers_BTV, axis=-1), jnp.sum(powers_BTV * l_BTV, axis=-1), chosen_BT]),
        vocab_axes,
    )
    log_total_BT = jnp.log(total_BT)
    return chosen_BT - top_BT - log_total_BT, log_total_BT - weighted_BT / total_BT


def _chunk(
    x_BTD,
    targets_BT,
    weights_BT,
    *,
    head_DV,
    z_loss,
    vocab_axes,
    gradient: bool,
    temperature: float,
):
    """Computes `_sums` for one chunk on one device; dx and dhead cover only this device's shard."""
    logits_BTV, top_BT, targets_BT, chosen_BT = _logits(
        x_BTD, targets_BT, head_DV, vocab_axes, temperature
    )
    total_BT = jnp.sum(jnp.exp(logits_BTV - top_BT[:, :, None]), axis=-1)
    total_BT, chosen_BT = _sum_over(jnp.stack([total_BT, chosen_BT]), vocab_axes)
    log_z_BT = jnp.log(total_BT) + top_BT
    z_weight = jnp.float32(z_loss or 0.0)
    nll = jnp.sum(weights_BT * (log_z_BT - chosen_BT))
    sums = nll + z_weight * jnp.sum(weights_BT * jnp.square(log_z_BT)), nll
    if not gradient:
        return sums, None, None
    scale_BT = weights_BT * (1.0 + 2.0 * z_weight * log_z_BT)
    ids = jnp.arange(logits_BTV.shape[2], dtype=targets_BT.dtype)
    is_target = ids[None, None, :] == targets_BT[:, :, None]
    softmax_BTV = jnp.exp(logits_BTV - log_z_BT[:, :, None])
    dlogits_BTV = softmax_BTV * scale_BT[:, :, None] - jnp.where(
        is_target, weights_BT[:, :, None], 0.0
    )
    dlogits_BTV = (dlogits_BTV / temperature).astype(x_BTD.dtype)
    dx_BTD = _contract(dlogits_BTV, head_DV, 2, 1, None)
    # The input is on the left, with two token axes: XLA:CPU has a fast matmul only for this form.
    dhead_DV = _contract(x_BTD, dlogits_BTV, (0, 1), (0, 1), jnp.float32)
    return sums, dx_BTD, dhead_DV


def _contract(a: Array, b: Array, axes_a, axes_b, dtype) -> Array:
    axes_a, axes_b = ((axis,) if isinstance(axis, int) else axis for axis in (axes_a, axes_b))
    return jax.lax.dot_general(a, b, ((axes_a, axes_b), ((), ())), preferred_element_type=dtype)


def _sum_over(x: Array, axes: tuple[str, ...]) -> Array:
    return jax.lax.psum(x, axes) if axes else x
