"""Cross-entropy and log-probabilities of hidden states and output projection, without all the
logits in memory.

Tokens are taken in chunks. When a gradient is asked for, a chunk's share of it is computed while
its logits are there: three products with the output projection where recomputing them takes four.
On a mesh each device works on its own tokens and its own part of the vocabulary; the projection is
put together once and its gradient added up once, whatever the number of chunks.

B batch and T positions (of all tokens, of a device or of a chunk), D model, V vocabulary, C = B T
tokens of a chunk.
"""

import functools
import math

import jax
import jax.numpy as jnp

from qwen_jax.kernels.platform import target_of
from qwen_jax.parallel.sharding import map_shards, sharded_axes
from qwen_jax.types import Array

# Float32 logits of one chunk, bytes. On an accelerator a chunk also reads and writes the gradient
# of the projection (8 D V bytes) for 6 C D V operations: below some 500 tokens that would take
# longer than the products do. 1 GiB is 1,766 tokens of Qwen's vocabulary.
_CHUNK_BYTES = {"cpu": 256 << 20}
_DEFAULT_CHUNK_BYTES = 1 << 30
_TILE = 128  # chunks that are not everything are multiples of it


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def cross_entropy(
    x_BTD: Array, head_DV: Array, targets_BT: Array, weights_BT: Array, z_loss: float | None = None
) -> tuple[Array, Array]:
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
    """(log p(target), entropy of p), float32 [B, T] each; p is the softmax of x W / temperature.

    In the backward pass the logits are computed again. No gradient comes from the entropy.

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
        found = jax.lax.map(lambda chunk: step(*chunk), chunks)
        return tuple(_in_rows(x, targets_BT.shape) for x in found)

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
    # The gradient of sum w (-log p) for w = -cotangent.
    *_, dx_BTD, dhead_DV = _sums(
        x_BTD, head_DV, targets_BT, -cotangents[0], None, gradient=True, temperature=temperature
    )
    return dx_BTD, dhead_DV.astype(head_DV.dtype), None


log_likelihoods.defvjp(_likelihoods_forward, _likelihoods_backward)


def _sums(
    x_BTD, head_DV, targets_BT, weights_BT, z_loss, *, gradient: bool, temperature: float = 1.0
):
    """Loss and cross-entropy and, if asked for, their gradients with respect to x and W."""
    B, T, _ = x_BTD.shape
    D, V = head_DV.shape
    token_axes = sharded_axes(B, "batch") + sharded_axes(T, "length")
    vocab_axes = sharded_axes(V, "act_vocab")
    # Where the projection is stored in pieces of D, each device needs its piece of the sum alone.
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
        dx_BTD = _in_rows(dx, x_BTD.shape)
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
    """Tokens in a chunk: all, or an even share of them whose float32 logits take `limit` bytes."""
    number = -(-4 * tokens * vocab_size // limit)
    return tokens if number <= 1 else _TILE * math.ceil(tokens / number / _TILE)


def _chunked(array_BT: Array, size: int) -> Array:
    """[B, T, ...] -> [chunks, B, T, ...]: one chunk as it is, or chunks of [size / 128, 128, ...],
    filled up with zeros, which weigh nothing."""
    tokens, rest = array_BT.shape[0] * array_BT.shape[1], array_BT.shape[2:]
    if size == tokens:
        return array_BT[None]
    flat = array_BT.reshape(tokens, *rest)
    filled = jnp.pad(flat, ((0, -tokens % size),) + ((0, 0),) * len(rest))
    return filled.reshape(-1, size // _TILE, _TILE, *rest)


def _in_rows(chunks: Array, shape: tuple[int, ...]) -> Array:
    """What _chunked cut, [B, T, ...], without what it filled up with."""
    tokens = shape[0] * shape[1]
    return chunks.reshape(-1, *shape[2:])[:tokens].reshape(shape)


def _over_chunks(step, chunks: list[Array]):
    """step(x, targets, weights) -> (two sums, dx, dhead or None), added up over the chunks."""
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
    """Of a chunk, whose projection may be a part of the vocabulary: its logits [B, T, V], and the
    largest of all parts, the target's place in this part (or outside of it) and its logit here (or
    0): [B, T]."""
    logits_BTV = _product(x_BTD, head_DV, 2, 0, jnp.float32) / temperature
    V = logits_BTV.shape[2]
    top_BT = jnp.max(logits_BTV, axis=-1)
    if vocab_axes:
        top_BT = jax.lax.pmax(top_BT, vocab_axes)
        targets_BT = targets_BT - jax.lax.axis_index(vocab_axes) * V
    # Gathered, which is faster than summing a masked copy; a target that is elsewhere counts 0.
    nearest_BT = jnp.clip(targets_BT, 0, V - 1)
    chosen_BT = jnp.take_along_axis(logits_BTV, nearest_BT[:, :, None], axis=-1)[:, :, 0]
    return logits_BTV, top_BT, targets_BT, jnp.where(nearest_BT == targets_BT, chosen_BT, 0.0)


def _likelihoods(x_BTD, targets_BT, *, head_DV, vocab_axes, temperature: float):
    """log p(target) and the entropy of p, of one chunk on one device.

    With l = logits - max and Z = sum exp(l) they are l[target] - log Z and
    log Z - sum exp(l) l / Z: one exponential for each logit.
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
    """_sums of one chunk on one device; dx and dhead are this part's alone."""
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
    word = jnp.arange(logits_BTV.shape[2], dtype=targets_BT.dtype)
    is_target = word[None, None, :] == targets_BT[:, :, None]
    softmax_BTV = jnp.exp(logits_BTV - log_z_BT[:, :, None])
    dlogits_BTV = softmax_BTV * scale_BT[:, :, None] - jnp.where(
        is_target, weights_BT[:, :, None], 0.0
    )
    dlogits_BTV = (dlogits_BTV / temperature).astype(x_BTD.dtype)
    dx_BTD = _product(dlogits_BTV, head_DV, 2, 1, None)
    # The input on the left, and two axes of tokens: a CPU's fast product takes this form alone.
    dhead_DV = _product(x_BTD, dlogits_BTV, (0, 1), (0, 1), jnp.float32)
    return sums, dx_BTD, dhead_DV


def _product(a: Array, b: Array, axes_a, axes_b, dtype) -> Array:
    axes_a, axes_b = ((axis,) if isinstance(axis, int) else axis for axis in (axes_a, axes_b))
    return jax.lax.dot_general(a, b, ((axes_a, axes_b), ((), ())), preferred_element_type=dtype)


def _sum_over(x: Array, axes: tuple[str, ...]) -> Array:
    return jax.lax.psum(x, axes) if axes else x
