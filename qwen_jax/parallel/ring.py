"""Context parallelism: a row cut over devices, keys and values going round them in a ring.

Each device keeps its queries. Keys and values visit every device, one step at a time, and while a
device computes with those that it has, the next ones travel. Partial results are put together by
their log-sum-exp. Backward, the gradients of keys and values travel with them and come home.

Causality leaves half of the work; of a row cut in order, the last device would do most of it. So a
row is cut into twice as many pieces as there are devices, and device d holds pieces d and 2n-1-d:
in each step every device then has the same two of its four pairs of pieces to compute. Within a
device the pieces keep their order, so that what a query sees is still one interval of keys.

B batch, T positions of a row, C = T / n of a device, N heads, K key-value heads, H head size.
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

_NOTHING = 1e29  # log-sum-exps above it say that a query has seen nothing yet
F32 = jnp.float32


@dataclasses.dataclass(frozen=True)
class Ring:
    """How rows of one length lie on the devices of a mesh axis."""

    axis: str
    size: int
    length: int  # tokens of a row
    balanced: bool  # two pieces on each device, or one

    @property
    def piece(self) -> int:
        return self.length // (self.size * (2 if self.balanced else 1))

    def starts(self, shard) -> list:
        """Where the pieces of a shard begin in the row. `shard` may be traced."""
        if not self.balanced:
            return [shard * self.piece]
        return [shard * self.piece, (2 * self.size - 1 - shard) * self.piece]

    def places(self, shard) -> Array:
        """Where each token of a shard stands in the row, int32 [C]; ascending."""
        index = jnp.arange(self.piece, dtype=jnp.int32)
        return jnp.concatenate([start + index for start in self.starts(shard)])

    def before(self, place, shard) -> Array:
        """How many tokens of a shard stand before a place of the row."""
        return sum(jnp.clip(place - start, 0, self.piece) for start in self.starts(shard))

    def order(self) -> np.ndarray:
        """The places of the row as the devices hold them, int32 [T]."""
        first = np.concatenate([np.asarray(self.starts(shard)) for shard in range(self.size)])
        return (first[:, None] + np.arange(self.piece)[None]).reshape(-1).astype(np.int32)

    def shift(self, x: Array) -> Array:
        """What the device before this one has."""
        return jax.lax.ppermute(x, self.axis, [(i, (i + 1) % self.size) for i in range(self.size)])


def ring_of(length: int, *, balanced: bool = True) -> Ring | None:
    """The ring of rows of this length on the mesh in use; None: rows are whole on each device.

    Args:
      balanced: whether rows may be held in another order than their own.
    """
    axes = sharding.sharded_axes(length, "length")
    if len(axes) != 1:
        return None
    size = sharding.axis_size(axes[0])
    return Ring(axes[0], size, length, balanced and length % (2 * size) == 0)


def to_ring(x: Array, ring: Ring | None) -> Array:
    """[B, T] in the row's order -> in the ring's."""
    if ring is None or not ring.balanced:
        return x
    return sharding.constrain(jnp.take(x, ring.order(), axis=1), "batch", "length")


def from_ring(x_BTD: Array, ring: Ring | None) -> Array:
    """[B, T, D] in the ring's order -> in the row's.

    In two exchanges: of its two pieces a device has one even and one odd, and so it shall have
    afterward.
    """
    if ring is None or not ring.balanced:
        return x_BTD
    n = ring.size
    pieces = [(shard, 2 * n - 1 - shard) for shard in range(n)]

    def exchange(x_BCD):
        halves = jnp.split(x_BCD, 2, axis=1)
        odd_shard = jax.lax.axis_index(ring.axis) % 2 == 1
        even, odd = (jnp.where(odd_shard, *pair) for pair in (halves[::-1], halves))
        sent = []
        for parity, x in enumerate((even, odd)):
            to = [next(piece // 2 for piece in held if piece % 2 == parity) for held in pieces]
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
    """Causal attention of rows in the ring's order, [B, T, N, H] in q's dtype.

    Args:
      k_start_BT: the first place of the row that each query sees, int32; T: none.
      block: a back end's kernels.differentiable.Block.
      names: by which a remat policy keeps the result and its log-sum-exp.
      heads: the logical axes of q's heads and of k's.
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
        """Of each step's keys, the first and the last that each query sees, int32 [B, C]."""
        ring, here = self.ring, jax.lax.axis_index(self.ring.axis)
        found = []
        for step in range(ring.size):
            shard = (here - step) % ring.size
            last = ring.before(ring.places(here) + 1, shard) - 1
            found.append((ring.before(k_start, shard), jnp.broadcast_to(last[None], k_start.shape)))
        return found


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q, k, v, k_start, setting: _Setting):
    """On one device; all arrays are its own part."""
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
        if number > 1:  # what was added up for these keys so far
            dk, dv = ring.shift(dk), ring.shift(dv)
        more = block.backward(q, k, v, *interval, out, lse, dout, scale=setting.scale)
        dq, dk, dv = (
            more if number == 1 else (a + b for a, b in zip((dq, dk, dv), more, strict=True))
        )
        k, v = following or (k, v)
    assert dq is not None, "a ring has a step"
    return *(x.astype(q.dtype) for x in (dq, ring.shift(dk), ring.shift(dv))), None


_attend.defvjp(_attend_forward, _attend_backward)


def _merge(one, other, *, base: float) -> tuple[Array, Array]:
    """Two parts of (out [B, T, N, H], lse [B, N, T]) as one; nothing seen is an lse of 1e30."""
    lses = [
        jnp.where(lse > _NOTHING, -jnp.inf, lse * F32(math.log(base))) for _, lse in (one, other)
    ]
    total = jnp.logaddexp(*lses)
    empty = total == -jnp.inf
    shares = [jnp.where(empty, 0.0, jnp.exp(lse - jnp.where(empty, 0.0, total))) for lse in lses]
    out = sum(
        out * share.transpose(0, 2, 1)[..., None]
        for (out, _), share in zip((one, other), shares, strict=True)
    )
    return out, jnp.where(empty, F32(1e30), total / F32(math.log(base)))
