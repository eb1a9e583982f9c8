"""Hopper kernels on a CPU: Pallas' Mosaic GPU interpreter, and replacements for what it lacks.

Copies, barriers and shared memory are the interpreter's (with its race detector, on request). Its
matmuls do not support operands in registers, and its copies do not support sums. `hopper_ops` is
replaced by this:

- A matmul is a plain dot that runs as late as the hardware might run it: when `wait` or `read`
  requires its result. If a buffer of shared memory is released too early, the dot reads it after
  the release, and the race detector reports it. (At the end of a loop step every matmul has
  finished; it cannot be delayed further.)
- `add_to_global` is read, add, write. The detector assumes that the blocks of a grid run
  concurrently, as on the hardware, and treats these sums as atomic.
"""

import contextlib
import dataclasses
from typing import Any
from unittest import mock

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax._src import source_info_util
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks, interpret_pallas_call

from qwen_jax.kernels.hopper import ops as hopper_ops
from qwen_jax.kernels.platform import interpret_kernels


class RaceFound(AssertionError):
    """Two threads, or a thread and the copy engine, access the same memory without an order."""


@dataclasses.dataclass
class Accumulator:
    value: jax.Array

    @property
    def shape(self):
        return self.value.shape


class _Matmuls:
    """The matmuls that have started and not finished, oldest first."""

    def __init__(self):
        self.pending: list[tuple[Accumulator, Any, Any]] = []

    def accumulators(self, body, *shapes):
        result = body(*(Accumulator(jnp.zeros(shape, jnp.float32)) for shape in shapes))
        self.wait(0)
        return result

    def accumulate(self, accumulator, a, b):
        assert accumulator.shape == (a.shape[0], b.shape[1]) and a.shape[1] == b.shape[0]
        assert a.dtype == b.dtype
        self.pending.append((accumulator, a, b))

    def wait(self, in_flight):
        finished = len(self.pending) - in_flight
        for accumulator, a, b in self.pending[: max(0, finished)]:
            a = a if isinstance(a, jax.Array) else a[...]
            dot = jnp.dot(a, b[...], preferred_element_type=jnp.float32)
            accumulator.value = accumulator.value + dot
            # The interpreter saw plain reads, which do not order the copy engine.
            plgpu.commit_smem()
        del self.pending[: max(0, finished)]

    def read(self, accumulator, in_flight=0):
        self.wait(in_flight)
        assert all(accumulator is not other for other, _, _ in self.pending), "read in flight"
        return accumulator.value

    def store(self, accumulator, value):
        assert all(accumulator is not other for other, _, _ in self.pending), "stored in flight"
        accumulator.value = value

    def loop(self, lower, upper, body, carry=None, *, accumulators=()):
        self.wait(0)

        def step(i, state):
            values, carry = state
            for accumulator, value in zip(accumulators, values, strict=True):
                accumulator.value = value
            carry = body(i, carry)
            self.wait(0)
            return [accumulator.value for accumulator in accumulators], carry

        values, carry = jax.lax.fori_loop(
            lower, upper, step, ([accumulator.value for accumulator in accumulators], carry)
        )
        for accumulator, value in zip(accumulators, values, strict=True):
            accumulator.value = value
        return carry


def _add_to_global(source, target):
    _atomic_add(target, source[...])


def _atomic_add(target, value):
    """Accesses of this function are not races: the copy engine's sums are atomic."""
    target[...] = target[...] + value


class _Races(gpu_callbacks.GPURaceDetectionState):
    def check_read(self, thread, clock, key, access, source_info=None):
        if not _is_atomic(source_info):
            super().check_read(thread, clock, key, access, source_info)

    def check_write(self, thread, clock, key, access, source_info=None):
        if not _is_atomic(source_info):
            super().check_write(thread, clock, key, access, source_info)


def _is_atomic(source_info) -> bool:
    where = "" if source_info is None else source_info_util.summarize(source_info)
    return _atomic_add.__name__ in where


@contextlib.contextmanager
def interpreted(*, detect_races: bool = False):
    """Runs Hopper kernels on the CPU; functions traced within it stay interpreted.

    Raises:
      RaceFound: a kernel had a race, with `detect_races`.
    """
    matmuls, states = _Matmuls(), []
    names = ("accumulators", "accumulate", "wait", "read", "store", "loop")
    replaced = {name: getattr(matmuls, name) for name in names}

    def recorded(*args, **kwargs):
        states.append(_Races(*args, **kwargs))
        return states[-1]

    interpret_pallas_call.reset_gpu_interpret_mode_state()  # left by a kernel that failed before
    with (
        mock.patch.multiple(hopper_ops, add_to_global=_add_to_global, **replaced),
        mock.patch.object(gpu_callbacks, "GPURaceDetectionState", recorded),
        interpret_kernels(plgpu.InterpretGPUParams(detect_races=detect_races)),
    ):
        try:
            yield
        except RuntimeError as error:  # jax 0.12 raises at a race, jax 0.11 only prints it
            if "RACE DETECTED" not in str(error):
                raise
            raise RaceFound(str(error)) from error
    if any(state.races_found for state in states):
        raise RaceFound("shared memory is read and written without an order")
