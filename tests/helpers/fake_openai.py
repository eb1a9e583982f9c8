"""A small server with OpenAI's API on loopback, which the test makes slow, busy or dead."""

import contextlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

# A request's path and body -> (status, body of the response); None closes the connection.
Answer = Callable[[str, dict[str, Any]], tuple[int, Any] | None]


class FakeServer:
    """A running server: `.url`, `.requests` (path, headers, body) in order."""

    def __init__(self, url: str):
        self.url = url
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []


@contextlib.contextmanager
def serving(
    answer: Answer, *, models: tuple[str, ...] = ("fake",), headers: dict[str, str] | None = None
) -> Iterator[FakeServer]:
    """Serves `answer` within the block.

    Args:
      models: what /v1/models lists.
      headers: of each response.
    """
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply(200, {"data": [{"id": name} for name in models]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                fake.requests.append((self.path, dict(self.headers), body))
                found = answer(self.path, body)
            if found is None:
                self.close_connection = True
                return
            self.reply(*found)

        def reply(self, status: int, body: Any) -> None:
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake = FakeServer(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
