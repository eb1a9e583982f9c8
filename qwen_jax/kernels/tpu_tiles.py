"""Which tiles of scores the TPU kernels visit: the mask's intervals, reduced to bounds of tiles.

The bounds are scalars that the kernels read before they fetch anything (scalar prefetch), so a tile
in which nobody sees anybody costs no memory traffic and no arithmetic.

B batch, T positions, P positions padded to whole tiles.
"""

import dataclasses

import jax
import jax.numpy as jnp

from qwen_jax.types import Array

LANES = 128  # the width of a vector register, and the grain of every tile
# Scores that the mask hides, and what a row's maximum starts from: 2^(HIDDEN - NO_MAXIMUM) is 0, so
# a row that sees nothing sums to 0 without another test.
HIDDEN, NO_MAXIMUM = -1e30, -5e29


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Sizes of the tiles of one call, in positions."""

    query: int
    key: int
    compute: int  # keys that are computed at once, dividing `key`
    masked: int  # the same, in a tile that needs its mask
    P: int  # the row, padded

    @classmethod
    def of(cls, T: int, sizes: dict[str, int]) -> "Tiling":
        """Tiles of these sizes ("query", "key", "compute", and "masked" if it differs; powers of
        two), less for a short row."""
        short = LANES
        while short < T:
            short *= 2
        query, key = min(sizes["query"], short), min(sizes["key"], short)
        grain = max(query, key)
        return cls(query=query, key=key, compute=min(sizes["compute"], key),
                   masked=min(sizes.get("masked", sizes["compute"]), key),
                   P=-(-T // grain) * grain)

    def parts(self, *, masked: bool) -> list[tuple[int, int]]:
        """(first key, keys) of what is computed at once, in the order of a tile."""
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
    """What each tile needs of the other axis; flat int32 [B * tiles], as scalar memory likes it."""

    first_key: Array  # of a query tile: its first key tile
    last_key: Array  # and its last, -1 where it is all padding
    whole_key: Array  # the first key tile that the k_start of every query leaves whole
    first_query: Array  # of a key tile
    last_query: Array


def bounds(k_start_BP: Array, q_end_BP: Array, tiling: Tiling) -> Bounds:
    """Bounds of tiles from the bounds of tokens."""
    B = k_start_BP.shape[0]
    k_start = k_start_BP.reshape(B, tiling.queries, tiling.query)
    q_end = q_end_BP.reshape(B, tiling.keys, tiling.key)
    least, most = jnp.min(k_start, axis=2), jnp.max(k_start, axis=2)
    end = jnp.max(q_end, axis=2)
    query_tile = jnp.arange(tiling.queries, dtype=jnp.int32)[None]
    key_tile = jnp.arange(tiling.keys, dtype=jnp.int32)[None]
    # Causality: a query tile needs no keys after its last query, a key tile no queries before its
    # first key.
    last_key = jnp.broadcast_to((query_tile * tiling.query + tiling.query - 1) // tiling.key,
                                least.shape)
    first_query = jnp.broadcast_to(key_tile * tiling.key // tiling.query, end.shape)
    return Bounds(
        first_key=(jnp.minimum(least, tiling.P - 1) // tiling.key).reshape(-1),
        last_key=jnp.where(least >= tiling.P, -1, last_key).reshape(-1),
        whole_key=(-(-most // tiling.key)).reshape(-1),
        first_query=first_query.reshape(-1),
        last_query=jnp.where(end < 0, -1, end // tiling.query).reshape(-1))


def is_whole(i: Array, j: Array, whole_key: Array, tiling: Tiling) -> Array:
    """Whether every query of tile i sees every key of tile j: no mask is needed."""
    return (j >= whole_key) & (j * tiling.key + tiling.key - 1 <= i * tiling.query)


def pad_mask(k_start_BT: Array, q_end_BT: Array, tiling: Tiling) -> tuple[Array, Array]:
    """k_start and q_end over P positions; what is added, and what saw nothing, sees nothing."""
    T = k_start_BT.shape[1]
    extra = ((0, 0), (0, tiling.P - T))
    k_start = jnp.where(k_start_BT >= T, jnp.int32(tiling.P), k_start_BT)
    return (jnp.pad(k_start, extra, constant_values=tiling.P),
            jnp.pad(q_end_BT, extra, constant_values=-1))


def heads_first(x_BTNH: Array, tiling: Tiling) -> Array:
    """[B, T, N, H] -> [B, N, P, H], zeros in what is added."""
    T = x_BTNH.shape[1]
    x = jnp.pad(x_BTNH, ((0, 0), (0, tiling.P - T), (0, 0), (0, 0)))
    return x.transpose(0, 2, 1, 3)


def precision(dtype) -> jax.lax.Precision:
    """Of the matrix products: float32 operands in six BF16 passes, BF16 ones as they are, whatever
    jax_default_matmul_precision says."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT
