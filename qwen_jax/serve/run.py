"""Runs the server on a port until a signal stops it."""

import asyncio
import functools
import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable

from absl import logging as absl_logging

from qwen_jax.errors import ConfigError
from qwen_jax.serve.address import is_local, url
from qwen_jax.serve.app import ServerConfig, create_app
from qwen_jax.serve.connections import BACKLOG, Connection, Connections, accepted_at_once
from qwen_jax.serve.limits import ClientLimits
from qwen_jax.serve.log_rate import LogRate
from qwen_jax.serve.models import Models
from qwen_jax.serve.page.routes import Page

try:
    import uvicorn
except ImportError as error:
    raise ConfigError(
        "uvicorn, the HTTP server, is not installed.",
        "qwen_jax.serve",
        'pip install "qwen_jax[serve]".',
    ) from error

# The engine's thread gives up the GIL in every call of JAX, and waits this long to get it back from
# a busy event loop. Python's 5 ms would add up to a multiple of a small step.
SWITCH_SECONDS = 0.0005


class _Server(uvicorn.Server):
    """A uvicorn server that drains the engines before waiting for connections to close."""

    def __init__(self, config: uvicorn.Config, models: Models, grace: float, ready):
        super().__init__(config)
        self._models, self._grace, self._ready = models, grace, ready

    async def startup(self, sockets=None) -> None:
        await super().startup(sockets=sockets)
        for sock in sockets or ():
            sock.listen(BACKLOG)  # asyncio has one number for this and for accepted_at_once
        if self.started:
            self._ready()

    async def shutdown(self, sockets=None) -> None:
        drain = asyncio.ensure_future(
            self._models.drain(self._grace, hurry=lambda: self.force_exit)
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
    models: Models,
    config: ServerConfig,
    sock: socket.socket,
    *,
    host: str,
    limits: ClientLimits,
    grace: float,
    page: Page | None,
    log: Callable[[str], None],
) -> None:
    """Serves models on a bound socket until a signal.

    Args:
      host: as in address.bind.
      limits: resolved limits on clients.
      grace: seconds that running completions have to finish after the signal.
      page: the web page at /; None: only the API.
      log: receives a line with the API's URL, and one with the page's, when the server is ready.
    """
    if not is_local(host):
        unguarded = "" if config.api_key else ", without an --api_key"
        absl_logging.warning("%s is reachable from other computers%s.", host, unguarded)
    connections = Connections(limits)

    def ready() -> None:
        base = url(host, sock)
        log(f"{', '.join(models.loaded) or 'models are loaded when requested'}: {base}")
        if page is not None:
            log(f"open {base.removesuffix('v1')} in a browser")

    app = create_app(models, config, connections, page)
    run(app, models, sock, connections, grace=grace, ready=ready)


def run(
    app, models: Models, sock, connections: Connections, *, grace: float = 10.0, ready=lambda: None
) -> None:
    """Serves `app` until SIGTERM or SIGINT; completions in flight have `grace` seconds to finish.

    A second SIGINT exits immediately.

    Args:
      sock: a bound socket.
      ready: called when the server accepts requests.

    Raises:
      ConfigError: another program listens on the port.
    """
    try:
        sock.listen(BACKLOG)
    except OSError as error:  # two can bind a port while neither listens, so here and not there
        models.close(timeout=0.5)
        raise ConfigError(
            f"cannot listen on port {sock.getsockname()[1]}: {error}.",
            "--port",
            "stop the other program, or choose another port; 0 selects any free port.",
        ) from error
    # uvicorn's timeout must exceed ours.
    config = http_config(app, connections, log_level="warning", timeout_graceful=int(grace) + 5)
    rate = LogRate(connections.limits.log_seconds)
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "asyncio")]
    for logger in loggers:
        logger.addFilter(rate)
    # uvicorn raises the signal again after it stops. These handlers ignore it, so the process exits
    # normally.
    old = {
        number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)
    }
    server = _Server(config, models, grace, ready)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    # A full collection walks all objects of JAX and stops every request for a quarter of a second.
    gc.collect()
    gc.freeze()
    try:
        server.run(sockets=[sock])
    finally:
        gc.unfreeze()
        sys.setswitchinterval(interval)
        models.close(timeout=0.5 if server.force_exit else 60)
        for number, handler in old.items():
            signal.signal(number, handler)
        for logger in loggers:
            logger.removeFilter(rate)


def http_config(
    app, connections: Connections, *, timeout_graceful: int, **logging_settings
) -> uvicorn.Config:
    """Returns uvicorn's settings, which are the same whatever else is installed."""
    limits = connections.limits
    assert limits.max_connections is not None
    return uvicorn.Config(
        app,
        http=functools.partial(Connection, connections),  # type: ignore[arg-type]
        ws="none",
        loop="asyncio",
        lifespan="on",
        access_log=False,
        proxy_headers=False,  # a client could claim to be any number of clients
        backlog=accepted_at_once(limits.max_connections),
        h11_max_incomplete_event_size=limits.max_header_kb * 1024,
        timeout_keep_alive=limits.idle_seconds,
        timeout_graceful_shutdown=timeout_graceful,
        **logging_settings,
    )
