"""compare and values: which values are the same, and which forms are refused."""

import collections
import json

import pytest

from qwen_jax.sandbox import compare, values

NAN = float("nan")


@pytest.mark.parametrize(
    "expected, actual",
    [
        (1.0, 1.0 + 1e-7),
        (1e300, 1e300 * (1 + 1e-7)),
        (NAN, NAN),
        ([1, (2.0, {"a": 3.0})], [1, (2.0 + 1e-9, {"a": 3.0})]),
        ({1: "a", 2: "b"}, {2: "b", 1: "a"}),
        ({(1, 2), (3,)}, {(3,), (1, 2)}),
        (10**400, 10**400),
        (1j, 1j + 1e-9),
        ({frozenset({1}): 1}, {frozenset({1}): 1}),
    ],
)
def test_same_accepts(expected, actual):
    assert compare.same(expected, actual)


@pytest.mark.parametrize(
    "expected, actual",
    [
        (1, True),
        (1, 1.0),
        (0, None),
        ([1], (1,)),
        ({1}, frozenset({1})),
        ({1: 0}, {True: 0}),
        ({1}, {1.0}),
        ({(1,)}, {(True,)}),
        ("1", 1),
        ("a", b"a"),
        ([1, 2], [1]),
        ({"a": 1}, {"b": 1}),
        (1.0, 1.0001),
        (NAN, 0.0),
        (10**400, 10**400 + 1),
        (object(), object()),
    ],
)
def test_same_refuses(expected, actual):
    assert not compare.same(expected, actual)


def test_same_can_take_an_integer_for_a_float():
    assert compare.same([2.0], [2], number_types=False)
    assert not compare.same(1, True, number_types=False)


def test_same_calls_no_method_of_a_value():
    class Liar(int):
        def __eq__(self, other):
            raise AssertionError("called")

        __hash__ = int.__hash__

    assert not compare.same(7, Liar(7))
    assert not compare.same(Liar(7), Liar(7))


@pytest.mark.parametrize(
    "value",
    [None, True, -5, 10**4000, 0.1, -0.0, "", "é\ud800", b"\0", bytearray(b"x"), 1 - 2j]
    + [[], [[()]], {1: {2: [3]}}, {1, 2}, frozenset({"a"}), {(1, "a"): None}],
)
def test_values_survive(value):
    raw = values.to_bytes(values.encode(value))
    assert repr(values.decode(values.from_bytes(raw))) == repr(value)


def test_encode_takes_the_dicts_of_collections():
    counter = collections.Counter("aab")
    assert values.decode(values.encode(counter)) == {"a": 2, "b": 1}
    assert type(values.decode(values.encode(counter))) is dict


@pytest.mark.parametrize(
    "value", [object(), range(3), type("A", (int,), {})(1), iter([]), len, collections.deque()]
)
def test_encode_refuses_other_types(value):
    with pytest.raises(values.ValueRefused, match="of type"):
        values.encode(value)


def test_encode_refuses_deep_values():
    deep = []
    deep.append(deep)
    with pytest.raises(values.ValueRefused, match="deeper"):
        values.encode(deep)


@pytest.mark.parametrize(
    "form",
    [1, [], ["i"], ["i", 5], ["i", "zz"], ["f", "x"], ["q", "1"], ["S", [["l", []]]], ["d", [1]]]
    + [["d", [[["l", []], ["b", None]]]], ["b", 1], ["c", "0x1p0"], ["u", "zz"], [["l"], []]]
    + [["S", [["i", hex(i * (2**61 - 1))] for i in range(20_000)]]],
)
def test_decode_refuses(form):
    with pytest.raises(values.ValueRefused):
        values.decode(form)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[1", b'["i","0x1"', b"[" * 200, b"\xff", b"0" * (1 << 21)]
)
def test_from_bytes_refuses(raw):
    with pytest.raises(values.ValueRefused):
        values.from_bytes(raw)


def test_the_deepest_value_fits_the_parser():
    value = 1
    for _ in range(values.MAX_DEPTH):
        value = {0: value}
    assert values.decode(
        values.from_bytes(json.dumps([0, "value", values.encode(value)]).encode())[2]
    )
