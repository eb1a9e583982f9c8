"""Strict JSON of small files."""

import pytest

from qwen_jax.utils.json_text import MAX_DEPTH, JSONError, parse


@pytest.mark.parametrize(
    "raw, message",
    [
        (b"", "it is empty"),
        (b" \n\0\0", "only 4 blank bytes"),
        (b'{"a": 1', "line 1 column"),
        (b'{"a":\n 1,}', "line 2 column"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' is repeated"),
        (b"NaN", "NaN is not a number"),
        (b"[-Infinity]", "-Infinity is not a number"),
        (b"[1e999]", "the number 1e999 is too large"),
        (b"9" * 21, "an integer has 21 digits"),
        (b"-" + b"9" * 5000, "an integer has 5000 digits"),
        (b'["\\ud800"]', "unpaired surrogate"),
        (b'{"\\udfff": 1}', "unpaired surrogate"),
        (b'["\xff"]', "can't decode byte 0xff"),
        (b"\xff\xfe[\0]\0", "can't decode"),
        (b'["\0"]', "control character"),
        (b"[" * 100_000, "more than 64 levels"),
        (b"[" * 65 + b"]" * 65, "more than 64 levels"),
        (b'{"a":' * 65 + b"0" + b"}" * 65, "more than 64 levels"),
    ],
)
def test_parse_says_what_is_wrong(raw, message):
    with pytest.raises(JSONError) as caught:
        parse(raw)
    assert message in str(caught.value)


def test_parse_accepts_json():
    assert parse(b'\xef\xbb\xbf{"a": [1, 2.5, null, "\\ud83d\\ude00"]}') == {
        "a": [1, 2.5, None, "\U0001f600"]
    }
    assert parse(b"18446744073709551615") == 2**64 - 1
    assert parse(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    assert parse(b"[NaN, 1e999]", finite=False)[1] == float("inf")
    many = b"[" + b",".join([b"[]"] * 1000) + b"]"
    assert len(parse(many)) == 1000
