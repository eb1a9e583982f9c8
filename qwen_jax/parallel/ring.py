"""Context parallelism with ring attention: sequences are sharded over devices.

Each device keeps its queries. Keys and values move around the ring, one device per step, and their
transfer overlaps with computation. Partial outputs are merged by their log-sum-exp. In the backward
pass, the gradients of keys and values move with them and return to their own device.

With a causal mask and contiguous shards, the last device would do the most work. A sequence is
therefore split into 2n chunks for n devices, and device d holds chunks d and 2n-1-d. In each step,
every device then computes the equivalent of two of its four pairs of chunks. Chunks stay in order
within a device, so each query still sees one interval of keys.

B batch, T positions in a sequence, C = T / n per device, N heads, K key-value heads, H head size.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from qwen_jax.parallel import sharding
from qwen_jax.types import Array

_NOTHING = 1e29  # a log-sum-exp above this means that the query has seen no key yet
F32 = jnp.float32


@dataclasses.dataclass(frozen=True)
class Ring:
    """The layout of sequences of one length over the devices of a mesh axis."""

    axis: str  # name of the mesh axis
    size: int  # number of devices
    length: int  # tokens in a sequence
    balanced: bool  # True: two chunks per device; False: one

    @property
    def chunk(self) -> int:
        return self.length // (self.size * (2 if self.balanced else 1))

    def starts(self, shard) -> list:
        """Returns the first position of each chunk of a shard. `shard` may be traced."""
        if not self.balanced:
            return [shard * self.chunk]
        return [shard * self.chunk, (2 * self.size - 1 - shard) * self.chunk]

    def positions(self, shard) -> Array:
        """Returns the position of each token of a shard, int32 [C], ascending."""
        index = jnp.arange(self.chunk, dtype=jnp.int32)
        return jnp.concatenate([start + index for start in self.starts(shard)])

    def tokens_before(self, position, shard) -> Array:
        """Returns the number of a shard's tokens that precede a position of the sequence."""
        return sum(jnp.clip(position - start, 0, self.chunk) for start in self.starts(shard))

    def order(self) -> np.ndarray:
        """Returns the sequence positions in ring order, int32 [T]."""
        first = np.concatenate([np.asarray(self.starts(shard)) for shard in range(self.size)])
        return (first[:, None] + np.arange(self.chunk)[None]).reshape(-1).astype(np.int32)

    def shift(self, x: Array) -> Array:
        """Returns the x of the previous device in the ring."""
        return jax.lax.ppermute(x, self.axis, [(i, (i + 1) % self.size) for i in range(self.size)])


def ring_of(length: int, *, balanced: bool = True) -> Ring | None:
    """Returns the ring for sequences of this length on the current mesh; None if they are not
    sharded.

    Args:
      balanced: whether the tokens of a sequence may be reordered.
    """
    axes = sharding.sharded_axes(length, "length")
    if len(axes) != 1:
        return None
    size = sharding.axis_size(axes[0])
    return Ring(axes[0], size, length, balanced and length % (2 * size) == 0)


def to_ring(x: Array, ring: Ring | None) -> Array:
    """Reorders [B, T] from sequence order to ring order."""
    if ring is None or not ring.balanced:
        return x
    return sharding.constrain(jnp.take(x, ring.order(), axis=1), "batch", "length")


def from_ring(x_BTD: Array, ring: Ring | None) -> Array:
    """Reorders [B, T, D] from ring order to sequence order.

    It takes two exchanges: every device holds one even and one odd chunk, before and after.
    """
    if ring is None or not ring.balanced:
        return x_BTD
    n = ring.size
    chunks = [(shard, 2 * n - 1 - shard) for shard in range(n)]

    def exchange(x_BCD):
        halves = jnp.split(x_BCD, 2, axis=1)
        odd_shard = jax.lax.axis_index(ring.axis) % 2 == 1
        even, odd = (jnp.where(odd_shard, *pair) for pair in (halves[::-1], halves))
        sent = []
        for parity, x in enumerate((even, odd)):
            to = [next(chunk // 2 for chunk in held if chunk % 2 == parity) for held in chunks]
            sent.append(jax.lax.ppermute(x, ring.axis, list(enumerate(to))))
        return jnp.concatenate(sent, axis=1)

    axes = ("batch", "length", None)
    return sharding.map_shards(exchange, x_BTD, axes=(axes,), out_axes=axes)


def ring_attention(
    q_BTNH: Array,
    k_BTKH: Array,
    v_BTKH: Array,
    k_start_BT: Array,
    *,
    block,
    ring: Ring,
    scale: float,
    names: tuple[str, str],
    heads: tuple,
) -> Array:
    """Computes causal attention of sequences in ring order, [B, T, N, H] in q's dtype.

    Args:
      k_start_BT: the first position that each query sees, int32; T if it sees none.
      block: the kernels.backend.Block of a backend.
      names: checkpoint names of the output and its log-sum-exp, for remat policies.
      heads: logical axis names of the heads of q and of k.
    """
    q_axes, k_axes = (("batch", "length", axis, None) for axis in heads)
    setting = _Setting(block, ring, scale, names)
    return sharding.map_shards(
        lambda *arrays: _attend(*arrays, setting),
        q_BTNH,
        k_BTKH,
        v_BTKH,
        k_start_BT,
        axes=(q_axes, k_axes, k_axes, ("batch", "length")),
        out_axes=q_axes,
    )


@dataclasses.dataclass(frozen=True)
class _Setting:
    block: Any
    ring: Ring
    scale: float
    names: tuple[str, str]

    def steps(self, k_start: Array) -> list[tuple[Array, Array]]:
        """Returns the first and last key that each query sees in each step, int32 [B, C]."""
        ring, here = self.ring, jax.lax.axis_index(self.ring.axis)
        found = []
        for step in range(ring.size):
            shard = (here - step) % ring.size
            last = ring.tokens_before(ring.positions(here) + 1, shard) - 1
            found.append(
                (ring.tokens_before(k_start, shard), jnp.broadcast_to(last[None], k_start.shape))
            )
        return found


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q, k, v, k_start, setting: _Setting):
    """Computes attention on one device; all arrays are local shards."""
    return _forward(q, k, v, k_start, setting)[0]


def _forward(q, k, v, k_start, setting: _Setting):
    ring, block, parts = setting.ring, setting.block, []
    steps = setting.steps(k_start)
    for number, interval in enumerate(steps, start=1):
        following = (ring.shift(k), ring.shift(v)) if number < len(steps) else None
        parts.append(block.forward(q, k, v, *interval, scale=setting.scale))
        k, v = following or (k, v)
    out, lse = functools.reduce(functools.partial(_merge, base=block.base), parts)
    return out.astype(q.dtype), lse


def _attend_forward(q, k, v, k_start, setting: _Setting):
    found = _forward(q, k, v, k_start, setting)
    out, lse = (checkpoint_name(x, name) for x, name in zip(found, setting.names, strict=True))
    return out, (q, k, v, k_start, out, lse)


def _attend_backward(setting: _Setting, residuals, dout):
    q, k, v, k_start, out, lse = residuals
    ring, block = setting.ring, setting.block
    steps = setting.steps(k_start)
    dq = dk = dv = None
    for number, interval in enumerate(steps, start=1):
        following = (ring.shift(k), ring.shift(v)) if number < len(steps) else None
        if number > 1:  # move the partial sums along with their keys
            dk, dv = ring.shift(dk), ring.shift(dv)
        more = block.backward(q, k, v, *interval, out, lse, dout, scale=setting.scale)
        dq, dk, dv = (
            more if number == 1 else (a + b for a, b in zip((dq, dk, dv), more, strict=True))
        )
        k, v = following or (k, v)
    assert dq is not None, "a ring has at least one step"
    return *(x.astype(q.dtype) for x in (dq, ring.shift(dk), ring.shift(dv))), None


_attend.defvjp(_attend_forward, _attend_backward)


def _merge(one, other, *, base: float) -> tuple[Array, Array]:
    """Merges two partial results (out [B, T, N, H], lse [B, N, T]); an lse of 1e30 means that the
    query has seen no key."""
    lses = [
        jnp.where(lse > _NOTHING, -jnp.inf, lse * F32(math.log(base))) for _, lse in (one, other)
    ]
    total = jnp.logaddexp(*lses)
    empty = total == -jnp.inf
    weights = [jnp.where(empty, 0.0, jnp.exp(lse - jnp.where(empty, 0.0, total))) for lse in lses]
    out = sum(
        out * weight.transpose(0, 2, 1)[..., None]
        for (out, _), weight in zip((one, other), weights, strict=True)
    )
    return out, jnp.where(empty, F32(1e30), total / F32(math.log(base)))
