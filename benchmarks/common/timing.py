"""Seconds of a compiled call on the device that runs it,
and what else goes into a table of figures.

Calls are put in the device's queue one after another and waited for together, so that what the host
does between them is hidden; functions that are compared take turns,
because a machine's speed drifts.
"""

import dataclasses
import datetime
import os
import platform
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Name = TypeVar("Name", bound=Hashable)


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median over rounds, and the least and the most."""

    median: float
    least: float
    most: float


def interleaved(
    calls: Mapping[Name, Callable], *, rounds: int, seconds: float
) -> dict[Name, Timing]:
    """Times every call in each of `rounds`.

    Args:
      calls: take nothing and return arrays of the device, without waiting for them.
      seconds: how long one call is repeated in one round; a longer one runs once.
    """
    repeats, found = {}, {name: [] for name in calls}
    for name, call in calls.items():
        for _ in range(2):  # what the first run allocates is no part of a call
            started = time.perf_counter()
            jax.block_until_ready(call())
        repeats[name] = max(1, round(seconds / (time.perf_counter() - started)))
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            for _ in range(repeats[name]):
                result = call()
            jax.block_until_ready(result)
            found[name].append((time.perf_counter() - started) / repeats[name])
    return {
        name: Timing(float(np.median(times)), min(times), max(times))
        for name, times in found.items()
    }


def matmul_call(size: int, dtype: str) -> Callable:
    """A product of two random square matrices, 2 size^3 operations:
    the device's rate to compare."""
    a, b = (
        jax.random.normal(key, (size, size), jnp.dtype(dtype))
        for key in jax.random.split(jax.random.key(0))
    )
    product = jax.jit(jnp.matmul)
    return lambda: product(a, b)


def empty_call() -> Callable:
    """A call that computes next to nothing: what the host takes to put one in the queue."""
    x = jnp.zeros((8, 128), jnp.float32)
    add = jax.jit(lambda x: x + 1.0)
    return lambda: add(x)


def machine() -> dict:
    """Date, device and versions, for the head of a file of figures."""
    device = jax.devices()[0]
    return {
        "date": datetime.date.today().isoformat(),
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }
