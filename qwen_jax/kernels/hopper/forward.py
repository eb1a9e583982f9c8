"""The Hopper back end's forward kernel: FlashAttention-3 in Pallas Mosaic GPU (jax 0.11 or newer).

A block of threads computes 64 queries of one head for each of its consumer warpgroups. A producer
warpgroup streams tiles of keys and values into shared memory through the copy engine, from the
diagonal down to the first key that a query of the block sees. The softmax, which takes half as long
as the products at head size 128 and as long at 64, runs at the same time in two ways:

- within a warpgroup: the scores of the next tile and the output of this one are started together;
  the softmax of the next tile runs while the output's product is still on the tensor cores;
- between warpgroups: they start products in turn, so one's softmax lies over another's products.

Arithmetic for the mask is spent in the tiles that need it: those on the diagonal, and those that
begin before the last first key of the block's queries.

Conventions of lse and scale: ops.py.

B batch, T positions, N heads, K key-value heads, H head size, M queries of a block.
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

QUERIES = 64  # of a warpgroup: the rows of one matrix instruction
# Registers of a thread, consumer and producer: 65,536 for 128 threads of each warpgroup.
REGISTERS = {2: (240, 24), 3: (160, 32)}
# Tile sizes by head size. At 64 the exponentials take as long as the products: a third warpgroup
# helps to keep both busy, and tiles are small enough for four stages.
DEFAULT = {
    64: {"consumers": 3, "keys": 128, "stages": 4},
    128: {"consumers": 2, "keys": 128, "stages": 2},
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """The sizes of one launch. T is a multiple of `keys`."""

    B: int
    T: int
    N: int
    K: int
    H: int
    dtype: jnp.dtype
    scale: float  # of the scores in base 2, above 0
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
        """Whether more than one tile of keys may reach over the diagonal of a block."""
        return self.keys % self.M != 0

    @property
    def masked(self) -> float:
        """A score that no softmax sees; finite, and so it is in base 2."""
        return -1e38 / max(1.0, self.scale)


def forward(
    q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, k_start_BT: Array, q_end_BT: Array, *, scale: float
) -> tuple[Array, Array]:
    """out [B, T, N, H] in q's dtype and lse float32 [B, N, T] in base 2.

    Args:
      k_start_BT: int32, the first key that each query sees; above the query's own index: none.
      q_end_BT: not read; what a kernel by keys needs.
      scale: of the scores, any number.
    """
    del q_end_BT
    B, T, N, H = q_BTNH.shape
    if scale <= 0:  # row maxima are taken before the scale, so it has to be above 0
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
    plan = Plan(B, T + padding, N, k_BTKH.shape[2], H, q_BTNH.dtype, scale * ops.LOG2E, **sizes)
    out, lse = _launch(plan)(
        q_BTNH,
        k_BTKH,
        v_BTKH,
        k_start_BT,
        first_tiles(plan, k_start_BT),
        jnp.arange(plan.keys, dtype=jnp.int32),
    )
    return out[:, :T], lse[:, :, :T]


def first_tiles(plan: Plan, k_start_BT: Array) -> Array:
    """int32 [B, blocks, 2]: the first key tile that a block of queries reads, and the first whose
    keys all of its queries see but for the diagonal. Queries that see nothing do not count."""
    query = jnp.broadcast_to(jnp.arange(plan.T, dtype=jnp.int32)[None], k_start_BT.shape)
    sees = k_start_BT <= query
    rest = ((0, 0), (0, plan.blocks * plan.M - plan.T))
    blocks = (plan.B, plan.blocks, plan.M)
    least = jnp.pad(jnp.where(sees, k_start_BT, plan.T), rest, constant_values=plan.T)
    most = jnp.pad(jnp.where(sees, k_start_BT, 0), rest)
    return jnp.stack(
        [
            jnp.min(least.reshape(blocks), axis=2) // plan.keys,
            -(-jnp.max(most.reshape(blocks), axis=2) // plan.keys),
        ],
        axis=-1,
    )


def _launch(plan: Plan):
    stages, consumers = plan.stages, plan.consumers
    return ops.kernel(
        lambda *refs, **scratch: _block(plan, types.SimpleNamespace(**scratch), *refs),
        name="hopper_forward",
        warpgroups=consumers + 1,
        automatic_barriers=False,
        grid={"batch": plan.B, "block": plan.blocks, "head": plan.N},
        out_type=[
            jax.ShapeDtypeStruct((plan.B, plan.T, plan.N, plan.H), plan.dtype),
            jax.ShapeDtypeStruct((plan.B, plan.N, plan.T), jnp.float32),
        ],
        scratch_types={
            "q": ops.tiled((consumers, QUERIES, plan.H), plan.dtype),  # the output, in the end
            "k": ops.tiled((stages, plan.keys, plan.H), plan.dtype),
            "v": ops.tiled((stages, plan.keys, plan.H), plan.dtype),
            "index": plgpu.SMEM((plan.keys,), jnp.int32),
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
    """Which queries and key tiles a block of threads has; step i reads the tile `last` - i."""

    def __init__(self, plan: Plan, first_ref):
        self.plan = plan
        self.batch, self.head = lax.axis_index("batch"), lax.axis_index("head")
        # The blocks that start first have the most keys to read.
        block = plan.blocks - 1 - lax.axis_index("block")
        self.query = block * plan.M
        end = pl.cdiv(jnp.minimum(self.query + plan.M, plan.T), jnp.int32(plan.keys))
        self.last = end - 1
        # A block whose queries see nothing reads one tile, and writes zeros.
        self.steps = end - jnp.minimum(first_ref[self.batch, block, 0], self.last)
        below_diagonal = lax.div(self.query + 1, jnp.int32(plan.keys))
        whole = jnp.minimum(first_ref[self.batch, block, 1], below_diagonal)
        # Steps 1 to diagonal - 1 reach over the diagonal; those up to unmasked - 1 need no mask.
        self.diagonal = jnp.minimum(jnp.maximum(end - below_diagonal, 1), self.steps)
        self.unmasked = jnp.minimum(jnp.maximum(end - whole, self.diagonal), self.steps)

    def first_key(self, i):
        return (self.last - i) * self.plan.keys

    def slot(self, i):
        return lax.rem(i, jnp.int32(self.plan.stages))

    def first_query(self, warpgroup):
        """Of a warpgroup; the last block's surplus warpgroups compute the row's end once more."""
        return jnp.minimum(self.query + warpgroup * QUERIES, self.plan.T - QUERIES)


def _block(
    plan: Plan, s, q_ref, k_ref, v_ref, start_ref, first_ref, index_ref, out_ref, lse_ref
) -> None:
    work, warpgroup = _Work(plan, first_ref), lax.axis_index("wg")
    consumer, producer = REGISTERS[plan.consumers]

    @pl.when(warpgroup == plan.consumers)
    def _():
        plgpu.set_max_registers(producer, action="decrease")
        _produce(work, q_ref, k_ref, v_ref, index_ref, s)

    @pl.when(warpgroup < plan.consumers)
    def _():
        plgpu.set_max_registers(consumer, action="increase")
        _consume(work, warpgroup, start_ref, out_ref, lse_ref, s)


def _produce(work: _Work, q_ref, k_ref, v_ref, index_ref, s) -> None:
    plan, batch = work.plan, work.batch
    kv_head = lax.div(work.head, jnp.int32(plan.N // plan.K))
    for w in range(plan.consumers):
        rows = pl.ds(work.first_query(w), QUERIES)
        plgpu.copy_gmem_to_smem(q_ref.at[batch, rows, work.head], s.q.at[w], s.q_full.at[w])

    plgpu.copy_gmem_to_smem(index_ref, s.index, s.index_full)

    def load(i, ref, shared, full, free):
        slot, keys = work.slot(i), pl.ds(work.first_key(i), plan.keys)
        pl.when(i >= plan.stages)(lambda: plgpu.barrier_wait(free.at[slot]))
        plgpu.copy_gmem_to_smem(ref.at[batch, keys, kv_head], shared.at[slot], full.at[slot])

    load_keys = lambda i: load(i, k_ref, s.k, s.k_full, s.k_free)  # noqa: E731
    load_values = lambda i: load(i, v_ref, s.v, s.v_full, s.v_free)  # noqa: E731
    load_keys(jnp.int32(0))

    @pl.loop(jnp.int32(1), work.steps)
    def _in_the_order_of_use(i):
        load_keys(i)
        load_values(i - 1)

    load_values(work.steps - 1)

    @pl.loop(jnp.maximum(work.steps - plan.stages, 0), work.steps)
    def _wait_until_all_is_read(i):
        plgpu.barrier_wait(s.k_free.at[work.slot(i)])
        plgpu.barrier_wait(s.v_free.at[work.slot(i)])


def _consume(work: _Work, warpgroup, start_ref, out_ref, lse_ref, s) -> None:
    plan = work.plan
    query = work.first_query(warpgroup)
    start = plgpu.load(
        start_ref.at[work.batch, pl.ds(query, QUERIES)], layout=ops.ROWS, optimized=False
    )
    # Warpgroup 0 starts; the last one gives it its first turn.
    pl.when(warpgroup == plan.consumers - 1)(lambda: plgpu.barrier_arrive(s.turn.at[0]))
    plgpu.barrier_wait(s.q_full.at[warpgroup])
    plgpu.barrier_wait(s.k_full.at[0])

    def first_scores(scores):
        ops.accumulate(scores, s.q.at[warpgroup], s.k.at[0].transpose((1, 0)))
        return ops.read(scores)

    scores = ops.accumulators(first_scores, (QUERIES, plan.keys))
    plgpu.barrier_arrive(s.k_free.at[0])
    plgpu.barrier_wait(s.index_full)
    scores = _hide(work, s, scores, query, start, 0, diagonal=True)
    top, weights = _weights(plan, scores, None, diagonal=True)
    carry = (
        ops.zeros((QUERIES, plan.H)),
        top,
        jnp.sum(weights, axis=1),
        weights.astype(plan.dtype),
    )
    pl.when(work.steps > 1)(lambda: plgpu.barrier_wait(s.k_full.at[work.slot(1)]))

    def steps(begin, end, carry, mask):
        def step(i, carry):
            return _step(work, warpgroup, query, start, s, i, carry, mask)

        return ops.loop(begin, end, step, carry)

    if plan.several_diagonal:
        carry = steps(jnp.int32(1), work.diagonal, carry, "diagonal")
    carry = steps(work.diagonal, work.unmasked, carry, None)
    out, top, total, weights = steps(work.unmasked, work.steps, carry, "start")
    last = work.slot(work.steps - 1)
    plgpu.barrier_wait(s.v_full.at[last])

    def last_output(accumulator):
        ops.store(accumulator, out)
        ops.accumulate(accumulator, weights, s.v.at[last])
        return ops.read(accumulator)

    out = ops.accumulators(last_output, (QUERIES, plan.H))
    plgpu.barrier_arrive(s.v_free.at[last])
    _write(work, warpgroup, start, out, top, total, out_ref, lse_ref, s)


def _step(work: _Work, warpgroup, query, start, s, i, carry, mask: str | None):
    """The scores and softmax of tile i, over the product of tile i - 1's weights and values."""
    plan = work.plan
    out, top, total, weights = carry
    now, before = work.slot(i), work.slot(i - 1)

    def body(scores_ref, out_ref):
        ops.store(out_ref, out)
        plgpu.barrier_wait(s.turn.at[warpgroup])
        ops.accumulate(scores_ref, s.q.at[warpgroup], s.k.at[now].transpose((1, 0)))
        plgpu.barrier_wait(s.v_full.at[before])
        ops.accumulate(out_ref, weights, s.v.at[before])
        plgpu.barrier_arrive(s.turn.at[lax.rem(warpgroup + 1, jnp.int32(plan.consumers))])

        scores = ops.read(scores_ref, in_flight=1)
        plgpu.barrier_arrive(s.k_free.at[now])
        if mask is not None:
            scores = _hide(work, s, scores, query, start, i, diagonal=mask == "diagonal")
        new_top, new_weights = _weights(plan, scores, top, diagonal=mask == "diagonal")
        shrink = jnp.exp2(top - new_top)
        new_total = total * shrink + jnp.sum(new_weights, axis=1)
        results = lax.optimization_barrier((new_top, new_total, shrink, new_weights))
        new_top, new_total, shrink, new_weights = results
        # The next tile is waited for here and not where it is used: ptxas moves the wait for the
        # output's product to before the softmax unless there is a branch between them.
        pl.when(i + 1 < work.steps)(lambda: plgpu.barrier_wait(s.k_full.at[work.slot(i + 1)]))

        new_out = ops.read(out_ref)
        plgpu.barrier_arrive(s.v_free.at[before])
        new_out = new_out * lax.broadcast_in_dim(shrink, new_out.shape, [0])
        return new_out, new_top, new_total, new_weights.astype(plan.dtype)

    return ops.accumulators(body, (QUERIES, plan.keys), (QUERIES, plan.H))


def _hide(work: _Work, s, scores: Array, query, start: Array, i, *, diagonal: bool) -> Array:
    # Indices come from shared memory: those that are counted in registers are counted once for all
    # tiles, and 32 of them stay there through the loop without a mask.
    key = plgpu.load(s.index, layout=ops.COLUMNS)
    first = work.first_key(i)
    own = plgpu.load(s.index.at[pl.ds(0, QUERIES)], layout=ops.ROWS) + (query - first)
    return hide(work.plan, scores, key, own, start - first, diagonal=diagonal)


def hide(
    plan: Plan, scores: Array, key: Array, query: Array, start: Array, *, diagonal: bool
) -> Array:
    """Scores of keys that a query does not see become `masked`.

    Args:
      key: 0 .. keys - 1, [keys].
      query: the tile's place of each query, counted from the tile's first key, [QUERIES].
      start: the same of the first key that each query sees, [QUERIES].
      diagonal: whether some keys may come after a query.
    """
    key = lax.broadcast_in_dim(key, scores.shape, [1])
    seen = key >= lax.broadcast_in_dim(start, scores.shape, [0])
    if diagonal:
        seen = seen & (key <= lax.broadcast_in_dim(query, scores.shape, [0]))
    return jnp.where(seen, scores, jnp.float32(plan.masked))


def _weights(
    plan: Plan, scores: Array, top: Array | None, *, diagonal: bool = False
) -> tuple[Array, Array]:
    """The new maxima in base 2, and 2^(scores - maxima): one multiply-add for each score."""
    new_top = jnp.max(scores, axis=1) * plan.scale
    if top is not None:
        new_top = jnp.maximum(top, new_top)
    subtract = new_top
    if diagonal and plan.several_diagonal:
        # A query may have seen nothing so far. Its maximum is not subtracted: a multiply-add does
        # not round the product, so what is left of two numbers of this size could be anything.
        nothing = new_top < 0.5 * plan.masked * plan.scale
        subtract = jnp.where(nothing, 0.0, new_top)
    subtract = lax.broadcast_in_dim(subtract, scores.shape, [0])
    return new_top, jnp.exp2(scores * plan.scale - subtract)


def _write(work: _Work, warpgroup, start, out, top, total, out_ref, lse_ref, s) -> None:
    query = work.first_query(warpgroup)
    own = plgpu.broadcasted_iota(jnp.int32, (QUERIES,), 0, layout=ops.ROWS) + query
    sees = start <= own
    lse = jnp.where(sees, top + jnp.log2(total), jnp.float32(ops.NOTHING_VISIBLE))
    share = lax.broadcast_in_dim(jnp.where(sees, 1.0 / total, 0.0), out.shape, [0])
    # What a query that sees nothing has gathered need not be a number.
    out = jnp.where(share > 0.0, out * share, 0.0)
    s.q[warpgroup] = out.astype(work.plan.dtype)
    plgpu.commit_smem()
    pl.when(warpgroup == 0)(lambda: plgpu.barrier_wait(s.turn.at[0]))  # the turn that nobody takes

    @pl.when(work.query + warpgroup * QUERIES < work.plan.T)
    def _():
        rows = pl.ds(query, QUERIES)
        plgpu.copy_smem_to_gmem(s.q.at[warpgroup], out_ref.at[work.batch, rows, work.head])
        lse_ref[work.batch, work.head, rows] = lse

    plgpu.wait_smem_to_gmem(0)
