"""What a client may hold: refusals and counts, never times."""

import asyncio
import functools
import logging
import socket
import sys
import threading
import unicodedata

import pytest

from experiments import serve
from qwen_jax.errors import ConfigError
from qwen_jax.inference.request import Request
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.serve import lane as lane_module
from qwen_jax.serve.api.protocol import Limits, read_chat, read_completion
from qwen_jax.serve.errors import ApiError
from qwen_jax.serve.lane import Lane
from qwen_jax.serve.limits import ClientLimits, client_of
from qwen_jax.serve.log_rate import LogRate
from qwen_jax.serve.worker import Worker
from tests.helpers.fake_engine import FakeEngine
from tests.helpers.server import MODEL, byte_tokenizer, running

TOKENIZER = byte_tokenizer()
POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture
def encoded(monkeypatch):
    """Returns the list of the texts that are encoded."""
    texts, encode = [], TOKENIZER.encode
    monkeypatch.setattr(TOKENIZER, "encode", lambda text: texts.append(text) or encode(text))
    return texts


LONG = 4 * 2**20


@pytest.mark.parametrize(
    "prompt, word",
    [
        ("x" * LONG, "4,194,304 bytes"),
        ("x" * 257, "257 bytes"),
        ("\u1112\u1161\u11ab" * 257, "771 bytes"),  # NFC: 257 syllables of 3 bytes
        ([1] * 1_000_000, "1,000,000 token ids"),
        ([1] * 257, "257 token ids"),
        ([[1] * 300, [1]], "300 token ids"),
        (["x"] * 11, "11 completions"),
        ([1.5] * 100_000, "100000 completions"),
    ],
)
def test_read_completion_refuses_a_long_prompt_before_encoding_it(encoded, prompt, word):
    limits = Limits(MODEL, context=256, max_choices=10)
    with pytest.raises(ApiError, match=word):
        read_completion({"model": MODEL, "prompt": prompt}, TOKENIZER, limits)
    assert encoded == []


@pytest.mark.parametrize(
    "contents, word",
    [  # with 15 bytes of each turn's markers
        (["x" * LONG], "4,194,319 bytes"),
        (["x" * 200, "y" * 57], "287 bytes"),
        ([""] * 257, "257 m"),
    ],
)
def test_read_chat_refuses_a_long_conversation_before_encoding_it(encoded, contents, word):
    limits = Limits(MODEL, context=256, max_choices=10)
    messages = [{"role": "user", "content": content} for content in contents]
    with pytest.raises(ApiError, match=word) as refused:
        read_chat({"model": MODEL, "messages": messages}, TOKENIZER, limits)
    assert encoded == [] and refused.value.code == "context_length_exceeded"


def test_read_completion_encodes_last_and_stops_at_the_first_long_prompt(encoded):
    limits = Limits(MODEL, context=256, max_choices=10)
    body = {"model": MODEL, "prompt": ["a", "x" * 256, "b"]}
    with pytest.raises(ApiError, match="the prompt has 256"):
        read_completion(body, TOKENIZER, limits)
    assert encoded == ["a", "x" * 256]
    for wrong in ({"best_of": 2}, {"n": 5}, {"stream": 1}, {"x" * 10**6: 1}):
        encoded.clear()
        with pytest.raises(ApiError):
            read_completion(body | wrong, TOKENIZER, limits)
        assert encoded == []


def test_normalization_shortens_a_text_at_most_to_a_third():
    worst = 0.0
    for one in map(chr, range(sys.maxunicode + 1)):
        if unicodedata.decomposition(one) or "\uac00" <= one <= "\ud7a3":
            for text in (one, unicodedata.normalize("NFD", one)):
                shorter = unicodedata.normalize("NFC", text).encode()
                worst = max(worst, len(text.encode()) / len(shorter))
    assert worst == 3


def test_server_refuses_a_declared_body_before_receiving_it():
    with running(FakeEngine(TOKENIZER), TOKENIZER, max_body_bytes=1000) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            client.sendall(POST + b"Content-Length: 1001\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 413 ")


def test_server_refuses_long_headers():
    limits = ClientLimits(max_header_kb=1)
    with running(FakeEngine(TOKENIZER), TOKENIZER, limits=limits) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            client.sendall(b"GET / HTTP/1.1\r\nA: " + b"a" * 100_000)
            assert client.recv(100).startswith(b"HTTP/1.1 400 ")


def test_server_with_200_idle_connections_answers_everyone():
    limits = ClientLimits(max_connections=24, max_client_connections=8)
    with running(FakeEngine(TOKENIZER), TOKENIZER, limits=limits) as server:
        idle = []
        for i in range(200):
            source = (f"127.0.0.{1 + i % 5}", 0)
            idle.append(socket.create_connection(("127.0.0.1", server.port), 10, source))
        for client in ("127.0.0.1", "127.0.0.9"):
            body = {"model": MODEL, "prompt": "x", "max_tokens": 5}
            assert server.call("POST", "/v1/completions", body, client=client)[0] == 200
        server.wait_until(lambda: len(server.connections) <= 24)
        name = 'qwen_jax_connections_ended_total{reason="replaced"}'
        assert server.metric(name) >= 200 - 24
        for one in idle:
            one.close()


def test_server_limits_the_choices_of_a_client():
    engine = FakeEngine(TOKENIZER)
    engine.unblocked.clear()
    limits = ClientLimits(max_choices=6, max_client_choices=8)
    body = {"model": MODEL, "prompt": "x", "max_tokens": 5, "n": 6}
    found = {}

    def call(client, n):
        answer = server.call("POST", "/v1/completions", body | {"n": n}, client=client)
        found[client, n] = answer

    with running(engine, TOKENIZER, max_num_seqs=4, max_queued=60, limits=limits) as server:
        call("127.0.0.2", 7)
        assert found["127.0.0.2", 7][0] == 400 and "from 1 to 6" in found["127.0.0.2", 7][2]
        many = server.call("POST", "/v1/completions", body | {"prompt": ["x"] * 4, "n": 2})
        assert many[0] == 400 and "limit is 6" in many[2]
        threads = [threading.Thread(target=call, args=("127.0.0.2", 6))]
        threads[0].start()
        server.wait_until(lambda: server.worker.in_flight == 6)
        call("127.0.0.2", 3)
        status, headers, text = found["127.0.0.2", 3]
        assert status == 429 and "client_queue_full" in text and headers["retry-after"] == "1"
        threads.append(threading.Thread(target=call, args=("127.0.0.3", 3)))
        threads[1].start()
        server.wait_until(lambda: server.worker.in_flight == 9)
        engine.unblocked.set()
        for thread in threads:
            thread.join()
        assert found["127.0.0.2", 6][0] == found["127.0.0.3", 3][0] == 200
        call("127.0.0.2", 4)
        assert found["127.0.0.2", 4][0] == 200 and server.worker.in_flight == 0
    clients = [owner.client for owner in engine.owners]
    assert clients == ["127.0.0.2", "127.0.0.3", "127.0.0.2"]
    assert len({owner.request for owner in engine.owners}) == 3


def test_worker_ends_a_stream_that_is_not_read():
    engine = FakeEngine(TOKENIZER, unending=True, max_model_len=10**6)

    async def main():
        worker = Worker(engine, max_num_seqs=4, max_queued=4)
        worker.start()
        try:
            request = [Request((1, 2), SamplingParams(5000))]
            unread = await worker.submit(request, max_events=256)
            read = await worker.submit(request, max_events=256)
            assert len([event async for events in read for _, event in events]) == 5001
            with pytest.raises(ApiError, match="too slowly"):
                async for _ in unread:
                    pass
            assert worker.counters.unread == 1 and worker.in_flight == 0
        finally:
            assert await asyncio.to_thread(worker.close, 10)

    asyncio.run(main())
    assert engine.cancelled == 1


def test_server_disconnects_a_client_that_does_not_read():
    engine = FakeEngine(TOKENIZER, unending=True, max_model_len=10**6)
    limits = ClientLimits(send_seconds=0.05, max_client_choices=8, max_unread_tokens=256)
    settings = dict(context=10**6, limits=limits, send_buffer=4096)
    with running(engine, TOKENIZER, **settings) as server:
        for stream in (b"true", b"false"):
            body = (
                b'{"model": "%s", "prompt": "x", "max_tokens": 3000, "logprobs": 0, "stream": %s}'
            )
            body %= MODEL.encode(), stream
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.connect(("127.0.0.1", server.port))
                client.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                server.wait_until(lambda: len(engine.owners) > 0 and not len(server.connections))
                server.wait_until(lambda: server.worker.in_flight == 0 and not engine.busy)
            engine.owners.clear()
        assert server.connections.outcomes["timeout"] == 2
        assert server.call("GET", "/health")[0] == 200


def test_lane_clients_take_turns_and_a_cancelled_call_leaves(monkeypatch):
    monkeypatch.setattr(lane_module, "REST", 0)
    order, started, release = [], threading.Event(), threading.Event()

    def work(name):
        started.set()
        assert release.wait(10)
        order.append(name)
        return name

    async def main():
        lane = Lane()
        names = ["a1", "a2", "a3", "a4", "b1", "c1"]
        tasks = {}
        for name in names:
            tasks[name] = asyncio.create_task(lane.run(name[0], lambda name=name: work(name)))
        await asyncio.to_thread(started.wait, 10)
        tasks["a2"].cancel()
        await asyncio.sleep(0)
        release.set()
        found = await asyncio.gather(*tasks.values(), return_exceptions=True)
        assert found[0] == "a1" and isinstance(found[1], asyncio.CancelledError)
        return await asyncio.wait_for(lane.run("a", lambda: "free"), 10)

    assert asyncio.run(main()) == "free"
    assert order == ["a1", "a3", "b1", "c1", "a4"]  # a1 began before anyone waited


def test_lane_clients_rest_after_their_turn(monkeypatch):
    monkeypatch.setattr(lane_module, "REST", 1e9)  # so that every pause has the maximum length
    monkeypatch.setattr(lane_module, "MAX_REST_SECONDS", 0.2)
    order, begun = [], {}

    async def main():
        lane, loop = Lane(), asyncio.get_running_loop()

        def work(name):
            begun[name] = loop.time()
            order.append(name)

        names = ["a1", "a2", "a3", "b1"]
        await asyncio.gather(*(lane.run(name[0], functools.partial(work, name)) for name in names))

    asyncio.run(main())
    assert order == ["a1", "b1", "a2", "a3"]
    assert begun["a2"] - begun["a1"] > 0.15 and begun["a3"] - begun["a2"] > 0.15


def test_server_answers_short_requests_while_long_prompts_are_encoded(monkeypatch):
    encode, inside, release = TOKENIZER.encode, threading.Event(), threading.Event()

    def slow(text):
        if len(text) > 50_000:
            inside.set()
            assert release.wait(20)
        return encode(text)

    monkeypatch.setattr(TOKENIZER, "encode", slow)
    found = []
    engine = FakeEngine(TOKENIZER, max_model_len=100_000)
    with running(engine, TOKENIZER, context=100_000) as server:

        def ask(prompt):
            body = {"model": MODEL, "prompt": prompt, "max_tokens": 2}
            found.append((len(prompt), server.call("POST", "/v1/completions", body)[0]))

        long = [threading.Thread(target=ask, args=("x" * (60_000 + i),)) for i in range(8)]
        for thread in long:
            thread.start()
        assert inside.wait(10)
        ask("short")
        assert found == [(5, 200)]
        release.set()
        for thread in long:
            thread.join()
    assert [status for _, status in found] == [200] * 9


def test_log_rate_passes_one_record_per_interval_and_counts_the_rest():
    now, logger, lines = [0.0], logging.getLogger("test_log_rate"), []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    rate = LogRate(10, clock=lambda: now[0])
    logger.addFilter(rate)
    for second in range(31):
        now[0] = second
        for i in range(100):
            logger.warning("bad request %d", i)
    logger.warning("something else")
    suffix = "(999 more like this were not logged)"
    assert lines == ["bad request 0", *[f"bad request 0 {suffix}"] * 3, "something else"]


@pytest.mark.parametrize(
    "host, client",
    [
        ("10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("::1", "::"),
        (None, ""),
        ("testclient", "testclient"),
    ],
)
def test_client_of_an_address(host, client):
    assert client_of(host) == client


@pytest.mark.parametrize(
    "limits, flag",
    [
        ({"header_seconds": 0}, "header_seconds"),
        ({"header_seconds": -1.0}, "header_seconds"),
        ({"body_seconds": float("nan")}, "body_seconds"),
        ({"send_seconds": float("inf")}, "send_seconds"),
        ({"log_seconds": -0.1}, "log_seconds"),
        ({"idle_seconds": 0}, "idle_seconds"),
        ({"max_header_kb": 0}, "max_header_kb"),
        ({"max_header_kb": 10**9}, "max_header_kb"),
        ({"max_connections": 0}, "max_connections"),
        ({"max_client_connections": -1}, "max_client_connections"),
        ({"max_unread_tokens": 0}, "max_unread_tokens"),
        ({"max_choices": 0}, "max_choices"),
        ({"max_client_choices": 0}, "max_client_choices"),
        ({"max_connections": 4, "max_client_connections": 5}, "max_client_connections"),
        ({"max_client_connections": 513}, "max_client_connections"),
        ({"max_choices": 9, "max_client_choices": 8}, "max_choices"),
        ({"max_choices": 73}, "max_choices"),
        ({"max_client_choices": 145}, "max_client_choices"),
    ],
)
def test_serve_refuses_limits_out_of_range_or_in_contradiction(limits, flag):
    with pytest.raises(ConfigError) as refused:
        serve.Config(limits=ClientLimits(**limits))
    assert refused.value.where == f"--limits.{flag}"


@pytest.mark.parametrize(
    "settings, flag",
    [
        ({"max_body_mib": float("nan")}, "max_body_mib"),
        ({"max_body_mib": float("inf")}, "max_body_mib"),
        ({"grace": float("inf")}, "grace"),
        ({"max_num_seqs": 10**9}, "max_num_seqs"),
        ({"max_queued": 10**9}, "max_queued"),
    ],
)
def test_serve_refuses_numbers_out_of_range(settings, flag):
    with pytest.raises(ConfigError) as refused:
        serve.Config(**settings)
    assert refused.value.where == f"--{flag}"


def test_client_limits_resolved_fit_the_server():
    limits = serve.Config().client_limits()
    assert (limits.max_connections, limits.max_client_connections) == (512, 128)
    assert (limits.max_client_choices, limits.max_choices) == (72, 72)
    few = serve.Config(max_num_seqs=2, max_queued=0).client_limits(lambda wanted: 3)
    assert (few.max_connections, few.max_client_connections, few.max_choices) == (3, 1, 2)
    with pytest.raises(ConfigError, match="open files"):
        serve.Config(limits=ClientLimits(max_connections=9)).client_limits(lambda wanted: 8)


def test_server_refuses_headers_that_are_too_large_even_at_once():
    body = {"model": MODEL, "prompt": "x", "max_tokens": 5}
    with running(FakeEngine(TOKENIZER), TOKENIZER, max_header_bytes=4096) as server:
        for size, status in ((100, 200), (5000, 431)):
            headers = {"Content-Type": "application/json", "X-A": "a" * size}
            found = server.call("POST", "/v1/completions", body, headers=headers)
            assert found[0] == status
