"""Typed pytrees of parameters, batches, training states and KV caches.

Shape letters used throughout the package: B batch, T query positions, S key positions, D model, N
heads, K key-value heads, H head size, F ffn, V vocabulary, L layers. The weights of all layers are
stacked on a leading L axis and scanned. The leaves of one class may be arrays, Specs, shardings or
moments.
"""

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

import jax
from flax.struct import PyTreeNode

if TYPE_CHECKING:
    Array = Any  # a field holds an array, or its Spec, shape, sharding or moment; see above
    Device = Any  # jaxlib defines it, without types
else:
    Array, Device = jax.Array, jax.Device


@dataclasses.dataclass(frozen=True)
class Spec:
    """The declaration of one weight. A Spec is a pytree leaf, so a Params can contain Specs."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]  # one logical axis name per dimension (parallel/sharding.py)
    init: Literal["normal", "zeros", "ones"]
    std: float = 0.0  # standard deviation, for "normal"


class AttentionParams(PyTreeNode):
    wq: Array  # [L, D, N, H]
    bq: Array | None  # [L, N, H]; None without QKV bias
    wk: Array  # [L, D, K, H]
    bk: Array | None  # [L, K, H]
    wv: Array  # [L, D, K, H]
    bv: Array | None  # [L, K, H]
    wo: Array  # [L, N, H, D]
    q_norm: Array | None = None  # [L, H]; None without QK-norm
    k_norm: Array | None = None  # [L, H]


class MLPParams(PyTreeNode):
    w_gate: Array  # [L, D, F]; the branch with the SiLU (w2 in the released layout)
    w_up: Array  # [L, D, F]; w1 in the released layout
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
    """Sequences of a fixed length T. A position with segment 0 is padding."""

    tokens: Array  # int32 [B, T]
    targets: Array  # int32 [B, T]; the next token
    loss_weights: Array  # float32 [B, T]; 0 at positions without loss
    segment_ids: Array  # int32 [B, T]; contiguous, one per document; 0 is padding
    positions: Array  # int32 [B, T]; restart at 0 where attention restarts


class PairBatch(PyTreeNode):
    """Pairs of responses to one prompt, chosen then rejected (axis 1), right-padded."""

    tokens: Array  # int32 [B, 2, T]; end with the response's <|im_end|>
    targets: Array  # int32 [B, 2, T]; the next token
    response_weights: Array  # float32 [B, 2, T]; 1 where the target belongs to the response
    segment_ids: Array  # int32 [B, 2, T]; 1 for tokens, 0 for padding
    end: Array  # int32 [B, 2]; position of the last non-padding token, where the reward is read
    weights: Array  # float32 [B]; 0 for a pair that pads the batch


class ScoringParams(PyTreeNode):
    """A language model whose head returns one number per token: a reward or a value."""

    trunk: Params  # head is None
    score: Array  # [D]


class Sums(PyTreeNode):
    """The result of an objective. The step divides by the global weight sum, not by a local one."""

    loss_sum: Array  # float32 []
    weight_sum: Array  # float32 []
    extras: dict[str, Array]  # float32 []; also sums, divided by weight_sum before logging


class TrainState(PyTreeNode):
    """Everything that training updates.

    There is no random key: each step derives its key from the seed and the step number,
    fold_in(key(seed), step).
    """

    step: Array  # int32 []; number of completed optimizer steps
    params: Params
    opt_state: Any  # optax state, shaped like params
    # bool []; set after a non-finite loss or gradient, which freezes the state. None in a
    # checkpoint (only finite states are saved) and in a state nested in one that has the flag.
    halted: Array | None = None


class CacheBlock(PyTreeNode):
    """Keys and values of a range of cache positions, for one layer (l = 1) or for all layers.

    The head axis precedes the position axis, so a decoding step needs no transpose. An int8 entry
    represents entry * scale + shift, with one (scale, shift) per token and head.
    """

    keys: Array  # [l, B, K, C, H], after rotary embedding, with a separate base for each layer
    values: Array  # [l, B, K, C, H]
    key_scales: Array | None  # float32 [l, B, K, C, 2], scale and shift; None unless int8
    value_scales: Array | None  # like key_scales


class KVCache(PyTreeNode):
    """Keys and values of the tokens processed so far. Each sequence fills its positions from 0.

    The positions are split into blocks (inference.decoder.kv_cache.block_sizes). A block past the
    end of every sequence is not read. Each block is a separate array, because XLA:CPU copies
    slices.
    """

    blocks: tuple[tuple[CacheBlock, ...], ...]  # blocks[layer, or 0 for all][position range]
    lengths: Array  # int32 [B]; number of positions in use
    ntk_lengths: Array  # int32 [B]; length of the full prompt, which sets NTK's alpha (report 2.5)
