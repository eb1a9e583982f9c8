"""The test suite of every attention backend: accuracy, masks, gradients, transforms.

A test module inherits from it: `class TestTpu(KernelValidation): name = "tpu"; ...`.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax.kernels.attention import attention
from qwen_jax.kernels.platform import interpret_mode
from qwen_jax.kernels.validation import Case, error_ratios, masks  # noqa: F401
from qwen_jax.types import Array


def with_gradients(function, q: Array, k: Array, v: Array, dout: Array) -> tuple[Array, ...]:
    """Returns out, dq, dk, dv of function(q, k, v), jitted as one program."""

    def run(q, k, v, dout):
        out, pull = jax.vjp(function, q, k, v)
        return (out, *pull(dout))

    return jax.jit(run)(q, k, v, dout)


@functools.partial(jax.jit, static_argnames=("suite", "mode"))
def outcome(q, k, v, dout, options, *, suite: type["KernelValidation"], mode):
    """Returns out, dq, dk, dv. Masks are arguments, so the tests of a suite share programs.

    A program keeps the tiles and the mode (of the interpreter) with which it was traced.
    """
    del mode
    attend = functools.partial(attention, implementation=suite.name, **options)
    out, pull = jax.vjp(attend, q, k, v)
    return (out, *pull(dout))


class KernelValidation:
    """Properties of every backend. A subclass sets its own sizes and dtypes."""

    name: str
    grid: list[
        Case
    ]  # parametrizes `test_error_ratios_are_within_tolerance` by pytest_generate_tests
    quick: tuple[int, ...] | None = None  # cases of the grid that are not slow; None: all
    dtypes = ("float32", "bfloat16")
    H = 64
    T = 260  # of the property tests: more than a tile, and not a multiple of one

    @contextlib.contextmanager
    def running(self):
        """The context in which the backend runs; interpreted backends override it."""
        yield

    @pytest.fixture(autouse=True)
    def _running(self):
        with self.running():
            yield

    def attend(self, **options):
        return functools.partial(attention, implementation=self.name, **options)

    def arrays(self, **changes):
        case = Case(**{"T": self.T, "H": self.H, "N": 2, "K": 1, "dtype": self.dtypes[0]} | changes)
        return case.arrays(), case.options()

    def outcome(self, arrays, options) -> tuple[Array, ...]:
        return outcome(*arrays, options, suite=type(self), mode=interpret_mode())

    def test_error_ratios_are_within_tolerance(self, case: Case):
        found = error_ratios(case, self.name)
        assert all(ratio <= 1 for ratio in found.values()), found

    def test_attention_gradients_stay_causal_and_in_their_document(self):
        (q, k, v, dout), options = self.arrays(documents=(100, 100, self.T - 200))
        one_output = np.zeros(dout.shape, dout.dtype)
        one_output[0, 150] = 1
        for grad in self.outcome((q, k, v, jnp.asarray(one_output)), options)[2:]:
            seen = np.flatnonzero(np.abs(np.asarray(grad, np.float32)).sum(axis=(0, 2, 3)))
            assert seen.min() == 100 and seen.max() == 150 and len(seen) == 51

    def test_attention_of_a_document_is_bitwise_independent_of_others(self):
        (q, k, v, dout), options = self.arrays(documents=(130, self.T - 130))
        factor = np.where(np.arange(self.T) < 130, 1, 3)[None, :, None, None]
        other = [jnp.asarray((np.asarray(x) * factor).astype(x.dtype)) for x in (q, k, v)]
        first = self.outcome((q, k, v, dout), options)
        second = self.outcome((*other, dout), options)
        for a, b in zip(map(np.asarray, first), map(np.asarray, second), strict=True):
            np.testing.assert_array_equal(a[:, :130], b[:, :130])
            assert not np.array_equal(a[:, 130:], b[:, 130:])

    def test_attention_of_padding_is_zero_and_not_nan(self):
        arrays, options = self.arrays(documents=())
        for array in self.outcome(arrays, options):
            np.testing.assert_array_equal(array, np.zeros(array.shape))

    def test_attention_with_a_window_of_full_length_changes_nothing(self):
        arrays, _ = self.arrays()
        for a, b in zip(
            self.outcome(arrays, {}),
            self.outcome(arrays, {"window": np.int32(2**31 - 1)}),
            strict=True,
        ):
            np.testing.assert_allclose(
                np.asarray(a, np.float32), np.asarray(b, np.float32), atol=1e-6
            )

    def test_attention_is_equal_under_scan_remat_and_vmap(self):
        (q, k, v, dout), _ = self.arrays()
        plain = self.outcome((q, k, v, dout), {"window": np.int32(50)})

        def scanned(q, k, v):
            """Traces the window, as in a model whose window differs by layer."""

            def body(total, window):
                return total + self.attend(window=window)(q, k, v), None

            zero = jnp.zeros(q.shape, q.dtype)
            return jax.lax.scan(jax.checkpoint(body), zero, jnp.asarray([50, 50]))[0]

        eps = float(jnp.finfo(q.dtype).eps)
        for a, b in zip(plain, with_gradients(scanned, q, k, v, dout), strict=True):
            a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
            np.testing.assert_allclose(2 * a, b, atol=8 * eps * np.abs(b).max())
        mapped = with_gradients(
            jax.vmap(self.attend(window=50)), *(x[None] for x in (q, k, v, dout))
        )
        for a, b in zip(plain, mapped, strict=True):
            a, b = np.asarray(a, np.float32), np.asarray(b[0], np.float32)
            np.testing.assert_allclose(a, b, atol=8 * eps * np.abs(a).max())


def pytest_generate_tests(metafunc):
    """Parametrizes `case` with the grid of the class. A test module imports this name."""
    if "case" in metafunc.fixturenames:
        grid, quick = metafunc.cls.grid, metafunc.cls.quick
        cases = [
            pytest.param(
                case,
                id=f"{i}-T{case.T}-H{case.H}-{case.dtype}",
                marks=() if quick is None or i in quick else pytest.mark.slow,
            )
            for i, case in enumerate(grid)
        ]
        metafunc.parametrize("case", cases)
