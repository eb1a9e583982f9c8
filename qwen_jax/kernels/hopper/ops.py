"""The operations of a Hopper warpgroup that the attention kernels are written in.

A thin vocabulary over Pallas Mosaic GPU (jax >= 0.11): asynchronous matrix products into
accumulators that stay in registers, loops around them, and sums into global memory by the copy
engine. Kernels use these through the module (`ops.accumulate(...)`), so that a test can put an
interpreter's version in their place; everything else (copies, barriers, loads) is Pallas' own.

What the forward and the backward kernel agree on:
  lse: float32 [B, N, T'], in base 2 of the scaled scores, log2(sum_j 2^(s_j * scale * log2(e))),
    with T' at least T. A query that sees nothing has NOTHING_VISIBLE there (so 2^(x - lse) is 0)
    and an output of zeros.
  scale: applied in float32 to the scores, in the same multiply-add that subtracts the maximum or
    the lse; the bfloat16 queries are never scaled.
"""

import math
from collections.abc import Callable

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from qwen_jax.kernels.platform import interpret_mode

LOG2E = math.log2(math.e)
NOTHING_VISIBLE = 1e30
# The layout of accumulators in registers, and of vectors along their rows and columns.
MATRIX = plgpu.Layout.WGMMA
ROWS = plgpu.Layout.WGMMA.reduce(1)  # one value for each row of a matrix
COLUMNS = plgpu.Layout.WGMMA.reduce(0)


def kernel(
    body: Callable,
    *,
    out_type,
    scratch_types,
    grid: dict[str, int],
    warpgroups: int,
    name: str,
    automatic_barriers: bool = True,
) -> Callable:
    """plgpu.kernel of blocks of `warpgroups`, axis "wg"; the grid's last axis varies fastest.

    Args:
      grid: size of each axis by its name, for jax.lax.axis_index.
      automatic_barriers: a barrier of the warpgroup around every load and store of shared memory. A
        kernel can do without where no thread both loads and stores the same memory: commit_smem
        and wait_smem_to_gmem have barriers of their own.
    """
    return plgpu.kernel(
        body,
        out_type=out_type,
        scratch_types=scratch_types,
        grid=tuple(grid.values()),
        grid_names=tuple(grid),
        num_threads=warpgroups,
        thread_name="wg",
        kernel_name=name,
        compiler_params=plgpu.CompilerParams(
            approx_math=True, unsafe_no_auto_barriers=not automatic_barriers
        ),
        interpret=interpret_mode(),
    )


def tiled(shape: tuple[int, ...], dtype) -> pl.MemoryRef:
    """Shared memory that the tensor cores and the copy engine read: 128-byte swizzled rows."""
    width = min(128, shape[-1] * jnp.dtype(dtype).itemsize)
    columns = width // jnp.dtype(dtype).itemsize
    return plgpu.SMEM(
        shape,
        dtype,
        transforms=(
            # Of a protocol with methods that these two do not need.
            plgpu.TilingTransform((8, columns)),  # pyright: ignore[reportAbstractUsage]
            plgpu.SwizzleTransform(width),  # pyright: ignore[reportAbstractUsage]
        ),
    )


def accumulators(body: Callable, *shapes: tuple[int, int]):
    """body(*accumulators), each float32 of its shape and zero at first; gives what body gives.

    They live in registers while body runs, through loops (`loop`) as well.
    """
    acc = plgpu.ACC  # pyright: ignore[reportPrivateImportUsage]  # public, but not marked so
    return pl.run_scoped(body, *(acc(shape, jnp.float32) for shape in shapes))


def accumulate(accumulator, a, b) -> None:
    """Starts accumulator += a @ b. `a` is in shared memory or in registers, `b` in shared memory.

    It runs on its own: until `wait` or `read` says that it has ended, nobody may touch the
    accumulator or overwrite `a` and `b`. Products end in the order in which they were started.
    """
    plgpu.wgmma(accumulator, a, b)


def wait(in_flight: int) -> None:
    """Waits until at most `in_flight` of the products of this warpgroup have not ended."""
    plgpu.wgmma_wait(in_flight)


def read(accumulator, in_flight: int = 0) -> jax.Array:
    """The accumulator's value, once at most `in_flight` products have not ended."""
    value = plgpu.wgmma_accumulator_load(accumulator, wait_n=in_flight)
    # Without this the compiler may move arithmetic on the value to before the wait.
    return jax.lax.optimization_barrier(value)


def store(accumulator, value: jax.Array) -> None:
    """Sets the accumulator; no product may be in flight on it."""
    accumulator[...] = value


def loop(lower, upper, body: Callable, carry=None, *, accumulators=()):
    """carry = body(i, carry) for i from lower to upper - 1; gives the last carry.

    Args:
      accumulators: those that body uses and that were made outside of it.
    """
    del accumulators  # references keep what they hold
    return jax.lax.fori_loop(lower, upper, body, carry)


def add_to_global(source, target) -> None:
    """Starts target += source, shared to global memory, by the copy engine, in no fixed order.

    plgpu.commit_smem() before it; plgpu.wait_smem_to_gmem before `source` is written again.
    """
    plgpu.copy_smem_to_gmem(source, target, reduction_op="add")


def zeros(shape: tuple[int, ...], dtype=jnp.float32, layout=MATRIX) -> jax.Array:
    """Zeros in registers, in an accumulator's layout."""
    return plgpu.layout_cast(jnp.zeros(shape, dtype), layout)
