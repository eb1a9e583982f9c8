"""What the worker does that no client sees."""

import asyncio

import pytest

from qwen_jax.inference.request import Request
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.serve.errors import ApiError
from qwen_jax.serve.worker import Worker
from tests.helpers.fake_engine import FakeEngine
from tests.helpers.server import byte_tokenizer

TOKENIZER = byte_tokenizer()


def request(tokens=5, n=1) -> Request:
    return Request((1, 2), SamplingParams(tokens, n=n))


def with_worker(engine, work, **settings):
    """The result of work(worker) in an event loop with a worker that has started."""

    async def main():
        worker = Worker(engine, **{"rows": 4, "max_queued": 4} | settings)
        worker.start()
        try:
            return await work(worker)
        finally:
            engine.gate.set()
            assert await asyncio.to_thread(worker.close, 10)

    return asyncio.run(main())


def test_a_worker_that_drains_takes_no_more_and_ends_what_is_late():
    engine = FakeEngine(TOKENIZER, seconds=0.01, unending=True, slots=10**6)

    async def work(worker):
        short, long = [await worker.submit([request(n)]) for n in (5, 10_000)]
        drain = asyncio.create_task(worker.drain(0.3))
        await asyncio.sleep(0)
        with pytest.raises(ApiError, match="shutting down") as refused:
            await worker.submit([request()])
        assert refused.value.status == 503 and refused.value.retry_after
        assert [event.finish async for _, event in short][-1] == "length"
        with pytest.raises(ApiError, match="shutting down"):
            async for _ in long:
                pass
        await drain
        assert worker.in_flight == 0

    with_worker(engine, work)
    assert not engine.busy


def test_a_caller_that_is_cancelled_while_it_is_let_in_leaves_nothing():
    engine = FakeEngine(TOKENIZER)
    engine.gate.clear()

    async def work(worker):
        first = await worker.submit([request()])
        assert await asyncio.to_thread(engine.stepping.wait, 10)  # where the gate holds the thread
        waiting = asyncio.create_task(worker.submit([request(n=2), request(n=2)]))
        await asyncio.sleep(0.05)
        assert worker.in_flight == 5 and not waiting.done()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert worker.in_flight == 1
        engine.gate.set()
        assert [choice async for choice, _ in first]
        with pytest.raises(ApiError, match="too long"):  # refused whole: its first request as well
            await worker.submit([request(n=2), request(1000, n=2)])
        assert worker.in_flight == 0 and worker.counters.cancelled == 4

    with_worker(engine, work)
    assert engine.cancelled == 6 and not engine.busy


def test_a_failure_reaches_callers_that_are_being_let_in():
    engine = FakeEngine(TOKENIZER, fail_at=1)
    engine.gate.clear()

    async def work(worker):
        await worker.submit([request()])
        assert await asyncio.to_thread(engine.stepping.wait, 10)
        waiting = asyncio.create_task(worker.submit([request()]))
        await asyncio.sleep(0.05)
        engine.gate.set()
        with pytest.raises(ApiError, match="out of memory") as failed:
            await waiting
        assert failed.value.status == 500 and worker.in_flight == 0

    with_worker(engine, work)
