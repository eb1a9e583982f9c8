"""Which row a request gets."""

import pytest

from qwen_jax.inference.batching.prefix import Held, Plan, plan, usable

PROMPT = tuple(range(40))


@pytest.mark.parametrize(
    "held, shared",
    [
        (Held(PROMPT, 40), 40),  # all of it, computed
        (Held(PROMPT, 20), 16),  # not yet complete
        (Held(PROMPT + (7,), 41), 32),  # whole chunks, and never the last token
        (Held(PROMPT[:33] + (0, 0), 35), 32),
        (Held(PROMPT[:31] + (0,), 32), 16),
        (Held(PROMPT[:15] + (0,) * 9, 24), 0),
        (Held((9, *PROMPT[1:]), 40), 0),
        (Held(), 0),
    ],
)
def test_keys_are_used_again_in_whole_chunks(held, shared):
    assert usable(PROMPT, held, 16) == shared


def test_the_row_with_the_longest_beginning_wins_then_the_one_unused_for_longest():
    rows = [Held((5,) * 9, 9, 3), Held(PROMPT[:20] + (0,), 21, 2), Held(PROMPT[:36] + (0,), 37, 4)]

    def chosen(free, same=True):
        return plan(PROMPT, rows, free, chunk=16, same_codes=lambda a, b: same)

    assert chosen([0, 1, 2]) == Plan(row=2, source=2, shared=32)
    assert chosen([0, 1]) == Plan(row=1, source=2, shared=32)  # copied: row 2 is in use
    assert chosen([0, 1, 2], same=False) == Plan(row=1, source=None, shared=0)
    assert chosen([]) is None
    rows.append(Held(PROMPT, 16, 5))  # the same prompt is on its way in another row: wait for it
    assert chosen([0, 1]) is None
