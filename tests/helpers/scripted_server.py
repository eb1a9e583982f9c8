"""An OpenAI-compatible server whose responses are a function of the messages."""

import contextlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator


class Scripted:
    """A running server.

    Attributes:
      url: address for clients.
      requests: bodies of the requests, in order.
      fail_after: number of requests after which each gets status 503; None: never.
    """

    def __init__(self, url: str):
        self.url, self.requests = url, []
        self.fail_after: int | None = None


@contextlib.contextmanager
def scripted(respond: Callable[[list[dict]], str], models=("scripted",)) -> Iterator[Scripted]:
    """Serves /v1/models and /v1/chat/completions within the block.

    respond: messages -> the text of the response.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send(200, {"data": [{"id": name} for name in models]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                running.requests.append(body)
                limit = running.fail_after
                failed = limit is not None and len(running.requests) > limit
            if failed:
                self.send(503, {"error": "overloaded"})
                return
            message = {"role": "assistant", "content": respond(body["messages"])}
            self.send(200, {"choices": [{"message": message, "finish_reason": "stop"}]})

        def send(self, status: int, content: dict):
            raw = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_):
            pass

    lock = threading.Lock()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running = Scripted(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield running
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
