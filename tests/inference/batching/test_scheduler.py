"""The scheduler without a device: who gets a slot, which chunks come next."""

import dataclasses

from qwen_jax import sizes
from qwen_jax.inference.batching.fair_queue import FairQueue, Owner
from qwen_jax.inference.batching.scheduler import Choice, Chunk, Scheduler
from qwen_jax.inference.request import Request
from qwen_jax.inference.sampling import SamplingParams

CONFIG = dataclasses.replace(sizes.TINY, context_length=4096)


def scheduler(*prompt_lengths: int, num_slots: int = 2) -> Scheduler:
    found = Scheduler(CONFIG, num_slots=num_slots, chunk=32)
    for i, length in enumerate(prompt_lengths):
        request = Request(tuple(range(i, i + length)), SamplingParams(4))
        found.waiting.append(Choice(i, request, 0, None))
    return found


def work(found: Scheduler) -> list:
    """Returns a step's work: slots that start decoding; of chunks, shape, slots, starts, counts."""
    return [
        (one.tokens.shape, one.slots.tolist(), one.starts.tolist(), one.num_tokens.tolist())
        if isinstance(one, Chunk)
        else one
        for one in found.prefill()
    ]


def test_scheduler_admit_assigns_slots_in_order_and_reuses_them():
    found = scheduler(3, 5, 7)
    assert [(choice.id, placement.slot) for choice, placement in found.admit()] == [(0, 0), (1, 1)]
    assert [choice.id for choice in found.waiting] == [2] and list(found.admit()) == []
    assert found.remove(1).id == 1 and found.remove(1) is None
    assert [(choice.id, placement.slot) for choice, placement in found.admit()] == [(2, 1)]
    for request_id in (0, 2):
        assert found.busy and found.remove(request_id).id == request_id
    assert not found.busy


def test_scheduler_prefill_groups_short_prompts_and_splits_long_ones():
    found = scheduler(3, 70, 5, num_slots=3)
    assert [choice.id for choice, _ in found.admit()] == [0, 1, 2]
    # Both sizes are computed for three slots at once (all there are); unused ones are padding.
    assert work(found) == [
        ((3, 16), [0, 2, 5], [0, 0, 0], [3, 5, 0]),
        0,
        2,
        ((3, 32), [1, 4, 5], [0, 0, 0], [32, 0, 0]),
    ]
    # While others decode, a step is one chunk; the next chunk starts after it.
    assert work(found) == [((3, 32), [1, 4, 5], [32, 0, 0], [32, 0, 0])]
    assert work(found) == [((3, 16), [1, 4, 5], [64, 0, 0], [6, 0, 0]), 1]
    assert found.decoding.tolist() == [True, True, True]


def test_scheduler_reuses_the_prompt_of_a_finished_request():
    found = scheduler(40)
    [(choice, _)] = found.admit()
    while found.decoding[0] == 0:
        work(found)
    found.release(0)
    found.waiting.append(Choice(9, choice.request, 1, None))
    [(_, placement)] = found.admit()
    assert (placement.slot, placement.source, placement.shared) == (0, 0, 40)
    assert work(found) == [0]  # no chunk is left to compute


def owned(found: Scheduler, client: str, request: int, ids: range) -> None:
    for i in ids:
        prompt = Request((i,), SamplingParams(4))
        found.waiting.append(Choice(i, prompt, 0, None, Owner(client, request)))


def admitted(found: Scheduler) -> list[int]:
    return [choice.id for choice, _ in found.admit()]


def running(found: Scheduler) -> set[int | None]:
    return {choice and choice.id for choice in found.running}


def test_scheduler_admit_gives_clients_and_their_requests_turns():
    found = Scheduler(CONFIG, num_slots=1, chunk=32)
    owned(found, "a", 0, range(72))  # n=72
    owned(found, "a", 1, range(100, 101))
    owned(found, "b", 2, range(200, 202))
    order = []
    for _ in range(7):
        order += admitted(found)
        found.release(0)
    assert order == [0, 200, 100, 201, 1, 2, 3]


def test_scheduler_admit_takes_surplus_slots_for_other_clients():
    found = Scheduler(CONFIG, num_slots=4, chunk=32)
    owned(found, "a", 0, range(10))
    assert admitted(found) == [0, 1, 2, 3]
    for slot, count in enumerate((7, 5, 2, 9)):
        found.choice(slot).count = count
    owned(found, "b", 1, range(10, 13))
    assert admitted(found) == [10, 11]  # each client has two slots; the least work is repeated
    assert running(found) == {0, 3, 10, 11}
    found.remove(10)
    owned(found, "c", 2, range(20, 22))
    assert admitted(found) == [20] and running(found) == {0, 3, 11, 20}  # a free slot
    assert admitted(found) == []  # 2, 1, 1: another order of the same shares is no better
    for request_id in (11, 20):
        found.remove(request_id)
    assert admitted(found) == [12, 21]
    for request_id in (12, 21):
        found.remove(request_id)
    assert [admitted(found) for _ in range(5)] == [[]] * 4 + [[1, 2]]  # before those that never ran
    assert {choice.id: choice.sent for choice in found.running if choice} == {
        0: 0, 3: 0, 1: 5, 2: 2
    }  # fmt: skip
    assert (found.choice(0).count, found.choice(1).count) == (7, 0)


def test_scheduler_admit_holds_a_slot_for_the_client_that_needed_it():
    found = Scheduler(CONFIG, num_slots=4, chunk=32)
    owned(found, "a", 0, range(10))
    assert admitted(found) == [0, 1, 2, 3]
    for i in range(10, 20):  # one after the other, with a step between
        owned(found, "b", i, range(i, i + 1))
        assert admitted(found) == [i] and running(found) == {0, 1, 2, i}
        found.remove(i)
        assert admitted(found) == []  # not for the client that gave it up
    owned(found, "c", 20, range(20, 21))
    assert admitted(found) == [20]  # a client without a completion may take it
    found.remove(20)
    for request_id in (0, 1, 2):
        found.remove(request_id)
    assert [admitted(found) for _ in range(5)] == [[3, 4, 5], [], [], [], [6]]  # a few steps later


def test_fair_queue_removes_withdrawn_items_and_their_owners():
    found = Scheduler(CONFIG, num_slots=1, chunk=32)
    owned(found, "a", 0, range(2))
    owned(found, "b", 1, range(2, 3))
    queue: FairQueue = found.waiting
    assert len(queue) == 3 and [one.id for one in queue] == [0, 1, 2]
    assert queue.remove(2).id == 2 and queue.remove(2) is None and queue.remove(0).id == 0
    assert queue.first({}).id == 1 and queue.remove(1).id == 1 and not queue


def test_scheduler_groups_as_many_chunks_for_each_shard_as_for_one():
    def groups(num_slots: int, shards: int) -> list:
        found = Scheduler(CONFIG, num_slots=num_slots, chunk=32, shards=shards)
        return [found._group_size(size) for size in (16, 32, 64, 128, 512)]

    assert groups(4, 1) == [4, 4, 2, 1, 1]
    assert groups(16, 4) == [4 * size for size in groups(4, 1)]
