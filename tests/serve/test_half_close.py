"""Clients that close only their sending side after a request, and clients that close it all."""

import http.client
import json
import socket
import time

import pytest

from qwen_jax.inference.request import Request
from qwen_jax.inference.sampling import SamplingParams
from tests.helpers.fake_engine import FakeEngine, complete
from tests.helpers.server import MODEL, byte_tokenizer, running

TOKENIZER = byte_tokenizer()


def request(*, stream: bool, version: str = "1.1", **settings) -> bytes:
    ask = {"model": MODEL, "prompt": "x", "max_tokens": 40, "temperature": 0, "stream": stream}
    ask |= settings
    body = json.dumps(ask).encode()
    head = (
        f"POST /v1/completions HTTP/{version}\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@pytest.fixture
def blocked():
    """A server whose engine takes no step until `engine.unblocked` is set, and its engine."""
    engine = FakeEngine(TOKENIZER, max_num_seqs=1, unending=True)
    engine.unblocked.clear()
    with running(engine, TOKENIZER) as server:
        try:
            yield server, engine
        finally:
            engine.unblocked.set()


@pytest.fixture
def connect(blocked):
    """Opens a connection, sends bytes, and closes the sending side."""
    opened = []

    def open_(data: bytes) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", blocked[0].port), timeout=10)
        opened.append(client)
        client.sendall(data)
        blocked[0].wait_until(lambda: blocked[0].worker.in_flight == len(opened))
        client.shutdown(socket.SHUT_WR)
        return client

    yield open_
    for client in opened:
        client.close()


def wait_for_probe(client: socket.socket) -> None:
    """Waits until the server has noticed the closed side; leaves what it sent unread."""
    assert client.recv(1, socket.MSG_PEEK)


@pytest.mark.parametrize("stream", [False, True])
def test_half_closed_client_receives_its_response(blocked, connect, stream):
    server, engine = blocked
    client = connect(request(stream=stream))
    wait_for_probe(client)
    time.sleep(0.3)  # longer than the checks whether it is gone
    assert server.worker.in_flight == 1
    engine.unblocked.set()
    response = http.client.HTTPResponse(client)
    response.begin()  # skips 100 Continue
    body = response.read().decode()
    assert response.status == 200
    if stream:
        events = [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: {")]
        text = "".join(event["choices"][0]["text"] for event in events)
        assert body.endswith("data: [DONE]\n\n")
    else:
        text = json.loads(body)["choices"][0]["text"]
    sampling = SamplingParams(temperature=0, max_new_tokens=40)
    offline = FakeEngine(TOKENIZER, unending=True)
    [(expected, _)] = complete(offline, Request(tuple(TOKENIZER.encode("x")), sampling))
    assert text == expected
    client.settimeout(3)  # less than the server waits for further requests
    assert client.recv(1) == b""  # nothing can follow, so the server has closed the connection
    server.wait_until(lambda: not len(server.connections))


def test_half_closed_client_receives_the_responses_to_all_its_requests(blocked, connect):
    server, engine = blocked
    client = connect(request(stream=False) + request(stream=False, max_tokens=2))
    wait_for_probe(client)
    engine.unblocked.set()
    with client.makefile("rb") as file:
        received = file.read().decode()
    assert received.count("HTTP/1.1 200 OK") == 2


@pytest.mark.parametrize("stream, reads", [(False, False), (True, False), (True, True)])
def test_client_that_closes_the_rest_later_frees_its_slot(blocked, connect, stream, reads):
    """Its system sends a reset if data is unread, and otherwise in answer to what is sent next."""
    server, engine = blocked
    client = connect(request(stream=stream, max_tokens=200))
    wait_for_probe(client)
    if reads:
        client.recv(4096)
    engine.seconds = 0.05  # 200 tokens take 10 s
    engine.unblocked.set()
    client.close()
    server.wait_until(lambda: engine.cancelled == 1 and not engine.busy, seconds=4)


@pytest.mark.parametrize("stream", [False, True])
def test_closed_client_leaves_the_queue(blocked, stream):
    server, _ = blocked
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(request(stream=stream))
        server.wait_until(lambda: server.worker.in_flight == 1)
        received = b""
        while stream and b"\r\n\r\n" not in received:  # unread data would cause a reset
            received += client.recv(4096)
    server.wait_until(lambda: not len(server.connections), seconds=3)


def test_http_1_0_client_counts_as_gone(blocked, connect):
    server, engine = blocked
    client = connect(request(stream=False, version="1.0"))
    assert client.recv(4096) == b""  # not 100 Continue, which HTTP/1.0 does not have
    server.wait_until(lambda: not len(server.connections))


def test_request_that_is_cut_off_is_not_answered(blocked):
    server, _ = blocked
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(request(stream=False)[:-5])
        client.shutdown(socket.SHUT_WR)
        assert client.recv(4096) == b""
    assert server.worker.in_flight == 0
