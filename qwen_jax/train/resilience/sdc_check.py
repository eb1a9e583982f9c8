"""Silent corruption: a step is computed twice now and then,
and the two results compared bit by bit.

A chip that multiplies wrongly now and then gives losses that look like any other. The same program
on the same inputs has to give the same bits; where it does not, the run stops before it saves what
may be wrong, and its launcher starts it from the newest checkpoint.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from qwen_jax.errors import TrainingError
from qwen_jax.parallel import distributed

METRIC = "sdc/mismatched_elements"


class SilentCorruption(TrainingError):
    """Two computations of one step differ. It may not come again:
    launchers start again after it."""

    exit_code = distributed.EXIT_SDC


def with_sdc_check(step: Callable, every: int | None, *, start_step: int) -> Callable:
    """`step`, computed twice after every `every` steps; a metric counts the numbers that differ.

    Nothing waits for the device: the count is read with the step's other metrics. The state and its
    result are held twice meanwhile.

    Args:
      step: (state, batch) -> (state, metrics); donates its state.
      start_step: steps done before the first call.
    """
    if every is None:
        return step
    done = start_step
    compare = jax.jit(_differing)

    @functools.cache
    def copier(structure, shardings):
        return jax.jit(
            lambda tree: jax.tree.map(jnp.copy, tree),
            out_shardings=jax.tree.unflatten(structure, shardings),
        )

    def stepped(state, batch):
        nonlocal done
        done += 1
        if done % every:
            return step(state, batch)
        leaves, structure = jax.tree.flatten(state)
        again = copier(structure, tuple(leaf.sharding for leaf in leaves))(state)
        first = step(state, batch)
        differing = compare(first, step(again, batch))
        return first[0], first[1] | {METRIC: differing}

    return stepped


def check(step: int, metrics: dict[str, float]) -> None:
    """Raises SilentCorruption if the metrics of a step say so."""
    if metrics.get(METRIC, 0):
        raise SilentCorruption(
            f"two computations of step {step} differ in {metrics[METRIC]:.0f} numbers.",
            f"step {step}",
            "a device is broken, or a kernel is not deterministic: run again on "
            "other hosts, one fewer at a time, until it does not come again.",
        )


def _differing(a: Any, b: Any) -> jax.Array:
    """How many numbers of two trees do not have the same bits."""

    def count(x, y):
        if jnp.issubdtype(x.dtype, jnp.floating):
            bits = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
            x, y = (jax.lax.bitcast_convert_type(z, bits) for z in (x, y))
        return jnp.sum(x != y, dtype=jnp.float32)

    return sum(jax.tree.leaves(jax.tree.map(count, a, b)), jnp.float32(0))
