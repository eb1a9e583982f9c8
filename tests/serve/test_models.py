"""Models that are loaded when they are first requested."""

import asyncio
import threading

import pytest

from qwen_jax.errors import CheckpointError
from qwen_jax.serve.api.protocol import Limits
from qwen_jax.serve.errors import ApiError
from qwen_jax.serve.models import LazyModels, Served
from qwen_jax.serve.worker import Worker
from tests.helpers.fake_engine import FakeEngine
from tests.helpers.server import byte_tokenizer, running

TOKENIZER = byte_tokenizer()


class Shelf:
    """Models a, b and c, whose versions a test changes; `loads` has each load."""

    def __init__(self):
        self.versions = {"a": 1, "b": 1, "c": 1}
        self.loads: list[str] = []
        self.may_load = threading.Event()
        self.may_load.set()

    def load(self, name):
        self.may_load.wait(10)
        self.loads.append(name)
        if name == "c":
            raise CheckpointError("the weights are damaged.", "c", "train again.")
        worker = Worker(FakeEngine(TOKENIZER, seconds=0.01), max_num_seqs=2, max_queued=8)
        return Served(worker, TOKENIZER, Limits(name, 256, 4))

    def models(self, max_loaded=1):
        return LazyModels(lambda: dict(self.versions), self.load, max_loaded=max_loaded)


def ask(server, model):
    body = {"model": model, "prompt": "x", "max_tokens": 3}
    return server.call("POST", "/v1/completions", body)[0]


def test_models_are_loaded_at_their_first_request_and_make_room():
    shelf = Shelf()
    with running(None, TOKENIZER, models=shelf.models()) as server:
        assert [one.id for one in server.client().models.list().data] == ["a", "b", "c"]
        assert shelf.loads == [] and server.call("GET", "/health")[0] == 200
        assert [ask(server, name) for name in "aaba"] == [200] * 4
        assert shelf.loads == ["a", "b", "a"]
        assert ask(server, "d") == 404
        assert server.call("POST", "/tokenize", {"prompt": "x"})[0] == 200  # of the loaded one
        assert server.metric("qwen_jax_max_num_seqs") == 2


def test_the_model_used_longest_ago_makes_room():
    shelf = Shelf()
    with running(None, TOKENIZER, models=shelf.models(max_loaded=2)) as server:
        shelf.versions["d"] = 1
        assert [ask(server, name) for name in "abadab"] == [200] * 6
    assert shelf.loads == ["a", "b", "d", "b"]


def test_a_newer_checkpoint_is_loaded_when_nobody_uses_the_older():
    shelf = Shelf()
    with running(None, TOKENIZER, models=shelf.models()) as server:
        assert ask(server, "a") == 200
        shelf.versions["a"] = 2
        assert ask(server, "a") == 200 and ask(server, "a") == 200
    assert shelf.loads == ["a", "a"]


def test_a_model_that_cannot_be_loaded_is_an_error_and_the_server_goes_on():
    shelf = Shelf()
    with running(None, TOKENIZER, models=shelf.models()) as server:
        status, _, body = server.call("POST", "/v1/completions", {"model": "c", "prompt": "x"})
        assert status == 500 and "the weights are damaged" in body and "train again" in body
        assert ask(server, "a") == 200 and server.call("GET", "/health")[0] == 200


def test_a_model_in_use_keeps_its_place(monkeypatch):
    monkeypatch.setattr("qwen_jax.serve.models.BUSY_SECONDS", 0.1)
    shelf = Shelf()

    async def main():
        models = shelf.models()
        served = await models.get("a")
        served.worker.in_flight = 1
        with pytest.raises(ApiError, match="in use") as found:
            await models.get("b")
        assert found.value.status == 503 and found.value.retry_after
        served.worker.in_flight = 0
        assert (await models.get("b")).limits.model == "b"
        assert served.worker.failure is not None and "unloaded" in served.worker.failure.what
        models.stop()
        return models.close(5)

    assert asyncio.run(main())


def test_two_requests_load_a_model_once():
    shelf = Shelf()
    shelf.may_load.clear()

    async def main():
        models = shelf.models()
        both = asyncio.gather(models.get("a"), models.get("a"))
        await asyncio.sleep(0.05)
        shelf.may_load.set()
        first, second = await both
        assert first is second and shelf.loads == ["a"]
        models.stop()
        return models.close(5)

    assert asyncio.run(main())
