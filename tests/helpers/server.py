"""A test server on a free local port, and clients for it."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
from typing import TYPE_CHECKING

import uvicorn

from qwen_jax.serve.api.protocol import Limits
from qwen_jax.serve.app import ServerConfig, create_app
from qwen_jax.serve.connections import BACKLOG, Connections
from qwen_jax.serve.limits import DEFAULT_CONNECTIONS, ClientLimits
from qwen_jax.serve.models import Models, Served
from qwen_jax.serve.run import http_config
from qwen_jax.serve.worker import Worker
from qwen_jax.tokenizer.bpe import Tokenizer

if TYPE_CHECKING:
    import openai

MODEL = "tiny"


def byte_tokenizer() -> Tokenizer:
    """Returns a tokenizer with a token per byte; 464 ids with the special tokens."""
    return Tokenizer({bytes([byte]): byte for byte in range(256)})


class Running:
    """A served engine: `.port`, `.worker`, `.connections`, `.client()`, `.call()`."""

    def __init__(self, port: int, worker: Worker, connections: Connections):
        self.port, self.worker, self.connections = port, worker, connections

    def client(self, **settings) -> "openai.OpenAI":
        import openai

        settings = {"api_key": "none", "max_retries": 0, "timeout": 60} | settings
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", **settings)

    def async_client(self) -> "openai.AsyncOpenAI":
        import openai

        return openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0, timeout=60
        )

    def call(self, method: str, path: str, body=None, headers=None, client="127.0.0.1"):
        """Returns (status, headers, body); a body that is not bytes is sent as JSON.

        client: the local address to call from, 127.x.y.z.
        """
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=30, source_address=(client, 0)
        )
        try:
            connection.request(
                method,
                path,
                raw,
                {"Content-Type": "application/json"} if headers is None else headers,
            )
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read().decode()
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        lines = self.call("GET", "/metrics")[2].splitlines()
        return float(next(line.split()[-1] for line in lines if line.startswith(name + " ")))

    def wait_until(self, condition, seconds: float = 10) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, "the condition did not become true in time"
            time.sleep(0.01)


@contextlib.contextmanager
def running(
    engine,
    tokenizer,
    *,
    max_num_seqs=4,
    max_queued=64,
    context=256,
    limits=None,
    send_buffer=None,
    models=None,
    page=None,
    port=0,
    **config,
):
    """Serves `engine` in a thread within the block.

    Args:
      limits: ClientLimits; by default a client may use all of the queue.
      send_buffer: bytes of the kernel's buffer for a connection's responses; None: its default.
      models: what is served instead of the engine.
      page: makes the web page of these models; None: there is none.
    """
    capacity = max_num_seqs + max_queued
    limits = (limits or ClientLimits(max_client_choices=capacity)).resolved(
        max_num_seqs=max_num_seqs, capacity=capacity, max_open_files=DEFAULT_CONNECTIONS
    )
    worker = Worker(
        engine,
        max_num_seqs=max_num_seqs,
        max_queued=max_queued,
        max_client_choices=limits.max_client_choices,
    )
    api_limits = Limits(model=MODEL, context=context, max_choices=limits.max_choices)
    config = {"max_unread_tokens": limits.max_unread_tokens} | config
    connections = Connections(limits)
    models = models or Models([Served(worker, tokenizer, api_limits)])
    app = create_app(models, ServerConfig(**config), connections, page and page(models))
    sock = socket.socket()
    if send_buffer is not None:  # accepted sockets inherit it
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    server = uvicorn.Server(
        http_config(app, connections, log_config=None, log_level="error", timeout_graceful=1)
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[sock])))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        sock.listen(BACKLOG)
        yield Running(sock.getsockname()[1], worker, connections)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server hangs"
        assert models.close(30), "the engine's thread hangs"
