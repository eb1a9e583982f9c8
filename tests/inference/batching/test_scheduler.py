"""The host's side of the engine, without a device: who gets a row, which chunks come next."""

import dataclasses

from qwen_jax import sizes
from qwen_jax.inference.batching.scheduler import Chunk, Job, Scheduler
from qwen_jax.inference.request import Request
from qwen_jax.inference.sampling import SamplingParams

CONFIG = dataclasses.replace(sizes.TINY, context_length=4096)


def scheduler(*prompt_lengths: int, rows: int = 2) -> Scheduler:
    found = Scheduler(CONFIG, rows=rows, chunk=32)
    for i, length in enumerate(prompt_lengths):
        request = Request(tuple(range(i, i + length)), SamplingParams(4))
        found.queue.append(Job(i, request, 0, None))
    return found


def work(found: Scheduler) -> list:
    """A step's work: rows that begin, and of each chunk its padded size, rows and starts."""
    return [
        (one.tokens.shape, one.rows.tolist(), one.starts.tolist(), one.num_tokens.tolist())
        if isinstance(one, Chunk)
        else one
        for one in found.prefill()
    ]


def test_rows_are_given_in_order_and_given_back():
    found = scheduler(3, 5, 7)
    assert [(job.id, chosen.row) for job, chosen in found.admit()] == [(0, 0), (1, 1)]
    assert [job.id for job in found.queue] == [2] and list(found.admit()) == []
    assert found.remove(1).id == 1 and found.remove(1) is None
    assert [(job.id, chosen.row) for job, chosen in found.admit()] == [(2, 1)]
    for request_id in (0, 2):
        assert found.busy and found.remove(request_id).id == request_id
    assert not found.busy


def test_short_prompts_are_computed_together_and_long_ones_in_chunks():
    found = scheduler(3, 70, 5, rows=3)
    assert [job.id for job, _ in found.admit()] == [0, 1, 2]
    # 16 tokens: three rows at once (all that there are); 32: three, the others nobody's.
    assert work(found) == [
        ((3, 16), [0, 2, 5], [0, 0, 0], [3, 5, 0]),
        0,
        2,
        ((3, 32), [1, 4, 5], [0, 0, 0], [32, 0, 0]),
    ]
    # Now that others decode, a step is one chunk; the rest of a prompt starts behind it.
    assert work(found) == [((3, 32), [1, 4, 5], [32, 0, 0], [32, 0, 0])]
    assert work(found) == [((3, 16), [1, 4, 5], [64, 0, 0], [6, 0, 0]), 1]
    assert found.begun.tolist() == [True, True, True]


def test_a_second_request_uses_what_the_first_has_left():
    found = scheduler(40)
    [(job, _)] = found.admit()
    while found.begun[0] == 0:
        work(found)
    found.release(0)
    found.queue.append(Job(9, job.request, 1, None))
    [(_, chosen)] = found.admit()
    assert (chosen.row, chosen.source, chosen.shared) == (0, 0, 40)
    assert work(found) == [0]  # nothing is left to compute
