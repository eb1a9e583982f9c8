"""Warpgroup operations of the Hopper attention kernels.

A thin layer over Pallas Mosaic GPU (jax >= 0.11): asynchronous matmuls into accumulators in
registers, loops around them, and TMA reductions into global memory. Kernels call these through the
module (`ops.accumulate(...)`), so a test can replace them with an interpreted version. For copies,
barriers and loads, kernels use Pallas directly.

Conventions of the forward and backward kernels:
  lse: float32 [B, N, T'], T' >= T, the base-2 log-sum-exp of the scaled scores,
    log2(sum_j 2^(s_j * scale * log2(e))). For a query that sees no key, it is NOTHING_VISIBLE (so
    2^(x - lse) is 0), and the output is zero.
  scale: applied to the float32 scores, in the same multiply-add that subtracts the maximum or the
    lse; the bfloat16 queries are never scaled.
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
# Register layouts of accumulators, and of vectors along their rows and columns.
MATRIX = plgpu.Layout.WGMMA
ROWS = plgpu.Layout.WGMMA.reduce(1)  # one value per row of a matrix
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
    """Returns a plgpu.kernel with `warpgroups` per block (axis "wg").

    The last grid axis varies fastest.

    Args:
      grid: axis name, for jax.lax.axis_index -> size of the axis.
      automatic_barriers: whether to put a warpgroup barrier around every load and store of shared
        memory. A kernel does not need them if no thread both loads and stores the same memory:
        commit_smem and wait_smem_to_gmem contain barriers.
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
    """Returns shared memory in the layout of tensor cores and TMA: 128-byte swizzled rows."""
    width = min(128, shape[-1] * jnp.dtype(dtype).itemsize)
    columns = width // jnp.dtype(dtype).itemsize
    return plgpu.SMEM(
        shape,
        dtype,
        transforms=(
            # The protocol has methods that these transforms do not implement.
            plgpu.TilingTransform((8, columns)),  # pyright: ignore[reportAbstractUsage]
            plgpu.SwizzleTransform(width),  # pyright: ignore[reportAbstractUsage]
        ),
    )


def accumulators(body: Callable, *shapes: tuple[int, int]):
    """Runs body(*accumulators) on zeroed float32 accumulators of these shapes; returns its result.

    The accumulators stay in registers while body runs, including across loops (`loop`).
    """
    acc = plgpu.ACC  # pyright: ignore[reportPrivateImportUsage]  # public, but not marked as such
    return pl.run_scoped(body, *(acc(shape, jnp.float32) for shape in shapes))


def accumulate(accumulator, a, b) -> None:
    """Starts accumulator += a @ b; `a` is in shared memory or in registers, `b` in shared memory.

    The matmul is asynchronous: until `wait` or `read` confirms its completion, the accumulator must
    not be accessed, and `a` and `b` must not be overwritten. Matmuls complete in the order in which
    they start.
    """
    plgpu.wgmma(accumulator, a, b)


def wait(in_flight: int) -> None:
    """Waits until at most `in_flight` matmuls of this warpgroup are still running."""
    plgpu.wgmma_wait(in_flight)


def read(accumulator, in_flight: int = 0) -> jax.Array:
    """Returns the accumulator's value once at most `in_flight` matmuls are still running."""
    value = plgpu.wgmma_accumulator_load(accumulator, wait_n=in_flight)
    # Without this barrier, the compiler may move arithmetic on the value before the wait.
    return jax.lax.optimization_barrier(value)


def store(accumulator, value: jax.Array) -> None:
    """Sets the accumulator. No matmul may be in flight on it."""
    accumulator[...] = value


def loop(lower, upper, body: Callable, carry=None, *, accumulators=()):
    """Runs carry = body(i, carry) for i from lower to upper - 1; returns the last carry.

    Args:
      accumulators: accumulators that body uses and that were created outside the loop.
    """
    del accumulators  # references keep their values
    return jax.lax.fori_loop(lower, upper, body, carry)


def add_to_global(source, target) -> None:
    """Starts target += source, from shared to global memory, by TMA; the order is not fixed.

    Call plgpu.commit_smem() before this, and plgpu.wait_smem_to_gmem before writing `source` again.
    """
    plgpu.copy_smem_to_gmem(source, target, reduction_op="add")


def zeros(shape: tuple[int, ...], dtype=jnp.float32, layout=MATRIX) -> jax.Array:
    """Returns zeros in registers, in the layout of an accumulator."""
    return plgpu.layout_cast(jnp.zeros(shape, dtype), layout)
