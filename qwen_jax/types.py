"""Typed pytrees: what a model, a batch and a training state are made of.

Shape letters, here and everywhere: B batch, T query positions, S key positions, D model, N heads,
K key-value heads, H head size, F ffn, V vocabulary, L layers. Weights of all layers are stacked
on a leading L axis and scanned. The same class holds arrays, specs, shardings or moments.
"""

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

import jax
from flax.struct import PyTreeNode

if TYPE_CHECKING:
    Array = Any  # a field holds an array, or its Spec, shape, sharding or moment: see above
    Device = Any  # jaxlib, which defines it, has no types
else:
    Array, Device = jax.Array, jax.Device


@dataclasses.dataclass(frozen=True)
class Spec:
    """The declaration of one weight; a leaf, so a Params of Specs is an ordinary pytree."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]  # one logical axis name per dimension (parallel/sharding.py)
    init: Literal["normal", "zeros", "ones"]
    std: float = 0.0  # of "normal"


class AttentionParams(PyTreeNode):
    wq: Array  # [L, D, N, H]
    bq: Array  # [L, N, H]
    wk: Array  # [L, D, K, H]
    bk: Array  # [L, K, H]
    wv: Array  # [L, D, K, H]
    bv: Array  # [L, K, H]
    wo: Array  # [L, N, H, D]


class MLPParams(PyTreeNode):
    w_gate: Array  # [L, D, F]; the branch that goes through silu (w2 of the released layout)
    w_up: Array  # [L, D, F]; w1 of the released layout
    w_down: Array  # [L, F, D]


class LayerParams(PyTreeNode):
    attention_norm: Array  # [L, D]
    attention: AttentionParams
    mlp_norm: Array  # [L, D]
    mlp: MLPParams


class Params(PyTreeNode):
    embed: Array  # [V, D]
    layers: LayerParams
    final_norm: Array  # [D]
    head: Array | None  # [D, V]; None when tied to the embedding


class Batch(PyTreeNode):
    """Rows of a fixed length T; a position with segment 0 is padding."""

    tokens: Array  # int32 [B, T]
    targets: Array  # int32 [B, T]; the token that follows
    loss_weights: Array  # float32 [B, T]; 0 where nothing is to be learned
    segment_ids: Array  # int32 [B, T]; contiguous runs, one per document; 0 is padding
    positions: Array  # int32 [B, T]; restarts at 0 where attention does


class PairBatch(PyTreeNode):
    """Pairs of answers to one prompt, the preferred one first (axis 1); padded on the right."""

    tokens: Array  # int32 [B, 2, T]; ends with the answer's <|im_end|>
    targets: Array  # int32 [B, 2, T]; the token that follows
    response_weights: Array  # float32 [B, 2, T]; 1 where the target is of the answer
    segment_ids: Array  # int32 [B, 2, T]; 1, and 0 for padding
    end: Array  # int32 [B, 2]; where the reward is read: the last real token
    weights: Array  # float32 [B]; 0 for a pair that fills up a batch


class ScoringParams(PyTreeNode):
    """A language model whose output projection is one number per token: a reward or a value."""

    trunk: Params  # head is None
    score: Array  # [D]


class Sums(PyTreeNode):
    """What an objective returns. The step divides by the global weight, never by a local one."""

    loss_sum: Array  # float32 []
    weight_sum: Array  # float32 []
    extras: dict[str, Array]  # float32 []; sums too, divided by weight_sum for the log


class TrainState(PyTreeNode):
    """All that training changes. No random key: a step's key is fold_in(key(seed), step)."""

    step: Array  # int32 []; optimizer steps done
    params: Params
    opt_state: Any  # optax state, shaped like params
    # bool []; a loss or gradient was not finite, and nothing changes any more. None in a checkpoint
    # (what is saved is good) and in a state that is a part of another one, which has the flag.
    halted: Array | None = None


class CacheBlock(PyTreeNode):
    """Keys and values of a range of positions, for one layer (l = 1) or for all layers.

    Heads come before positions, so a decoding step multiplies with the cache in its memory order.
    In int8 an entry represents entry * scale + shift, with one pair per token and head.
    """

    keys: Array  # [l, B, K, C, H], rotated, each layer with its own base
    values: Array  # [l, B, K, C, H]
    key_scales: Array | None  # float32 [l, B, K, C, 2], scale and shift; None unless int8
    value_scales: Array | None  # the same


class KVCache(PyTreeNode):
    """Keys and values of the tokens so far; each sequence fills its positions from 0.

    The cache is split into blocks of positions (inference/decoder/kv_cache.py). Blocks past every
    sequence are not read. Each block is an array of its own, because XLA:CPU copies slices.
    """

    blocks: tuple[tuple[CacheBlock, ...], ...]  # blocks[layer, or 0 for all][range of positions]
    lengths: Array  # int32 [B]; positions in use
    ntk_lengths: Array  # int32 [B]; the full prompt's, which fixes NTK's alpha (report 2.5)
