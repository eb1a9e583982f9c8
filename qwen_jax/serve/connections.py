"""The server's connections: how many there may be, and how long each may take.

Where a limit is reached, a new connection takes the place of the one that has waited longest for
its request. Idle and slow connections thus never keep anybody out, whoever opened them. A client
that opens them faster than REPLACED_PER_SECOND waits: opening and closing connections as fast as it
can would cost the event loop more than the requests of all others.
"""

import asyncio
import contextlib
import math
import os
import socket
from collections import Counter
from collections.abc import Iterable

from qwen_jax.errors import ConfigError
from qwen_jax.serve.api.responses import dumps
from qwen_jax.serve.errors import ApiError
from qwen_jax.serve.limits import ClientLimits, client_of

try:
    import h11
    from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol
except ImportError as error:
    raise ConfigError(
        "uvicorn, the HTTP server, is not installed.",
        "qwen_jax.serve",
        'pip install "qwen_jax[serve]".',
    ) from error

BACKLOG = 2048  # connections that wait in the kernel; further ones would be retried after a second
REPLACED_PER_SECOND = 32  # connections that a client at a limit may open
BURST_SECONDS = 2.0  # of REPLACED_PER_SECOND at once; a new connection waits this long at most
REFUSAL_SECONDS = 1.0  # before a refused client learns the reason, so that it retries later
LINGER_SECONDS = 1.0  # for it to read the reason
BODY_SECONDS = 1.0  # for a body before its connection may be replaced, which is costly then
# A request in many small pieces is read once in a while, because a small piece costs as much time
# as a large one.
SMALL_PIECE = 512  # bytes
SMALL_PIECES = 4
PIECE_SECONDS = 1.0
EVENT_STREAM = "event_stream"  # in a request's state: its response consists of server-sent events
GONE_SECONDS = 0.1  # between checks whether a half-closed connection was reset
_KEEPALIVE_SECONDS = 10  # of its probes by the kernel
_SPARE_FILES = 16
_KEPT_CLIENTS = 4096


class Connections:
    """All open connections of a server.

    Args:
      limits: resolved limits.
    """

    def __init__(self, limits: ClientLimits):
        self.limits = limits
        self.outcomes: Counter[str] = Counter()  # "refused", "replaced", "timeout" -> connections
        self.lingering = 0  # refused connections that are still open, and those that wait
        # Of each client, in the order in which they began to wait for their current request.
        self._by_client: dict[str, dict[Connection, None]] = {}
        # Of each client that reached a limit: until when its share of replacements is used up.
        self._used_until: dict[str, float] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_client.values()))

    def admit(self, new: "Connection") -> ApiError | None:
        """Adds a connection, possibly in place of another; returns the reason if it is refused."""
        limits, own = self.limits, self._by_client.get(new.client_name, {})
        assert limits.max_client_connections is not None and limits.max_connections is not None
        if len(own) >= limits.max_client_connections:
            if not self._replace([own]):
                return _refusal(429, f"{len(own)} connections of this client are in use.")
        elif len(self) >= limits.max_connections:
            if not self._replace(sorted(self._by_client.values(), key=len, reverse=True)):
                return _refusal(503, f"{len(self)} connections are in use.")
        self._by_client.setdefault(new.client_name, {})[new] = None
        return None

    def delay(self, new: "Connection") -> float:
        """Returns the seconds until a new connection may be admitted; infinity: refuse it."""
        limits, own = self.limits, self._by_client.get(new.client_name, ())
        assert limits.max_client_connections is not None and limits.max_connections is not None
        if len(own) < limits.max_client_connections and len(self) < limits.max_connections:
            return 0.0
        now = new.loop.time()
        if len(self._used_until) > _KEPT_CLIENTS:
            self._used_until = {
                client: until for client, until in self._used_until.items() if until > now
            }
        until = max(now, self._used_until.get(new.client_name, now)) + 1 / REPLACED_PER_SECOND
        if until - now > 2 * BURST_SECONDS:
            return math.inf
        self._used_until[new.client_name] = until
        return max(0.0, until - now - BURST_SECONDS)

    def wait_again(self, connection: "Connection") -> None:
        """Moves a connection behind those of its client that have waited longer."""
        own = self._by_client.get(connection.client_name, {})
        if connection in own:
            del own[connection]
            own[connection] = None

    def remove(self, connection: "Connection") -> None:
        """Forgets a connection; without effect if it is not among them."""
        own = self._by_client.get(connection.client_name, {})
        own.pop(connection, None)
        if not own:
            self._by_client.pop(connection.client_name, None)

    def _replace(self, clients: "Iterable[dict[Connection, None]]") -> bool:
        """Closes one that waits, of the first client that has one; returns whether any has."""
        for own in clients:
            for victim in own:
                if victim.waits:
                    self.outcomes["replaced"] += 1
                    self.remove(victim)
                    victim.transport.close()
                    return True
        return False


class Connection(H11Protocol):
    """A connection with time limits for headers and for what the client does not read.

    uvicorn limits the size of headers and the time between requests; app.py limits bodies.

    A client that closes only its sending side after a request receives the response, as from
    Apache or Node.
    """

    def __init__(self, connections: Connections, **settings):
        super().__init__(**settings)
        self._connections = connections
        self.client_name = ""
        self._since = 0.0  # when it began to wait for its current request, in the loop's time
        self._small_pieces = 0  # of its current request
        self._refused = self._lingers = self._started = self._half_closed = False
        self._entry_timer: asyncio.TimerHandle | None = None
        self._header_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None
        self._piece_timer: asyncio.TimerHandle | None = None
        self._gone_timer: asyncio.TimerHandle | None = None

    @property
    def waits(self) -> bool:
        """Whether the connection waits for a request, and everything before it was received."""
        if self.flow.write_paused:
            return False
        if self.cycle is None or self.cycle.response_complete:
            return True
        return self.cycle.more_body and self.loop.time() - self._since >= BODY_SECONDS

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        # Then pause_writing says that the client has not received everything.
        transport.set_write_buffer_limits(high=0)
        self.client_name = client_of(self.client[0] if self.client else None)
        delay = self._connections.delay(self)
        if math.isinf(delay):
            self._refuse(_refusal(429, "this client opens connections too fast."))
        elif delay and self._linger():
            self._entry_timer = self.loop.call_later(delay, self._enter)
        elif not delay:
            self._enter()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (
            self._entry_timer,
            self._header_timer,
            self._send_timer,
            self._piece_timer,
            self._gone_timer,
        ):
            if timer is not None:
                timer.cancel()
        self._connections.lingering -= self._lingers
        self._connections.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._started = True
        super().data_received(data)
        self._watch_headers()
        if len(data) < SMALL_PIECE and self._incomplete:
            self._small_pieces += 1
            if self._small_pieces > SMALL_PIECES and self._piece_timer is None:
                self.transport.pause_reading()
                self._piece_timer = self.loop.call_later(PIECE_SECONDS, self._read_again)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keeps the connection open while a request that was received in full is answered.

        A client that has closed the whole connection looks the same, until something is written:
        its system answers with a reset. With HTTP/1.0, in which nothing can be written before the
        response, it counts as gone; reverse proxies that use it do not half-close.
        """
        if self._refused or self._incomplete or self.scope["http_version"] == "1.0":
            return False
        if not self._half_closed:
            self._half_closed = True
            self._probe()
            self._check_gone()
        return True

    def _probe(self) -> None:
        """Writes what every client ignores, and lets the kernel probe from then on."""
        if not self.cycle.response_started:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif self.scope.get("state", {}).get(EVENT_STREAM) and not self.flow.write_paused:
            self.transport.write(self.conn.send(h11.Data(data=b":\n\n")) or b"")  # a comment
        # Of a client that closes the rest later.
        endpoint = self.transport.get_extra_info("socket")
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL"):
            if hasattr(socket, name):
                endpoint.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), _KEEPALIVE_SECONDS)

    def _check_gone(self) -> None:
        """Ends the connection if it was reset, which asyncio does not see without reading."""
        endpoint = self.transport.get_extra_info("socket")
        if endpoint.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
        else:
            self._gone_timer = self.loop.call_later(GONE_SECONDS, self._check_gone)

    def on_response_complete(self) -> None:
        self._connections.wait_again(self)
        self._since, self._started, self._small_pieces = self.loop.time(), False, 0
        super().on_response_complete()
        if self._half_closed and self._incomplete:  # no further request was received
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answers a malformed request, of which no part is answered twice.

        Its headers may have been valid: the application then has a request that is still to be
        answered, or was answered before its body.
        """
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        super().send_400_response(msg)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._send_timer is None:
            self._send_timer = self.loop.call_later(
                self._connections.limits.send_seconds, self._time_out
            )

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    @property
    def _incomplete(self) -> bool:
        """Whether a part of the current request is missing."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def _read_again(self) -> None:
        self._piece_timer = None
        if not self.flow.read_paused:
            self.transport.resume_reading()

    def _watch_headers(self) -> None:
        """Starts the timer for headers, or stops it once they are complete."""
        if self.cycle is not None and not self.cycle.response_complete:
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(
                self._connections.limits.header_seconds, self._header_time_out
            )

    def _header_time_out(self) -> None:
        if self._started and not self.transport.is_closing():
            error = ApiError(
                "the headers did not arrive in time.",
                fix="send them without pauses.",
                status=408,
                code="timeout",
            )
            self.transport.write(_response(error))
        self._connections.outcomes["timeout"] += 1
        self.transport.close()

    def _time_out(self) -> None:
        self._connections.outcomes["timeout"] += 1
        self.transport.abort()

    def _enter(self) -> None:
        """Admits the connection, or refuses it."""
        if self._lingers:
            self._lingers = False
            self._connections.lingering -= 1
            self.transport.resume_reading()
        self._since = self.loop.time()
        reason = self._connections.admit(self)
        if reason is None:
            self._watch_headers()
        else:
            self._refuse(reason)

    def _refuse(self, reason: ApiError) -> None:
        self._connections.outcomes["refused"] += 1
        self._refused = True
        if self._linger():
            self._entry_timer = self.loop.call_later(REFUSAL_SECONDS, self._end, reason)

    def _linger(self) -> bool:
        """Reads nothing for now; returns False if too many wait so, and closes the connection."""
        connections = self._connections
        assert connections.limits.max_connections is not None
        if connections.lingering >= lingering_limit(connections.limits.max_connections):
            self.transport.abort()
            return False
        self._lingers = True
        connections.lingering += 1
        self.transport.pause_reading()
        return True

    def _end(self, reason: ApiError) -> None:
        """Sends the reason of a refusal and closes the connection."""
        self.transport.write(_response(reason))
        # Closing with the client's request unread would also discard the response.
        self.transport.resume_reading()
        self._entry_timer = self.loop.call_later(LINGER_SECONDS, self.transport.abort)
        with contextlib.suppress(OSError):  # the client is gone
            self.transport.write_eof()


def lingering_limit(connections: int) -> int:
    """Returns how many may wait or be refused, and be open, next to this number of others.

    Too few would let a client that is refused try again at once.
    """
    return min(512, 1 + connections // 4)


def accepted_at_once(connections: int) -> int:
    """Returns how many connections asyncio accepts before it looks at their number."""
    return max(8, min(128, connections // 4))


def reserve_files(connections: int) -> int:
    """Raises the process's limit on open files as needed; returns the connections it allows.

    Args:
      connections: connections that are wanted.
    """
    try:
        import resource

        used = len(os.listdir("/dev/fd"))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    except (ImportError, OSError):  # Windows
        return connections
    wanted = used + _SPARE_FILES + _files(connections)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    while connections > 1 and soft != resource.RLIM_INFINITY:
        if used + _SPARE_FILES + _files(connections) <= soft:
            break
        connections -= 1
    return connections


def _files(connections: int) -> int:
    return connections + accepted_at_once(connections) + lingering_limit(connections)


def _refusal(status: int, what: str) -> ApiError:
    return ApiError(
        what, fix="retry later.", status=status, code="too_many_connections", retry_after=1
    )


def _response(error: ApiError) -> bytes:
    """Returns an error as HTTP, for a connection without a request."""
    body = dumps(error.body())
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
        **error.headers(),
    }
    lines = [f"HTTP/1.1 {error.status} {STATUS_PHRASES[error.status].decode()}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
