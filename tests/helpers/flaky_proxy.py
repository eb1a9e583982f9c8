"""An HTTP proxy on loopback between a client and an object store, which fails when told to."""

import contextlib
import http.client
import http.server
import socket
import struct
import threading
import time
from collections.abc import Iterator

_HOP = ("connection", "transfer-encoding", "keep-alive", "content-length")


class Faults:
    """What the proxy does to the next requests.

    Attributes:
      plan: one entry per request, from the first: None (forward it), an HTTP status to answer with,
        "reset" (close the connection without an answer), "lost" (forward it, then close the
        connection without an answer), or seconds to wait before forwarding.
      every: after the plan, every n-th request gets `fault`; 0: none.
      methods: only requests with these methods count.
      requests: (method, path) of all requests.
    """

    def __init__(self):
        self.plan: list[int | float | str | None] = []
        self.every, self.fault = 0, 503
        self.methods = ("GET", "PUT", "POST", "DELETE", "HEAD", "PATCH")
        self.requests: list[tuple[str, str]] = []
        self._lock, self._count = threading.Lock(), 0

    def next(self, method: str, path: str) -> int | float | str | None:
        with self._lock:
            self.requests.append((method, path))
            if method not in self.methods:
                return None
            if self.plan:
                return self.plan.pop(0)
            self._count += 1
            return self.fault if self.every and self._count % self.every == 0 else None


@contextlib.contextmanager
def proxy(endpoint: str) -> Iterator[tuple[str, Faults]]:
    """Yields the endpoint of a proxy to `endpoint` (http://host:port), and its faults."""
    faults, upstream = Faults(), endpoint.removeprefix("http://")

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_) -> None:
            pass

        def do_any(self) -> None:
            body = self._body()
            fault = faults.next(self.command, self.path)
            if fault == "reset":
                return self._reset()
            if type(fault) is int:
                return self._answer(fault, [("content-type", "text/plain")], b"injected")
            if isinstance(fault, float):
                time.sleep(fault)
            connection = http.client.HTTPConnection(upstream, timeout=120)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
            try:
                connection.request(self.command, self.path, body, headers)
                response = connection.getresponse()
                content = response.read()
            except OSError:
                return self._reset()
            finally:
                connection.close()
            if fault == "lost":
                return self._reset()
            kept = [
                (k, v.replace(endpoint, own) if k.lower() == "location" else v)
                for k, v in response.getheaders()
                if k.lower() not in _HOP
            ]
            length = response.getheader("content-length")
            self._answer(response.status, kept, content, length)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = do_any

        def _body(self) -> bytes:
            if self.headers.get("transfer-encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("content-length") or 0))
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def _answer(self, status: int, headers, content: bytes, length: str | None = None) -> None:
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            head = self.command == "HEAD"
            self.send_header("content-length", length or "0" if head else str(len(content)))
            self.end_headers()
            if not head:
                self.wfile.write(content)

        def _reset(self) -> None:
            linger = struct.pack("ii", 1, 0)  # the client sees a reset, not an end
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.shutdown(socket.SHUT_RDWR)
            self.connection.close()
            self.close_connection = True

        def finish(self) -> None:
            with contextlib.suppress(OSError, ValueError):
                super().finish()

        def handle(self) -> None:
            with contextlib.suppress(OSError, ValueError):
                super().handle()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    own = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield own, faults
    finally:
        server.shutdown()
        server.server_close()
