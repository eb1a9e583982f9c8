"""The worker without an HTTP server."""

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
    """Returns the result of work(worker) in an event loop with a started worker."""

    async def main():
        worker = Worker(engine, **{"max_num_seqs": 4, "max_queued": 4} | settings)
        worker.start()
        try:
            return await work(worker)
        finally:
            engine.unblocked.set()
            assert await asyncio.to_thread(worker.close, 10)

    return asyncio.run(main())


def test_worker_drain_rejects_new_requests_and_cancels_late_ones():
    engine = FakeEngine(TOKENIZER, seconds=0.01, unending=True, max_model_len=10**6)

    async def work(worker):
        short, long = [await worker.submit([request(n)]) for n in (5, 10_000)]
        drain = asyncio.create_task(worker.drain(0.3))
        await asyncio.sleep(0)
        with pytest.raises(ApiError, match="shutting down") as rejected:
            await worker.submit([request()])
        assert rejected.value.status == 503 and rejected.value.retry_after
        assert [event.finish async for events in short for _, event in events][-1] == "length"
        with pytest.raises(ApiError, match="shutting down"):
            async for _ in long:
                pass
        await drain
        assert worker.in_flight == 0

    with_worker(engine, work)
    assert not engine.busy


def test_worker_submit_cancelled_while_waiting_frees_everything():
    engine = FakeEngine(TOKENIZER)
    engine.unblocked.clear()

    async def work(worker):
        first = await worker.submit([request()])
        assert await asyncio.to_thread(engine.stepping.wait, 10)  # the step is blocked
        waiting = asyncio.create_task(worker.submit([request(n=2), request(n=2)]))
        await asyncio.sleep(0.05)
        assert worker.in_flight == 5 and not waiting.done()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert worker.in_flight == 1
        engine.unblocked.set()
        assert [choice async for events in first for choice, _ in events]
        with pytest.raises(ApiError, match="too long"):  # the first request is rejected too
            await worker.submit([request(n=2), request(1000, n=2)])
        assert worker.in_flight == 0 and worker.counters.cancelled == 4

    with_worker(engine, work)
    assert engine.cancelled == 6 and not engine.busy


def test_worker_failure_reaches_callers_of_submit():
    engine = FakeEngine(TOKENIZER, fail_at=1)
    engine.unblocked.clear()

    async def work(worker):
        await worker.submit([request()])
        assert await asyncio.to_thread(engine.stepping.wait, 10)
        waiting = asyncio.create_task(worker.submit([request()]))
        await asyncio.sleep(0.05)
        engine.unblocked.set()
        with pytest.raises(ApiError, match="out of memory") as failed:
            await waiting
        assert failed.value.status == 500 and worker.in_flight == 0

    with_worker(engine, work)
