"""The server on a port, until a signal ends it."""

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
from qwen_jax.serve.calls import Limits
from qwen_jax.serve.worker import Worker
from qwen_jax.tokenizer.bpe import Tokenizer

try:
    import uvicorn
except ImportError as error:
    raise ConfigError(
        "uvicorn, which serves HTTP, is not installed.",
        "qwen_jax.serve",
        'pip install "qwen_jax[serve]".',
    ) from error


class _Server(uvicorn.Server):
    """Ends what the engine is doing before the connections are waited for."""

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
        if self.force_exit:  # what is cut off from here on is meant to be
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        for task in (closing, drain):
            task.cancel()
        await asyncio.gather(closing, drain, return_exceptions=True)
        if self.force_exit:  # uvicorn would still wait for clients that keep their connection
            await self.lifespan.shutdown()


def serve(
    engine: Engine,
    tokenizer: Tokenizer,
    sock: socket.socket,
    *,
    host: str,
    model_name: str,
    context: int,
    rows: int,
    max_queued: int,
    max_body_bytes: int,
    api_key: str | None,
    grace: float,
    log: Callable[[str], None],
) -> None:
    """Serves an engine on a bound socket until a signal.

    Args:
      host: as in address.bind.
      model_name: what clients call the model.
      context: tokens of a prompt and its answer.
      rows, max_queued: answers at once, and those that may wait.
      api_key: what callers have to bring; None: nothing.
      grace: seconds that answers have to end after the signal.
    """
    local = is_local(host)
    if not local:
        unguarded = "" if api_key else ", and no --api_key is asked for"
        absl_logging.warning("%s can be reached from other computers%s.", host, unguarded)
    worker = Worker(engine, rows=rows, max_queued=max_queued)
    config = ServerConfig(
        Limits(model=model_name, context=context, capacity=worker.capacity),
        api_key=api_key,
        local=local,
        max_body_bytes=max_body_bytes,
    )
    app = create_app(worker, tokenizer, config)
    run(app, worker, sock, grace=grace, ready=lambda: log(f"{model_name}: {url(host, sock)}"))


def run(app, worker: Worker, sock, *, grace: float = 10.0, ready=lambda: None) -> None:
    """Serves `app` until SIGTERM or SIGINT; answers in flight have `grace` seconds to end.

    A second SIGINT ends it at once.

    Args:
      sock: a bound socket.
      ready: called once requests are taken.
    """
    # One HTTP implementation whatever else is installed. uvicorn's own limit comes after ours.
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
    # uvicorn raises a signal again once it has ended; these make that harmless, so that the
    # process ends in order.
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
