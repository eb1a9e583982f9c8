"""Whether two values are the same: by type, floats with a tolerance, no method of theirs called.

For values that come from an untrusted process as typed forms (values.py), so only built-in types
occur. A type that compares itself cannot take part.
"""

import math
from typing import Any


def same(
    expected: Any,
    actual: Any,
    *,
    relative: float = 1e-6,
    absolute: float = 1e-6,
    number_types: bool = True,
) -> bool:
    """Compares two values.

    True is not 1, a list is not a tuple, 0.0 is 0.0 within the tolerance, NaN is NaN, the order of
    dicts and sets does not matter.

    Args:
      relative, absolute: tolerance of floats and complex numbers, also inside containers; a float
        in a set, or as a key, must be equal.
      number_types: whether 1 and 1.0 differ.
    """
    options = {"relative": relative, "absolute": absolute, "number_types": number_types}
    kind, other = type(expected), type(actual)
    if kind in (int, float) and other in (int, float):
        if number_types and kind is not other:
            return False
        return _numbers(expected, actual, relative, absolute)
    if kind is not other:
        return False
    if kind is complex:
        return all(
            _numbers(x, y, relative, absolute)
            for x, y in ((expected.real, actual.real), (expected.imag, actual.imag))
        )
    if expected is None or kind in (bool, str, bytes, bytearray):
        return expected == actual
    if kind in (list, tuple):
        return len(expected) == len(actual) and all(
            same(x, y, **options) for x, y in zip(expected, actual, strict=True)
        )
    if kind in (set, frozenset):
        return len(expected) == len(actual) and set(map(_key, expected)) == set(map(_key, actual))
    if kind is dict:
        if len(expected) != len(actual):
            return False
        found = {_key(key): value for key, value in actual.items()}
        return all(
            _key(key) in found and same(value, found[_key(key)], **options)
            for key, value in expected.items()
        )
    return False


def _numbers(expected: float, actual: float, relative: float, absolute: float) -> bool:
    if type(expected) is int and type(actual) is int:
        return expected == actual
    try:
        expected, actual = float(expected), float(actual)
    except OverflowError:  # an integer beyond any float
        return expected == actual
    if math.isnan(expected) or math.isnan(actual):
        return math.isnan(expected) and math.isnan(actual)
    return math.isclose(expected, actual, rel_tol=relative, abs_tol=absolute)


def _key(value: Any) -> Any:
    """Returns a hashable value that differs for 1, 1.0 and True, also inside tuples."""
    if type(value) is tuple:
        return (tuple, tuple(map(_key, value)))
    if type(value) is frozenset:
        return (frozenset, frozenset(map(_key, value)))
    if type(value) is float and math.isnan(value):
        return (float, "nan")
    return (type(value), value)
