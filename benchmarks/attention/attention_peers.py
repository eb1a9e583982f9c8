"""The contestants of attention.py: our backends, jax's own attention and tokamax.

Each is called as its documentation recommends: packed documents use segment IDs if supported, and a
boolean mask otherwise.

Shapes: B batch, T positions, N heads, K key-value heads, H head size.
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from qwen_jax.kernels.attention import IMPLEMENTATIONS, attention, call_of, refusal
from qwen_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Contestant:
    """attend(q, k, v, *, segment_ids=None), or the reason it cannot run."""

    name: str
    attend: Callable | None = None
    reason: str = ""
    ours: bool = False


def contestants(q: Array, k: Array, segment_ids: Array | None) -> list[Contestant]:
    """Returns all contestants for arrays of these shapes; those that cannot run have a reason."""
    platform = jax.devices()[0].platform
    found = [_ours(name, q, k, segment_ids) for name in IMPLEMENTATIONS if name != "reference"]
    found.append(Contestant("jax.nn xla", functools.partial(_jax_nn, implementation="xla")))
    if platform == "gpu":
        found.append(Contestant("jax.nn cudnn", functools.partial(_jax_nn, implementation="cudnn")))
    if platform == "tpu":
        found += [Contestant("jax flash", _flash), Contestant("jax splash", _splash)]
    return found + _tokamax(platform)


def _ours(name: str, q: Array, k: Array, segment_ids: Array | None) -> Contestant:
    reason = refusal(name, call_of(q, k, segment_ids=segment_ids, window=None))
    attend = None if reason else functools.partial(attention, implementation=name)
    return Contestant(f"qwen_jax {name}", attend, reason or "", ours=True)


def dense_mask(segment_ids: Array | None) -> Array | None:
    """Returns bool [B, 1, T, T] for peers without segment IDs; causality is a separate argument."""
    if segment_ids is None:
        return None
    same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    return same & (segment_ids != 0)[:, None, :, None]


def _jax_nn(q, k, v, *, segment_ids=None, implementation):
    return jax.nn.dot_product_attention(
        q, k, v, mask=dense_mask(segment_ids), is_causal=True, implementation=implementation
    )


def _heads_first(*arrays: Array) -> list[Array]:
    return [x.transpose(0, 2, 1, 3) for x in arrays]


def _repeated(x: Array, heads: int) -> Array:
    return x if x.shape[2] == heads else jnp.repeat(x, heads // x.shape[2], axis=2)


def _block(T: int) -> int:
    """Returns the largest block size that compiles on every TPU and divides T."""
    return next((size for size in (1024, 512, 256, 128) if T % size == 0), T)


def _flash(q, k, v, *, segment_ids=None):
    from jax.experimental.pallas.ops.tpu import flash_attention as module

    N, H, b = q.shape[2], q.shape[3], _block(q.shape[1])
    blocks = module.BlockSizes(
        block_q=b,
        block_k_major=b,
        block_k=b,
        block_b=1,
        block_q_major_dkv=b,
        block_k_major_dkv=b,
        block_k_dkv=b,
        block_q_dkv=b,
        block_k_major_dq=b,
        block_k_dq=b,
        block_q_dq=b,
    )
    ids = None if segment_ids is None else module.SegmentIds(segment_ids, segment_ids)
    out = module.flash_attention(
        *_heads_first(q, _repeated(k, N), _repeated(v, N)),
        segment_ids=ids,
        causal=True,
        sm_scale=H**-0.5,
        block_sizes=blocks,
    )
    return out.transpose(0, 2, 1, 3)


def _splash(q, k, v, *, segment_ids=None):
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernel,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask as masks,
    )

    T, N, H = q.shape[1:]
    b = _block(T)
    blocks = kernel.BlockSizes(
        block_q=b,
        block_kv=b,
        block_kv_compute=min(b, 512),
        block_q_dkv=b,
        block_kv_dkv=b,
        block_kv_dkv_compute=min(b, 512),
        use_fused_bwd_kernel=True,
    )
    mask = masks.MultiHeadMask([masks.CausalMask((T, T))] * N)
    splash = kernel.make_splash_mha(mask, head_shards=1, q_seq_shards=1, block_sizes=blocks)
    q = q * jnp.asarray(H**-0.5, q.dtype)
    arrays = _heads_first(q, _repeated(k, N), _repeated(v, N))
    if segment_ids is None:
        out = jax.vmap(splash)(*arrays)
    else:
        out = jax.vmap(splash)(*arrays, kernel.SegmentIds(segment_ids, segment_ids))
    assert isinstance(out, jax.Array)  # a tuple only with save_residuals
    return out.transpose(0, 2, 1, 3)


def _tokamax(platform: str) -> list[Contestant]:
    if importlib.util.find_spec("tokamax") is None:
        return [Contestant("tokamax", reason="is not installed (pip install tokamax)")]
    import tokamax  # pyright: ignore[reportMissingImports]  # an optional peer

    def attend(q, k, v, *, segment_ids=None, implementation):
        return tokamax.dot_product_attention(
            q, k, v, mask=dense_mask(segment_ids), is_causal=True, implementation=implementation
        )

    names = ("xla_chunked",) if platform == "cpu" else ("mosaic", "triton", "xla_chunked")
    return [
        Contestant(f"tokamax {name}", functools.partial(attend, implementation=name))
        for name in names
        if (platform, name) != ("tpu", "triton")
    ]


def documents(mask: str, T: int) -> tuple[int, ...] | None:
    """Returns the document lengths of a sequence for the name of a mask.

    "causal": one document without segment IDs. "one": one document with segment IDs. "four": four
    documents of equal length. "mix": concatenated text; the lengths are sampled with a fixed seed
    from a log-normal distribution with a median of 400 tokens and the long tail of web pages.
    """
    if mask == "causal":
        return None
    if mask == "one":
        return (T,)
    if mask == "four":
        return tuple(len(part) for part in np.array_split(np.arange(T), 4))
    lengths, left, rng = [], T, np.random.default_rng(0)
    while left:
        lengths.append(min(left, max(1, round(float(rng.lognormal(np.log(400), 1.2))))))
        left -= lengths[-1]
    return tuple(lengths)


def programs(who: Contestant, arrays, options: dict) -> dict:
    """Returns a call for each pass; each has been compiled and run once.

    Errors raised by the contestant's library are not caught.
    """
    q, k, v, dout = arrays
    assert who.attend is not None, who.reason
    attend_to = who.attend

    def attend(q, k, v, options):
        return attend_to(q, k, v, **options)

    def start(q, k, v, options):
        return jax.vjp(lambda q, k, v: attend(q, k, v, options), q, k, v)

    def both(q, k, v, dout, options):
        out, pull = start(q, k, v, options)
        return (out, *pull(dout))

    run_forward, run_both = jax.jit(attend), jax.jit(both)
    run_backward, pull = jax.jit(lambda pull, dout: pull(dout)), jax.jit(start)(q, k, v, options)[1]
    calls = {
        "forward": lambda: run_forward(q, k, v, options),
        "backward": lambda: run_backward(pull, dout),
        "both": lambda: run_both(q, k, v, dout, options),
    }
    for call in calls.values():
        jax.block_until_ready(call())
    return calls
