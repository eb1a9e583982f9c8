"""Incremental detokenization: complete characters, no part of a stop string."""

import random

import pytest

from qwen_jax.inference.stream import TextStream, token_bytes
from qwen_jax.tokenizer.bpe import Tokenizer

BYTES = {i: bytes([i]) for i in range(256)}


def stream_of(text: str, stops=(), rng=None) -> list[str]:
    """Returns a stream's outputs for tokens of 1 to 4 bytes each, and at last finish()."""
    data, table, tokens = text.encode(), {}, []
    while data:
        size = rng.randint(1, 4) if rng else 1
        table[len(tokens)], data = data[:size], data[size:]
        tokens.append(len(tokens))
    stream = TextStream(table, stops)
    return [stream.add(token) for token in tokens] + [stream.finish()]


@pytest.mark.parametrize("seed", range(20))
def test_text_stream_returns_the_text_up_to_the_first_stop_string(seed):
    rng = random.Random(seed)
    text = "".join(rng.choice("ab\n你🙂é") for _ in range(60))
    assert "".join(stream_of(text, rng=rng)) == text
    stops = ["".join(rng.choice("ab\n你") for _ in range(rng.randint(1, 3))) for _ in range(2)]
    ends = [text.find(stop) for stop in stops if stop in text]
    found = stream_of(text, stops, rng)
    # A token of several bytes may contain two stop strings; the first one counts.
    assert "".join(found) == (text[: min(ends)] if ends else text)
    assert "\ufffd" not in "".join(found)


def test_text_stream_holds_back_a_prefix_of_a_stop_string():
    stream = TextStream(BYTES, ["STOP"])
    assert [stream.add(ord(c)) for c in "aSTxSTO"] == ["a", "", "", "STx", "", "", ""]
    assert stream.finish() == "STO" and not stream.stopped
    stream = TextStream(BYTES, ["aab"])  # the prefix overlaps itself
    assert "".join(stream.add(ord(c)) for c in "aaab!") == "a" and stream.stopped
    assert stream.finish() == ""


def test_text_stream_holds_back_partial_characters():
    first, second, third = "你".encode()
    stream = TextStream(BYTES)
    assert [stream.add(first), stream.add(second), stream.add(third)] == ["", "", "你"]
    assert stream.add(first) == "" and stream.finish() == "\ufffd"
    assert TextStream(BYTES).add(999) == "\ufffd"


def test_token_bytes_of_special_tokens_are_their_names():
    ranks = {bytes([i]): i for i in range(256)}
    table = token_bytes(Tokenizer(ranks, ["<|end|>"]))
    assert table[256] == b"<|end|>" and table[65] == b"A" and len(table) == 257
