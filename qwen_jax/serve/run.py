"""Runs the server on a port until a signal stops it."""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable

from absl import logging as absl_logging

from qwen_jax.errors import ConfigError
from qwen_jax.inference.engine import Engine
from qwen_jax.serve.address import is_local, url
from qwen_jax.serve.app import ServerConfig, create_app
from qwen_jax.serve.protocol import Limits
from qwen_jax.serve.worker import Worker
from qwen_jax.tokenizer.bpe import Tokenizer

try:
    import uvicorn
except ImportError as error:
    raise ConfigError(
        "uvicorn, the HTTP server, is not installed.",
        "qwen_jax.serve",
        'pip install "qwen_jax[serve]".',
    ) from error


class _Server(uvicorn.Server):
    """A uvicorn server that drains the engine before waiting for connections to close."""

    def __init__(self, config: uvicorn.Config, worker: Worker, grace: float, ready):
        super().__init__(config)
        self._worker, self._grace, self._ready = worker, grace, ready

    async def startup(self, sockets=None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._ready()

    async def shutdown(self, sockets=None) -> None:
        drain = asyncio.ensure_future(
            self._worker.drain(self._grace, hurry=lambda: self.force_exit)
        )
        closing = asyncio.ensure_future(super().shutdown(sockets=sockets))
        while not (closing.done() or self.force_exit and drain.done()):
            await asyncio.wait({closing}, timeout=0.1)
        await asyncio.wait({closing}, timeout=0.5)
        if self.force_exit:  # errors of connections closed from here on are expected
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        for task in (closing, drain):
            task.cancel()
        await asyncio.gather(closing, drain, return_exceptions=True)
        if self.force_exit:  # uvicorn would still wait for open connections
            await self.lifespan.shutdown()


def serve(
    engine: Engine,
    tokenizer: Tokenizer,
    sock: socket.socket,
    *,
    host: str,
    model_name: str,
    context: int,
    max_num_seqs: int,
    max_queued: int,
    max_body_bytes: int,
    api_key: str | None,
    grace: float,
    log: Callable[[str], None],
) -> None:
    """Serves an engine on a bound socket until a signal.

    Args:
      host: as in address.bind.
      model_name: the model's name for clients.
      context: maximum tokens of a prompt and its completion together.
      max_num_seqs, max_queued: maximum numbers of running and of waiting completions.
      max_body_bytes: maximum size of a request body.
      api_key: the key that clients must send; None: no key.
      grace: seconds that running completions have to finish after the signal.
      log: receives a line with the URL when the server is ready.
    """
    local = is_local(host)
    if not local:
        unguarded = "" if api_key else ", without an --api_key"
        absl_logging.warning("%s is reachable from other computers%s.", host, unguarded)
    worker = Worker(engine, max_num_seqs=max_num_seqs, max_queued=max_queued)
    config = ServerConfig(
        Limits(model=model_name, context=context, capacity=worker.capacity),
        api_key=api_key,
        local=local,
        max_body_bytes=max_body_bytes,
    )
    app = create_app(worker, tokenizer, config)
    run(app, worker, sock, grace=grace, ready=lambda: log(f"{model_name}: {url(host, sock)}"))


def run(app, worker: Worker, sock, *, grace: float = 10.0, ready=lambda: None) -> None:
    """Serves `app` until SIGTERM or SIGINT; completions in flight have `grace` seconds to finish.

    A second SIGINT exits immediately.

    Args:
      sock: a bound socket.
      ready: called when the server accepts requests.
    """
    # Use the same HTTP implementation whatever is installed. uvicorn's timeout must exceed ours.
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=int(grace) + 5,
    )
    # uvicorn raises the signal again after it stops. These handlers ignore it, so the process exits
    # normally.
    old = {
        number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)
    }
    server = _Server(config, worker, grace, ready)
    try:
        server.run(sockets=[sock])
    finally:
        worker.close(timeout=0.5 if server.force_exit else 60)
        for number, handler in old.items():
            signal.signal(number, handler)
