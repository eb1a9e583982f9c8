"""Timing of compiled calls on the device, and a description of the machine for result files.

Calls are queued on the device and awaited together, which hides host work between them. Functions
that are compared alternate, because the speed of a machine drifts.
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
    """Seconds per call: median, minimum and maximum over rounds."""

    median: float
    min: float
    max: float


def interleaved(
    calls: Mapping[Name, Callable], *, rounds: int, seconds: float
) -> dict[Name, Timing]:
    """Times every call in each round.

    Args:
      calls: functions without arguments that return device arrays without blocking.
      seconds: approximate duration of each call's repetitions per round; a longer call runs once.
    """
    repeats, found = {}, {name: [] for name in calls}
    for name, call in calls.items():
        for _ in range(2):  # the first call also allocates
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
    """Returns a call that multiplies two random square matrices: 2 size^3 operations."""
    a, b = (
        jax.random.normal(key, (size, size), jnp.dtype(dtype))
        for key in jax.random.split(jax.random.key(0))
    )
    matmul = jax.jit(jnp.matmul)
    return lambda: matmul(a, b)


def empty_call() -> Callable:
    """Returns a call with almost no computation, to measure the host's dispatch time."""
    x = jnp.zeros((8, 128), jnp.float32)
    add = jax.jit(lambda x: x + 1.0)
    return lambda: add(x)


def machine() -> dict:
    """Returns date, device and versions for the header of a result file."""
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
