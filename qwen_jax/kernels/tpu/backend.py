"""Attention on TPUs: Pallas Mosaic kernels, forward and fused backward.

At 8,192 tokens, a kernel does its work per score 64 million times. XLA therefore does as much as
possible outside the kernel: it folds the scale and log2(e) into q, the mask into one int32 per
query (mask.py), and dout * out into delta.

Float32 inputs are multiplied in six BF16 passes (Precision.HIGHEST). Softmax statistics and sums
are always float32.

B batch, T positions, P padded positions, N heads, K key-value heads, H head size.
"""

import math

import jax.numpy as jnp

from qwen_jax.kernels import tiles
from qwen_jax.kernels.backend import Block, Call, differentiable
from qwen_jax.kernels.platform import interpret_mode, target_of
from qwen_jax.kernels.tpu.backward import backward as backward_kernel
from qwen_jax.kernels.tpu.forward import forward as forward_kernel
from qwen_jax.kernels.tpu.visited_tiles import LANES, Tiling, bounds, heads_first, pad_mask
from qwen_jax.types import Array

PLATFORM = "tpu"

_LOG2_E = math.log2(math.e)
# Chosen by static utilization (benchmarks/aot/tpu_aot.py), not measured. `compute`: keys computed
# at once; `masked`: the same in tiles that need the mask; `chunk`: queries, times heads of a group,
# whose dq stays in VMEM.
TILES = {
    "tpu_forward": {"query": 1024, "key": 1024, "compute": 512},
    "tpu_backward": {"query": 1024, "key": 1024, "compute": 512, "chunk": 8192},
}
# Sizes that better suit the schedule, or the 16 MiB of VMEM, of a device kind.
_TILES_OF_KIND = {
    ("tpu_forward", "TPU v4"): {"compute": 256, "masked": 512},
    ("tpu_forward", "TPU7x"): {"compute": 256, "masked": 512},
    ("tpu_backward", "TPU v4"): {"chunk": 4096},
}
# With six passes per matmul, larger tiles take minutes to compile.
_TILES_OF_FLOAT32 = {
    "tpu_forward": {"query": 512, "key": 512, "compute": 256, "masked": 256},
    "tpu_backward": {"query": 512, "key": 512, "compute": 256, "chunk": 4096},
}
_MAX_HEADS = 32  # query heads per key-value head: a chunk holds one tile of 128 queries of each


def refuse(call: Call) -> str | None:
    """Returns why the TPU kernels cannot run the call; None if they can."""
    if call.T != call.S:
        return "supports only full sequences (as many queries as keys)"
    if call.dtype not in (jnp.bfloat16, jnp.float32):
        return f"supports bfloat16 and float32, not {call.dtype}"
    if call.N // call.K > _MAX_HEADS:
        return f"supports up to {_MAX_HEADS} query heads per key-value head, not {call.N // call.K}"
    if call.H > 128:
        return f"supports head sizes up to 128, not {call.H}"
    return None


def sizes(kernel: str, *, kind: str, head_size: int, dtype: str) -> dict[str, int]:
    """Returns the tile sizes of "tpu_forward" or "tpu_backward" on a TPU kind ("TPU v5 lite")."""
    default = TILES[kernel] | _TILES_OF_KIND.get((kernel, kind), {})
    if dtype == "float32":
        default = default | _TILES_OF_FLOAT32[kernel]
    return tiles.lookup(kernel, kind=kind, head_size=head_size, dtype=dtype, default=default)


def _sizes(kernel: str, q: Array) -> dict[str, int]:
    return sizes(kernel, kind=target_of(q).kind, head_size=q.shape[3], dtype=q.dtype.name)


def _padded_head(x: Array) -> Array:
    """Pads the head axis with zeros to 64 or 128, which does not change the result."""
    H = x.shape[-1]
    return jnp.pad(x, ((0, 0),) * 3 + ((0, (64 if H <= 64 else 128) - H),))


def _scaled(q_BTNH: Array, scale: float) -> Array:
    return (q_BTNH.astype(jnp.float32) * jnp.float32(scale * _LOG2_E)).astype(q_BTNH.dtype)


def _forward(q, k, v, k_start, q_end, *, scale: float):
    del q_end  # the bounds of tiles follow from k_start and causality
    return _forward_block(q, k, v, k_start, None, scale=scale, dtype=q.dtype)


def _backward(q, k, v, k_start, q_end, out, lse, dout, *, scale: float):
    del q_end
    return _backward_block(q, k, v, k_start, None, out, lse, dout, scale=scale, dtype=q.dtype)


def _forward_block(q, k, v, k_start, k_end, *, scale: float, dtype=jnp.float32):
    T, H = q.shape[1], q.shape[3]
    tiling = Tiling.of(T, _sizes("tpu_forward", q))
    k_start, k_end = pad_mask(k_start, k_end, tiling)
    q2, k2, v2 = (heads_first(_padded_head(x), tiling) for x in (_scaled(q, scale), k, v))
    out, lse = forward_kernel(
        q2,
        k2,
        v2,
        k_start,
        k_end,
        bounds(k_start, k_end, tiling),
        tiling=tiling,
        dtype=dtype,
        interpret=interpret_mode(),
    )
    return out.transpose(0, 2, 1, 3)[:, :T, :, :H], lse[:, :, 0, :T]


def _backward_block(q, k, v, k_start, k_end, out, lse, dout, *, scale: float, dtype=jnp.float32):
    T, H = q.shape[1], q.shape[3]
    tile_sizes = _sizes("tpu_backward", q)
    if dtype != q.dtype:  # float32 gradients of a bfloat16 chunk take twice the VMEM
        tile_sizes = tile_sizes | {"chunk": tile_sizes["chunk"] // 2}
    of_head = tile_sizes["chunk"] // (q.shape[2] // k.shape[2])
    limit = max(LANES, 1 << (of_head.bit_length() - 1))  # a power of two, like tile sizes
    tiling = Tiling.of(T, tile_sizes | {"query": min(tile_sizes["query"], limit)})
    k_start, k_end = pad_mask(k_start, k_end, tiling)
    delta = jnp.sum(dout.astype(jnp.float32) * out.astype(jnp.float32), axis=3)
    # Padded queries see no key, so their log-sum-exp may have any value.
    lse, delta = (
        jnp.pad(x, ((0, 0), (0, 0), (0, tiling.P - T)))[:, :, None]
        for x in (lse, delta.transpose(0, 2, 1))
    )
    q2, k2, v2, dout2 = (
        heads_first(_padded_head(x), tiling) for x in (_scaled(q, scale), k, v, dout)
    )
    grads = backward_kernel(
        q2,
        k2,
        v2,
        dout2,
        lse,
        delta,
        k_start,
        k_end,
        bounds(k_start, k_end, tiling),
        scale=scale,
        tiling=tiling,
        chunk=tile_sizes["chunk"],
        dtype=jnp.dtype(dtype),
        interpret=interpret_mode(),
    )
    return tuple(x.transpose(0, 2, 1, 3)[:, :T, :, :H].astype(dtype) for x in grads)


attention = differentiable(_forward, _backward)
BLOCK = Block(_forward_block, _backward_block, base=2.0)
