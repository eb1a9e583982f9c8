"""The score tiles that the TPU kernels visit: reduces mask intervals to bounds per tile.

The kernels read the bounds with scalar prefetch, before any tile is fetched. A tile without visible
scores then costs no memory traffic and no arithmetic.

B batch, T positions, P positions padded to full tiles.
"""

import dataclasses

import jax
import jax.numpy as jnp

from qwen_jax.types import Array

LANES = 128  # width of a vector register; tile sizes are multiples of it
# The score of a masked key, and the initial maximum of a query. 2^(HIDDEN - NO_MAXIMUM) is 0, so
# the sum of a query that sees no key is 0 without another test.
HIDDEN, NO_MAXIMUM = -1e30, -5e29


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Sizes of the tiles of one call, in positions."""

    query: int
    key: int
    compute: int  # keys computed at once, a divisor of `key`
    masked: int  # the same, for tiles that need the mask
    P: int  # padded sequence length

    @classmethod
    def of(cls, T: int, sizes: dict[str, int]) -> "Tiling":
        """Returns tiles of these sizes, reduced for a short sequence.

        Sizes are "query", "key", "compute", and "masked" if it differs; all are powers of two.
        """
        short = LANES
        while short < T:
            short *= 2
        query, key = min(sizes["query"], short), min(sizes["key"], short)
        grain = max(query, key)
        return cls(
            query=query,
            key=key,
            compute=min(sizes["compute"], key),
            masked=min(sizes.get("masked", sizes["compute"]), key),
            P=-(-T // grain) * grain,
        )

    def parts(self, *, masked: bool) -> list[tuple[int, int]]:
        """Returns (first key, number of keys) of each part that is computed at once, in order."""
        size = self.masked if masked else self.compute
        return [(begin, size) for begin in range(0, self.key, size)]

    @property
    def queries(self) -> int:
        return self.P // self.query

    @property
    def keys(self) -> int:
        return self.P // self.key


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The tiles of the other axis that each tile needs; flat int32 [B * tiles], for SMEM."""

    first_key: Array  # per query tile: its first key tile
    last_key: Array  # per query tile: its last key tile; -1 if the tile is all padding
    first_unmasked: Array  # per query tile: the first key tile that all of its queries see in full
    last_unmasked: Array  # per query tile: the last such key tile
    first_query: Array  # per key tile: its first query tile
    last_query: Array  # per key tile: its last query tile; -1 if no query sees it


def bounds(k_start_BP: Array, k_end_BP: Array | None, tiling: Tiling) -> Bounds:
    """Returns the bounds per tile, given those per token.

    Args:
      k_start_BP, k_end_BP: the first and last key that each query sees; k_end_BP=None: the query's
        own position (causal).
    """
    B = k_start_BP.shape[0]
    if k_end_BP is None:
        k_end_BP = jnp.broadcast_to(jnp.arange(tiling.P, dtype=jnp.int32)[None], k_start_BP.shape)
    seen = k_start_BP <= k_end_BP
    k_start = jnp.where(seen, k_start_BP, tiling.P).reshape(B, tiling.queries, tiling.query)
    k_end = jnp.where(seen, k_end_BP, -1).reshape(B, tiling.queries, tiling.query)
    first_key = jnp.minimum(jnp.min(k_start, axis=2), tiling.P - 1) // tiling.key
    last_key = jnp.max(k_end, axis=2) // tiling.key  # -1 // key is -1
    key_tile = jnp.arange(tiling.keys, dtype=jnp.int32)[None, None]
    visited = (key_tile >= first_key[:, :, None]) & (key_tile <= last_key[:, :, None])
    last_query = tiling.queries - 1 - jnp.argmax(visited[:, ::-1], axis=1)
    return Bounds(
        first_key=first_key.reshape(-1),
        last_key=last_key.reshape(-1),
        first_unmasked=(-(-jnp.max(k_start, axis=2) // tiling.key)).reshape(-1),
        last_unmasked=((jnp.min(k_end, axis=2) + 1) // tiling.key - 1).reshape(-1),
        first_query=jnp.argmax(visited, axis=1).astype(jnp.int32).reshape(-1),
        last_query=jnp.where(visited.any(axis=1), last_query, -1).astype(jnp.int32).reshape(-1),
    )


def is_unmasked(j: Array, at: Array, first_unmasked, last_unmasked) -> Array:
    """Returns whether all queries of a tile see all keys of tile j, so no mask is needed.

    Args:
      at: index of the query tile in the bounds.
    """
    return (j >= first_unmasked[at]) & (j <= last_unmasked[at])


def pad_mask(
    k_start_BT: Array, k_end_BT: Array | None, tiling: Tiling
) -> tuple[Array, Array | None]:
    """Pads k_start and k_end to P positions. Queries in the padding see no key."""
    T = k_start_BT.shape[1]
    extra = ((0, 0), (0, tiling.P - T))
    k_start = jnp.where(k_start_BT >= T, jnp.int32(tiling.P), k_start_BT)
    return (
        jnp.pad(k_start, extra, constant_values=tiling.P),
        None if k_end_BT is None else jnp.pad(k_end_BT, extra, constant_values=-1),
    )


def heads_first(x_BTNH: Array, tiling: Tiling) -> Array:
    """[B, T, N, H] -> [B, N, P, H], padded with zeros."""
    T = x_BTNH.shape[1]
    x = jnp.pad(x_BTNH, ((0, 0), (0, tiling.P - T), (0, 0), (0, 0)))
    return x.transpose(0, 2, 1, 3)


def precision(dtype) -> jax.lax.Precision:
    """Returns the matmul precision: six BF16 passes for float32 operands, one for BF16.

    It does not depend on jax_default_matmul_precision.
    """
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT
