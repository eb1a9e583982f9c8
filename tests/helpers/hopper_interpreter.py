"""Hopper kernels on a CPU: Pallas' Mosaic GPU interpreter, and our version of what it lacks.

Copies, barriers and shared memory are the interpreter's own (with its race detector, where asked).
Its matrix products know no operand in registers and its copies no sums; `hopper_ops` is replaced:

- A product is a plain dot that runs as late as the hardware might: when `wait` or `read` says that
  it has ended. A slot of shared memory that is given back too early is then read after it was, and
  the race detector sees it. (At the end of a loop's step every product has ended: later than that
  it cannot be delayed.)
- `add_to_global` is read, add, write. The detector takes the blocks of a grid to run at once, as
  the hardware may, and is told that these sums are atomic.
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
    """Two threads, or a thread and the copy engine, touch the same memory in no order."""


@dataclasses.dataclass
class Accumulator:
    value: jax.Array

    @property
    def shape(self):
        return self.value.shape


class _Products:
    """The products that were started and have not ended, oldest first."""

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
        ended = len(self.pending) - in_flight
        for accumulator, a, b in self.pending[: max(0, ended)]:
            a = a if isinstance(a, jax.Array) else a[...]
            dot = jnp.dot(a, b[...], preferred_element_type=jnp.float32)
            accumulator.value = accumulator.value + dot
            # The interpreter saw plain reads, which order nothing for the copy engine.
            plgpu.commit_smem()
        del self.pending[: max(0, ended)]

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
    """What this function reads and writes is no race: the copy engine's sums are atomic."""
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
    """Within it, Hopper kernels run on the CPU; functions traced in it stay interpreted.

    Raises:
      RaceFound: if `detect_races` and a kernel had one.
    """
    products, states = _Products(), []
    names = ("accumulators", "accumulate", "wait", "read", "store", "loop")
    replaced = {name: getattr(products, name) for name in names}

    def recorded(*args, **kwargs):
        states.append(_Races(*args, **kwargs))
        return states[-1]

    interpret_pallas_call.reset_gpu_interpret_mode_state()  # of a kernel that failed before
    with (
        mock.patch.multiple(hopper_ops, add_to_global=_add_to_global, **replaced),
        mock.patch.object(gpu_callbacks, "GPURaceDetectionState", recorded),
        interpret_kernels(plgpu.InterpretGPUParams(detect_races=detect_races)),
    ):
        try:
            yield
        except RuntimeError as error:  # jax 0.12 stops at a race, jax 0.11 prints it and goes on
            if "RACE DETECTED" not in str(error):
                raise
            raise RaceFound(str(error)) from error
    if any(state.races_found for state in states):
        raise RaceFound("shared memory is read and written without order")
