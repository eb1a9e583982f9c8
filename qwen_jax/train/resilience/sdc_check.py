"""Checks for silent data corruption: periodically computes a step twice and compares the bits.

The losses of a chip that occasionally computes wrong results look plausible. The same program on
the same inputs must return the same bits. If it does not, the run stops before it saves a corrupted
state, and its launcher restarts it from the latest checkpoint.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from qwen_jax import exit_codes
from qwen_jax.errors import TrainingError

METRIC = "sdc/mismatched_elements"


class SilentCorruption(TrainingError):
    """Two computations of one step differ. The fault may be transient, so launchers restart the
    run."""

    exit_code = exit_codes.SDC


def with_sdc_check(step: Callable, every: int | None, *, start_step: int) -> Callable:
    """Wraps `step` to compute every `every`-th step twice and report the mismatches as a metric.

    The host does not wait for the device: it reads the number of mismatched elements with the
    step's other metrics. During a check, memory holds two copies of the state and of the result.

    Args:
      step: (state, batch) -> (state, metrics); donates its state.
      every: steps between checks; None disables them.
      start_step: number of steps completed before the first call.
    """
    if every is None:
        return step
    done = start_step
    compare = jax.jit(_count_mismatches)

    @functools.cache
    def copier(structure, shardings):
        return jax.jit(
            lambda tree: jax.tree.map(jnp.copy, tree),
            out_shardings=jax.tree.unflatten(structure, shardings),
        )

    def checked_step(state, batch):
        nonlocal done
        done += 1
        if done % every:
            return step(state, batch)
        leaves, structure = jax.tree.flatten(state)
        copied = copier(structure, tuple(leaf.sharding for leaf in leaves))(state)
        first = step(state, batch)
        mismatches = compare(first, step(copied, batch))
        return first[0], first[1] | {METRIC: mismatches}

    return checked_step


def check(step: int, metrics: dict[str, float]) -> None:
    """Raises SilentCorruption if the metrics of a step report mismatched elements."""
    if metrics.get(METRIC, 0):
        raise SilentCorruption(
            f"two computations of step {step} differ (mismatched elements: {metrics[METRIC]:.0f}).",
            f"step {step}",
            "a device is faulty or a kernel is nondeterministic: exclude one host at a time until "
            "the error disappears.",
        )


def _count_mismatches(a: Any, b: Any) -> jax.Array:
    """Returns the number of elements of two trees whose bits differ."""

    def count(x, y):
        if jnp.issubdtype(x.dtype, jnp.floating):
            bits = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
            x, y = (jax.lax.bitcast_convert_type(z, bits) for z in (x, y))
        return jnp.sum(x != y, dtype=jnp.float32)

    return sum(jax.tree.leaves(jax.tree.map(count, a, b)), jnp.float32(0))
