"""Connections without a network: fake transports, and timers that the test fires."""

import asyncio
import functools
import json

import pytest
import uvicorn

from qwen_jax.serve import connections as module
from qwen_jax.serve.connections import Connection, Connections
from qwen_jax.serve.limits import ClientLimits
from tests.helpers.fake_connections import FakeLoop, FakeTransport

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
BODY = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"


class Peers:
    """Opens connections to a server whose application never answers, unless told to."""

    def __init__(self, **limits):
        settings = {"max_connections": 4, "max_client_connections": 2} | limits
        self.limits = ClientLimits(**settings).resolved(
            max_num_seqs=8, capacity=144, max_open_files=512
        )
        self.loop, self.connections = FakeLoop(), Connections(self.limits)
        self.config = uvicorn.Config(None, interface="asgi3", log_config=None, timeout_keep_alive=5)
        self.state = uvicorn.server.ServerState()
        self.config.loaded, self.config.loaded_app, self.config.ws_protocol_class = True, None, None

    def open(self, host: str, data: bytes = b"") -> FakeTransport:
        transport = FakeTransport(host)
        make = functools.partial(Connection, self.connections)
        transport.connection = make(
            config=self.config, server_state=self.state, app_state={}, _loop=self.loop
        )
        transport.connection.connection_made(transport)
        if data:
            transport.connection.data_received(data)
        return transport

    def respond(self, transport: FakeTransport, body: bytes = b"{}") -> None:
        """Answers the connection's current request."""
        send = transport.connection.cycle.send
        length = (b"content-length", b"%d" % len(body))

        async def answer():
            await send({"type": "http.response.start", "status": 200, "headers": [length]})
            await send({"type": "http.response.body", "body": body})

        asyncio.run(answer())


def error_of(transport: FakeTransport) -> tuple[int, str, bytes]:
    """Returns the status and the code of an error response, and its headers."""
    head, _, body = bytes(transport.written).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"], head


def test_connections_replace_the_one_that_waited_longest_for_its_request():
    peers = Peers()
    first, second = peers.open("10.0.0.1"), peers.open("10.0.0.1", b"POST / HT")
    third = peers.open("10.0.0.1")  # over the limit of a client
    assert first.closed and not second.closed and not third.closed and not first.written
    others = [peers.open("10.0.0.2"), peers.open("10.0.0.3")]
    assert len(peers.connections) == 4
    late = peers.open("10.0.0.4")  # over the limit of all: the client with most gives one up
    assert second.closed and not any(one.closed for one in (third, late, *others))
    assert len(peers.connections) == 4
    assert peers.connections.outcomes == {"replaced": 2}


def test_connections_that_had_a_response_begin_to_wait_again():
    peers = Peers()
    used, idle = peers.open("10.0.0.1", REQUEST), peers.open("10.0.0.1")
    peers.respond(used)
    new = peers.open("10.0.0.1")
    assert idle.closed and not used.closed and not new.closed
    assert peers.open("10.0.0.1") and used.closed and not new.closed


def test_connections_200_idle_ones_of_many_clients_keep_nobody_out():
    peers = Peers(max_connections=64, max_client_connections=16)
    idle = [peers.open(f"10.0.{i % 5}.{i % 50}") for i in range(200)]
    assert sum(not one.closed for one in idle) == 64 == len(peers.connections)
    mine = peers.open("127.0.0.1", REQUEST)
    peers.respond(mine)
    assert mine.written.startswith(b"HTTP/1.1 200") and not mine.closed


def test_connections_in_use_are_kept_and_the_new_one_is_refused():
    peers = Peers(max_connections=3)
    busy = [peers.open("10.0.0.1", REQUEST) for _ in range(2)]
    refused = peers.open("10.0.0.1", REQUEST)
    assert refused.paused and not refused.written  # so that it does not retry at once
    peers.open("10.0.0.2", REQUEST)
    peers.loop.fire(module.REFUSAL_SECONDS)
    status, code, head = error_of(refused)
    assert (status, code) == (429, "too_many_connections") and b"retry-after: 1" in head
    assert refused.eof and not refused.closed  # so that the client can read the reason
    assert not refused.paused and refused.connection.cycle is None  # its request is not parsed
    peers.loop.fire(module.LINGER_SECONDS)
    assert refused.closed
    full = peers.open("10.0.0.3")
    peers.loop.fire(module.REFUSAL_SECONDS)
    assert error_of(full)[:2] == (503, "too_many_connections")
    assert not any(one.closed for one in busy) and len(peers.connections) == 3
    peers.respond(busy[0])  # a connection without a request gives way
    assert peers.open("10.0.0.3", REQUEST).written == b"" and busy[0].closed


def test_connections_of_an_incomplete_body_give_way():
    peers = Peers()
    slow = [peers.open("10.0.0.1", BODY + b"x") for _ in range(2)]
    peers.open("10.0.0.1", REQUEST)
    assert peers.connections.outcomes == {"refused": 1}  # a body has a second
    assert not slow[0].closed
    peers.loop.now += module.BODY_SECONDS
    new = peers.open("10.0.0.1", REQUEST)
    assert slow[0].closed and not slow[1].closed and not new.closed
    slow[1].connection.data_received(b"12345678")  # complete
    peers.open("10.0.0.1", REQUEST)
    assert peers.connections.outcomes == {"refused": 2, "replaced": 1} and not slow[1].closed


def test_connections_that_a_client_opens_too_fast_wait():
    peers = Peers(max_connections=512, max_client_connections=16)
    burst = int(module.REPLACED_PER_SECOND * module.BURST_SECONDS)
    at_once = [peers.open("10.0.0.1") for _ in range(16 + burst)]
    assert not any(one.paused for one in at_once)
    assert peers.connections.outcomes == {"replaced": burst}
    late = [peers.open("10.0.0.1", REQUEST) for _ in range(burst)]
    assert (
        all(one.paused and not one.closed for one in late)
        and not peers.connections.outcomes["refused"]
    )
    delays = [1 / module.REPLACED_PER_SECOND, module.BURST_SECONDS]
    assert [peers.loop.delays()[i] for i in (-burst, -1)] == pytest.approx(delays)
    refused = peers.open("10.0.0.1")
    assert peers.connections.outcomes == {"replaced": burst, "refused": 1}
    peers.loop.fire(module.REFUSAL_SECONDS)
    assert error_of(refused)[:2] == (429, "too_many_connections") and not late[-1].written
    other = [peers.open("10.0.0.2") for _ in range(17)]  # another client has its own share
    assert not any(one.paused for one in other) and other[0].closed
    peers.loop.fire(peers.loop.delays()[-1])  # a connection that waited is admitted
    peers.loop.now += 2 * module.BURST_SECONDS
    again = [peers.open("10.0.0.1") for _ in range(burst)]
    assert not any(one.paused for one in again)


def test_connection_that_waited_is_admitted_and_a_closed_one_is_forgotten():
    peers = Peers(max_connections=64)
    for _ in range(2 + int(module.REPLACED_PER_SECOND * module.BURST_SECONDS)):
        peers.open("10.0.0.1")
    late, gone = peers.open("10.0.0.1"), peers.open("10.0.0.1")
    assert late.paused and peers.connections.lingering == 2
    gone.abort()
    assert peers.connections.lingering == 1
    peers.loop.fire(min(peers.loop.delays()))
    assert not late.paused and peers.connections.lingering == 0
    late.connection.data_received(REQUEST)
    peers.respond(late)
    assert late.written.startswith(b"HTTP/1.1 200") and len(peers.connections) == 2


def test_connections_forget_clients_that_are_gone(monkeypatch):
    monkeypatch.setattr(module, "_KEPT_CLIENTS", 4)
    peers = Peers()
    for i in range(20):
        for transport in [peers.open(f"10.0.0.{i}") for _ in range(3)]:
            transport.close()
        peers.loop.now += 10
    assert len(peers.connections._used_until) <= 5


def test_connection_reads_small_pieces_of_a_request_once_in_a_while():
    peers = Peers()
    transport = peers.open("10.0.0.1", BODY.replace(b"9", b"2000"))
    for _ in range(module.SMALL_PIECES - 1):
        transport.connection.data_received(b"x" * 9)
    assert not transport.paused
    transport.connection.data_received(b"x" * 9)
    assert transport.paused and peers.loop.delays() == [module.PIECE_SECONDS]
    peers.loop.fire(module.PIECE_SECONDS)
    assert not transport.paused
    transport.connection.data_received(b"x" * module.SMALL_PIECE)
    assert not transport.paused
    transport.connection.data_received(b"x" * (2000 - module.SMALL_PIECE - 9 * module.SMALL_PIECES))
    assert not transport.paused  # complete
    peers.respond(transport)
    transport.connection.data_received(BODY)  # the next request starts again
    assert not transport.paused
    transport.connection.data_received(b"x")
    assert not transport.paused


def test_connections_refuses_only_a_few_with_a_reason():
    peers = Peers(max_connections=1, max_client_connections=1)
    peers.open("10.0.0.1", REQUEST)
    refused = [peers.open("10.0.0.1") for _ in range(50)]
    assert [one.closed for one in refused] == [False] + [True] * 49
    assert peers.connections.lingering == 1 and len(peers.state.connections) == 2
    refused[0].abort()
    assert peers.connections.lingering == 0


def test_connection_header_seconds_ends_slow_headers_and_silence():
    peers = Peers(header_seconds=7, max_client_connections=4)
    silent, slow = peers.open("10.0.0.1"), peers.open("10.0.0.1", b"GET / HTTP/1.1\r\nA: ")
    for _ in range(20):
        slow.connection.data_received(b"a")
    done = peers.open("10.0.0.1", REQUEST)
    # Bytes start no new timer for headers, and a full request ends it.
    assert peers.loop.delays() == [7, 7, module.PIECE_SECONDS]
    peers.loop.fire(7)
    assert silent.closed and not silent.written
    assert slow.closed and error_of(slow)[:2] == (408, "timeout")
    assert not done.closed and peers.connections.outcomes == {"timeout": 2}


def test_connection_header_seconds_applies_to_later_requests_and_ignored_bodies():
    peers = Peers(header_seconds=7, idle_seconds=5)
    transport = peers.open("10.0.0.1", BODY)
    peers.respond(transport)  # before its body arrived
    assert peers.loop.delays() == [5]
    for byte in b"123":
        transport.connection.data_received(bytes([byte]))
    assert peers.loop.delays() == [7]
    other = peers.open("10.0.0.1", REQUEST)
    peers.respond(other)
    other.connection.data_received(REQUEST[:9])
    peers.loop.fire(7)
    assert transport.closed and other.closed


def test_connection_send_seconds_ends_a_client_that_does_not_read():
    peers = Peers(send_seconds=3)
    transport = peers.open("10.0.0.1", REQUEST)
    assert transport.high == 0
    transport.connection.pause_writing()
    transport.connection.resume_writing()
    assert peers.loop.delays() == []
    peers.respond(transport, b"x" * 100)
    transport.connection.pause_writing()
    new = [peers.open("10.0.0.1", REQUEST) for _ in range(2)]
    assert not transport.closed  # it gets its time
    assert new[1].connection.transport and peers.connections.outcomes == {"refused": 1}
    peers.loop.fire(3)
    assert transport.closed and transport.aborted
    assert peers.connections.outcomes["timeout"] == 1


@pytest.mark.parametrize("soft, hard, wanted, allowed", [
    (256, 4096, 512, 512), (256, 256, 512, 64), (10_000, 10_000, 512, 512), (-1, -1, 512, 512),
])  # fmt: skip
def test_reserve_files_raises_the_limit_or_lowers_the_number(
    monkeypatch, soft, hard, wanted, allowed
):
    resource = pytest.importorskip("resource")
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.append(new))
    monkeypatch.setattr(module.os, "listdir", lambda _: ["0"] * 30)
    found = module.reserve_files(wanted)
    assert found == allowed or allowed < found < 256 == hard
    assert limits[-1][1] == hard and (hard == 256 or limits[-1][0] >= wanted or soft == -1)


CHUNKED = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("answered", [False, True])
def test_connections_answer_a_request_with_a_malformed_body_once(answered):
    """The application may answer it before its body, or after the body turned out malformed."""
    peers = Peers()
    transport = peers.open("10.0.0.1", CHUNKED)
    transport.connection.connection_lost = lambda _: None  # asyncio calls it later
    if answered:
        peers.respond(transport)
        transport.connection.data_received(b"ZZ\r\n")
        assert transport.written.startswith(b"HTTP/1.1 200")
    else:
        transport.connection.data_received(b"ZZ\r\n")
        peers.respond(transport)  # sends nothing, and raises nothing
        assert transport.written.startswith(b"HTTP/1.1 400")
    assert transport.written.count(b"HTTP/1.1 ") == 1 and transport.closed
