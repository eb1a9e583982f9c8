"""Which decode slot a request gets."""

import pytest

from qwen_jax.inference.batching.prefix import CachedPrompt, Placement, place, reusable_tokens

PROMPT = tuple(range(40))


@pytest.mark.parametrize(
    "held, shared",
    [
        (CachedPrompt(PROMPT, 40), 40),  # the full prompt, computed
        (CachedPrompt(PROMPT, 20), 16),  # still being computed
        (CachedPrompt(PROMPT + (7,), 41), 32),  # full chunks, and never the last token
        (CachedPrompt(PROMPT[:33] + (0, 0), 35), 32),
        (CachedPrompt(PROMPT[:31] + (0,), 32), 16),
        (CachedPrompt(PROMPT[:15] + (0,) * 9, 24), 0),
        (CachedPrompt((9, *PROMPT[1:]), 40), 0),
        (CachedPrompt(), 0),
    ],
)
def test_reusable_tokens_are_full_chunks(held, shared):
    assert reusable_tokens(PROMPT, held, 16) == shared


def test_place_prefers_the_longest_shared_prefix_then_the_oldest_slot():
    cached = [
        CachedPrompt((5,) * 9, 9, 3),
        CachedPrompt(PROMPT[:20] + (0,), 21, 2),
        CachedPrompt(PROMPT[:36] + (0,), 37, 4),
    ]

    def chosen(free, same=True):
        return place(PROMPT, cached, free, chunk=16, same_rotation=lambda a, b: same)

    assert chosen([0, 1, 2]) == Placement(slot=2, source=2, shared=32)
    assert chosen([0, 1]) == Placement(slot=1, source=2, shared=32)  # copied: slot 2 is in use
    assert chosen([0, 1, 2], same=False) == Placement(slot=1, source=None, shared=0)
    assert chosen([]) is None
    # Of two equal prefixes, the free slot's needs no copy.
    cached.append(CachedPrompt(PROMPT[:36] + (0,), 37, 5))
    assert chosen([0, 3]) == Placement(slot=3, source=3, shared=32)
    cached.pop()
    cached.append(CachedPrompt(PROMPT, 16, 5))  # another slot is computing the same prompt: wait
    assert chosen([0, 1]) is None
