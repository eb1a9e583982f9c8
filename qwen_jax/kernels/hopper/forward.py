"""Forward attention on Hopper: FlashAttention-3 in Pallas Mosaic GPU (jax 0.11 or newer).

Each consumer warpgroup of a thread block computes 64 queries of one head. A producer warpgroup
streams tiles of keys and values into shared memory by TMA, from the diagonal down to the first key
that a query of the block sees. The softmax takes half as long as the matmuls at head size 128, and
equally long at 64. It overlaps with the matmuls in two ways:

- within a warpgroup: the scores of the next tile and the output of this one start together; the
  softmax of the next tile runs while the output matmul is still on the tensor cores;
- between warpgroups: they issue matmuls in turn, so the softmax of one overlaps with the matmuls of
  another (ping-pong scheduling).

The mask is computed only for tiles that need it: those on the diagonal, and those that start before
the largest first key of the block's queries.

See ops.py for the conventions of lse and scale.

B batch, T positions, N heads, K key-value heads, H head size, M queries in a block.
"""

import dataclasses
import types

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from qwen_jax.kernels import tiles
from qwen_jax.kernels.hopper import ops
from qwen_jax.kernels.platform import target_of
from qwen_jax.types import Array

QUERIES = 64  # queries per warpgroup: the rows of one wgmma instruction
# Number of consumers -> registers per thread of a consumer and of the producer (65,536 in all).
REGISTERS = {2: (240, 24), 3: (160, 32)}
# Tile sizes by head size. At 64, the exponentials take as long as the matmuls. A third warpgroup
# helps to keep both units busy, and tiles are small enough for four stages.
DEFAULT = {
    64: {"consumers": 3, "keys": 128, "stages": 4},
    128: {"consumers": 2, "keys": 128, "stages": 2},
}


@dataclasses.dataclass(frozen=True)
class LaunchConfig:
    """Sizes of one kernel launch. T is a multiple of `keys`."""

    B: int
    T: int
    N: int
    K: int
    H: int
    dtype: jnp.dtype
    scale: float  # factor of the scores, for base 2; positive
    consumers: int
    keys: int
    stages: int

    @property
    def M(self) -> int:
        return self.consumers * QUERIES

    @property
    def blocks(self) -> int:
        return pl.cdiv(self.T, self.M)

    @property
    def several_diagonal(self) -> bool:
        """Whether more than one tile of keys may cross the diagonal of a block."""
        return self.keys % self.M != 0

    @property
    def masked(self) -> float:
        """The score of a masked key, which stays finite when multiplied by the scale."""
        return -1e38 / max(1.0, self.scale)


def forward(
    q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, k_start_BT: Array, q_end_BT: Array, *, scale: float
) -> tuple[Array, Array]:
    """Returns out [B, T, N, H] in q's dtype and the base-2 lse, float32 [B, N, T].

    Args:
      k_start_BT: int32, the first key that each query sees; a query sees none if this is after its
        own index.
      q_end_BT: not used here; the backward kernel needs it.
      scale: factor of the scores; may be negative or zero.
    """
    del q_end_BT
    B, T, N, H = q_BTNH.shape
    if scale <= 0:  # the kernel takes row maxima before scaling, so it needs a positive scale
        q_BTNH, scale = (-q_BTNH, -scale) if scale < 0 else (jnp.zeros_like(q_BTNH), 1.0)
    sizes = tiles.lookup(
        "hopper_forward",
        kind=target_of(q_BTNH).kind,
        head_size=H,
        dtype=q_BTNH.dtype.name,
        default=DEFAULT[H],
    )
    padding = -T % sizes["keys"]
    if padding:
        q_BTNH, k_BTKH, v_BTKH = (
            jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (q_BTNH, k_BTKH, v_BTKH)
        )
        k_start_BT = jnp.pad(k_start_BT, ((0, 0), (0, padding)), constant_values=2**31 - 1)
    config = LaunchConfig(
        B, T + padding, N, k_BTKH.shape[2], H, q_BTNH.dtype, scale * ops.LOG2E, **sizes
    )
    out, lse = _launch(config)(
        q_BTNH,
        k_BTKH,
        v_BTKH,
        k_start_BT,
        first_tiles(config, k_start_BT),
        jnp.arange(config.keys, dtype=jnp.int32),
    )
    return out[:, :T], lse[:, :, :T]


def first_tiles(config: LaunchConfig, k_start_BT: Array) -> Array:
    """Returns the key tiles of each block of queries, int32 [B, blocks, 2].

    These are the first tile that the block reads, and the first tile from which all its queries see
    every key up to the diagonal. Queries that see no key are ignored.
    """
    query = jnp.broadcast_to(jnp.arange(config.T, dtype=jnp.int32)[None], k_start_BT.shape)
    sees = k_start_BT <= query
    rest = ((0, 0), (0, config.blocks * config.M - config.T))
    blocks = (config.B, config.blocks, config.M)
    lowest = jnp.pad(jnp.where(sees, k_start_BT, config.T), rest, constant_values=config.T)
    highest = jnp.pad(jnp.where(sees, k_start_BT, 0), rest)
    return jnp.stack(
        [
            jnp.min(lowest.reshape(blocks), axis=2) // config.keys,
            -(-jnp.max(highest.reshape(blocks), axis=2) // config.keys),
        ],
        axis=-1,
    )


def _launch(config: LaunchConfig):
    stages, consumers = config.stages, config.consumers
    return ops.kernel(
        lambda *refs, **scratch: _block(config, types.SimpleNamespace(**scratch), *refs),
        name="hopper_forward",
        warpgroups=consumers + 1,
        automatic_barriers=False,
        grid={"batch": config.B, "block": config.blocks, "head": config.N},
        out_type=[
            jax.ShapeDtypeStruct((config.B, config.T, config.N, config.H), config.dtype),
            jax.ShapeDtypeStruct((config.B, config.N, config.T), jnp.float32),
        ],
        scratch_types={
            "q": ops.tiled(
                (consumers, QUERIES, config.H), config.dtype
            ),  # holds the output at the end
            "k": ops.tiled((stages, config.keys, config.H), config.dtype),
            "v": ops.tiled((stages, config.keys, config.H), config.dtype),
            "index": plgpu.SMEM((config.keys,), jnp.int32),
            "index_full": plgpu.Barrier(),
            "q_full": plgpu.Barrier(num_barriers=consumers),
            "k_full": plgpu.Barrier(num_barriers=stages),
            "v_full": plgpu.Barrier(num_barriers=stages),
            "k_free": plgpu.Barrier(num_arrivals=consumers, num_barriers=stages),
            "v_free": plgpu.Barrier(num_arrivals=consumers, num_barriers=stages),
            "turn": plgpu.Barrier(num_barriers=consumers),
        },
    )


class _Work:
    """The queries and key tiles of a thread block. Step i reads key tile `last` - i."""

    def __init__(self, config: LaunchConfig, first_ref):
        self.config = config
        self.batch, self.head = lax.axis_index("batch"), lax.axis_index("head")
        # The blocks with the most keys start first.
        block = config.blocks - 1 - lax.axis_index("block")
        self.query = block * config.M
        end = pl.cdiv(jnp.minimum(self.query + config.M, config.T), jnp.int32(config.keys))
        self.last = end - 1
        # A block whose queries see no key reads one tile and writes zeros.
        self.steps = end - jnp.minimum(first_ref[self.batch, block, 0], self.last)
        below_diagonal = lax.div(self.query + 1, jnp.int32(config.keys))
        unmasked = jnp.minimum(first_ref[self.batch, block, 1], below_diagonal)
        # Steps 1 to diagonal - 1 cross the diagonal; those up to unmasked - 1 need no mask.
        self.diagonal = jnp.minimum(jnp.maximum(end - below_diagonal, 1), self.steps)
        self.unmasked = jnp.minimum(jnp.maximum(end - unmasked, self.diagonal), self.steps)

    def first_key(self, i):
        return (self.last - i) * self.config.keys

    def stage(self, i):
        return lax.rem(i, jnp.int32(self.config.stages))

    def first_query(self, warpgroup):
        """Returns a warpgroup's first query. Surplus warpgroups of the last block recompute the
        last queries."""
        return jnp.minimum(self.query + warpgroup * QUERIES, self.config.T - QUERIES)


def _block(
    config: LaunchConfig, s, q_ref, k_ref, v_ref, start_ref, first_ref, index_ref, out_ref, lse_ref
) -> None:
    work, warpgroup = _Work(config, first_ref), lax.axis_index("wg")
    consumer, producer = REGISTERS[config.consumers]

    @pl.when(warpgroup == config.consumers)
    def _():
        plgpu.set_max_registers(producer, action="decrease")
        _produce(work, q_ref, k_ref, v_ref, index_ref, s)

    @pl.when(warpgroup < config.consumers)
    def _():
        plgpu.set_max_registers(consumer, action="increase")
        _consume(work, warpgroup, start_ref, out_ref, lse_ref, s)


def _produce(work: _Work, q_ref, k_ref, v_ref, index_ref, s) -> None:
    config, batch = work.config, work.batch
    kv_head = lax.div(work.head, jnp.int32(config.N // config.K))
    for w in range(config.consumers):
        rows = pl.ds(work.first_query(w), QUERIES)
        plgpu.copy_gmem_to_smem(q_ref.at[batch, rows, work.head], s.q.at[w], s.q_full.at[w])

    plgpu.copy_gmem_to_smem(index_ref, s.index, s.index_full)

    def load(i, ref, shared, full, free):
        stage, keys = work.stage(i), pl.ds(work.first_key(i), config.keys)
        pl.when(i >= config.stages)(lambda: plgpu.barrier_wait(free.at[stage]))
        plgpu.copy_gmem_to_smem(ref.at[batch, keys, kv_head], shared.at[stage], full.at[stage])

    load_keys = lambda i: load(i, k_ref, s.k, s.k_full, s.k_free)  # noqa: E731
    load_values = lambda i: load(i, v_ref, s.v, s.v_full, s.v_free)  # noqa: E731
    load_keys(jnp.int32(0))

    @pl.loop(jnp.int32(1), work.steps)
    def _load_in_order_of_use(i):
        load_keys(i)
        load_values(i - 1)

    load_values(work.steps - 1)

    @pl.loop(jnp.maximum(work.steps - config.stages, 0), work.steps)
    def _wait_until_all_are_read(i):
        plgpu.barrier_wait(s.k_free.at[work.stage(i)])
        plgpu.barrier_wait(s.v_free.at[work.stage(i)])


def _consume(work: _Work, warpgroup, start_ref, out_ref, lse_ref, s) -> None:
    config = work.config
    query = work.first_query(warpgroup)
    start = plgpu.load(
        start_ref.at[work.batch, pl.ds(query, QUERIES)], layout=ops.ROWS, optimized=False
    )
    # Warpgroup 0 has the first turn, which the last warpgroup signals.
    pl.when(warpgroup == config.consumers - 1)(lambda: plgpu.barrier_arrive(s.turn.at[0]))
    plgpu.barrier_wait(s.q_full.at[warpgroup])
    plgpu.barrier_wait(s.k_full.at[0])

    def first_scores(scores):
        ops.accumulate(scores, s.q.at[warpgroup], s.k.at[0].transpose((1, 0)))
        return ops.read(scores)

    scores = ops.accumulators(first_scores, (QUERIES, config.keys))
    plgpu.barrier_arrive(s.k_free.at[0])
    plgpu.barrier_wait(s.index_full)
    scores = _mask_tile(work, s, scores, query, start, 0, diagonal=True)
    top, weights = _weights(config, scores, None, diagonal=True)
    carry = (
        ops.zeros((QUERIES, config.H)),
        top,
        jnp.sum(weights, axis=1),
        weights.astype(config.dtype),
    )
    pl.when(work.steps > 1)(lambda: plgpu.barrier_wait(s.k_full.at[work.stage(1)]))

    def steps(begin, end, carry, mask):
        def step(i, carry):
            return _step(work, warpgroup, query, start, s, i, carry, mask)

        return ops.loop(begin, end, step, carry)

    if config.several_diagonal:
        carry = steps(jnp.int32(1), work.diagonal, carry, "diagonal")
    carry = steps(work.diagonal, work.unmasked, carry, None)
    out, top, total, weights = steps(work.unmasked, work.steps, carry, "start")
    last = work.stage(work.steps - 1)
    plgpu.barrier_wait(s.v_full.at[last])

    def last_output(accumulator):
        ops.store(accumulator, out)
        ops.accumulate(accumulator, weights, s.v.at[last])
        return ops.read(accumulator)

    out = ops.accumulators(last_output, (QUERIES, config.H))
    plgpu.barrier_arrive(s.v_free.at[last])
    _write(work, warpgroup, start, out, top, total, out_ref, lse_ref, s)


def _step(work: _Work, warpgroup, query, start, s, i, carry, mask: str | None):
    """Computes scores and softmax of tile i, overlapped with the output matmul of tile i - 1."""
    config = work.config
    out, top, total, weights = carry
    now, before = work.stage(i), work.stage(i - 1)

    def body(scores_ref, out_ref):
        ops.store(out_ref, out)
        plgpu.barrier_wait(s.turn.at[warpgroup])
        ops.accumulate(scores_ref, s.q.at[warpgroup], s.k.at[now].transpose((1, 0)))
        plgpu.barrier_wait(s.v_full.at[before])
        ops.accumulate(out_ref, weights, s.v.at[before])
        plgpu.barrier_arrive(s.turn.at[lax.rem(warpgroup + 1, jnp.int32(config.consumers))])

        scores = ops.read(scores_ref, in_flight=1)
        plgpu.barrier_arrive(s.k_free.at[now])
        if mask is not None:
            scores = _mask_tile(work, s, scores, query, start, i, diagonal=mask == "diagonal")
        new_top, new_weights = _weights(config, scores, top, diagonal=mask == "diagonal")
        shrink = jnp.exp2(top - new_top)
        new_total = total * shrink + jnp.sum(new_weights, axis=1)
        results = lax.optimization_barrier((new_top, new_total, shrink, new_weights))
        new_top, new_total, shrink, new_weights = results
        # Wait for the next tile here, not where it is used: without a branch between them, ptxas
        # moves the wait for the output matmul before the softmax.
        pl.when(i + 1 < work.steps)(lambda: plgpu.barrier_wait(s.k_full.at[work.stage(i + 1)]))

        new_out = ops.read(out_ref)
        plgpu.barrier_arrive(s.v_free.at[before])
        new_out = new_out * lax.broadcast_in_dim(shrink, new_out.shape, [0])
        return new_out, new_top, new_total, new_weights.astype(config.dtype)

    return ops.accumulators(body, (QUERIES, config.keys), (QUERIES, config.H))


def _mask_tile(work: _Work, s, scores: Array, query, start: Array, i, *, diagonal: bool) -> Array:
    # Indices are loaded from shared memory. Otherwise the compiler would compute them once for all
    # tiles, and keep 32 of them in registers throughout the unmasked loop.
    key = plgpu.load(s.index, layout=ops.COLUMNS)
    first = work.first_key(i)
    own = plgpu.load(s.index.at[pl.ds(0, QUERIES)], layout=ops.ROWS) + (query - first)
    return apply_mask(work.config, scores, key, own, start - first, diagonal=diagonal)


def apply_mask(
    config: LaunchConfig, scores: Array, key: Array, query: Array, start: Array, *, diagonal: bool
) -> Array:
    """Returns the scores, replaced by `config.masked` where a query does not see a key.

    Args:
      key: 0 .. keys - 1, [keys].
      query: index of each query, relative to the tile's first key, [QUERIES].
      start: the first key that each query sees, relative to the tile's first key, [QUERIES].
      diagonal: whether some keys may come after a query.
    """
    key = lax.broadcast_in_dim(key, scores.shape, [1])
    seen = key >= lax.broadcast_in_dim(start, scores.shape, [0])
    if diagonal:
        seen = seen & (key <= lax.broadcast_in_dim(query, scores.shape, [0]))
    return jnp.where(seen, scores, jnp.float32(config.masked))


def _weights(
    config: LaunchConfig, scores: Array, top: Array | None, *, diagonal: bool = False
) -> tuple[Array, Array]:
    """Returns the new base-2 maxima, and 2^(scores - maxima), with one multiply-add per score."""
    new_top = jnp.max(scores, axis=1) * config.scale
    if top is not None:
        new_top = jnp.maximum(top, new_top)
    subtract = new_top
    if diagonal and config.several_diagonal:
        # A query may have seen no key so far. Its maximum is not subtracted: a fused multiply-add
        # does not round the product, so the difference of two numbers this large is arbitrary.
        nothing = new_top < 0.5 * config.masked * config.scale
        subtract = jnp.where(nothing, 0.0, new_top)
    subtract = lax.broadcast_in_dim(subtract, scores.shape, [0])
    return new_top, jnp.exp2(scores * config.scale - subtract)


def _write(work: _Work, warpgroup, start, out, top, total, out_ref, lse_ref, s) -> None:
    query = work.first_query(warpgroup)
    own = plgpu.broadcasted_iota(jnp.int32, (QUERIES,), 0, layout=ops.ROWS) + query
    sees = start <= own
    lse = jnp.where(sees, top + jnp.log2(total), jnp.float32(ops.NOTHING_VISIBLE))
    share = lax.broadcast_in_dim(jnp.where(sees, 1.0 / total, 0.0), out.shape, [0])
    # The accumulator of a query that sees no key may be NaN.
    out = jnp.where(share > 0.0, out * share, 0.0)
    s.q[warpgroup] = out.astype(work.config.dtype)
    plgpu.commit_smem()
    pl.when(warpgroup == 0)(lambda: plgpu.barrier_wait(s.turn.at[0]))  # the unused last turn

    @pl.when(work.query + warpgroup * QUERIES < work.config.T)
    def _():
        rows = pl.ds(query, QUERIES)
        plgpu.copy_smem_to_gmem(s.q.at[warpgroup], out_ref.at[work.batch, rows, work.head])
        lse_ref[work.batch, work.head, rows] = lse

    plgpu.wait_smem_to_gmem(0)
