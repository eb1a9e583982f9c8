"""The routes of the server: OpenAI's, /health and /metrics."""

import asyncio
import contextlib
import dataclasses
import hmac
from collections import Counter
from typing import Any

from qwen_jax.errors import ConfigError
from qwen_jax.inference.stream import token_bytes
from qwen_jax.serve import metrics
from qwen_jax.serve.address import LOCAL_NAMES, is_local
from qwen_jax.serve.answers import Answer, dumps
from qwen_jax.serve.calls import Call, Limits, read_chat, read_completion, read_json
from qwen_jax.serve.errors import ApiError
from qwen_jax.serve.worker import Ticket, Worker
from qwen_jax.tokenizer.bpe import Tokenizer

try:
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import Response
    from starlette.routing import Route
except ImportError as error:
    raise ConfigError(
        "starlette, which serves HTTP, is not installed.",
        "qwen_jax.serve",
        'pip install "qwen_jax[serve]".',
    ) from error


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """What the server allows."""

    limits: Limits
    api_key: str | None = None  # None: whoever reaches the port may ask
    local: bool = True  # only names of this computer: a web page cannot reach it by another name
    max_body_bytes: int = 4 * 2**20
    body_seconds: float = 30.0  # in which a body must have come


class Api:
    """The endpoints, in front of a worker."""

    def __init__(self, worker: Worker, tokenizer: Tokenizer, config: ServerConfig):
        self._worker, self._tokenizer, self._config = worker, tokenizer, config
        self._token_bytes = token_bytes(tokenizer)
        self.statuses: Counter[int] = Counter()  # responses by HTTP status

    async def chat(self, request: Request):
        return await self._complete(request, read_chat)

    async def completion(self, request: Request):
        return await self._complete(request, read_completion)

    async def models(self, request: Request) -> Response:
        return _json({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self._config.limits.model:
            raise ApiError(
                f"there is no model {name[:60]!r}.",
                "model",
                f"this server has {self._config.limits.model!r}.",
                status=404,
                code="model_not_found",
            )
        return _json(self._model())

    async def health(self, request: Request) -> Response:
        if (failure := self._worker.failure) is not None:
            return _json({"status": "failed", **failure.body()}, 503)
        return _json({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        return Response(
            metrics.render(self._worker, self.statuses), media_type="text/plain; version=0.0.4"
        )

    def admit(self, request: Request) -> None:
        """Raises ApiError for a request that may not ask at all."""
        host = request.headers.get("host", "")
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if self._config.local and not is_local(name):
            raise ApiError(
                f"the host {host[:60]!r} is not a name of this computer.",
                "host",
                f"use one of {', '.join(LOCAL_NAMES)}.",
                status=403,
                code="unknown_host",
            )
        if self._config.api_key is not None and request.url.path != "/health":
            given = request.headers.get("authorization", "")
            wanted = f"Bearer {self._config.api_key}"
            # Starlette reads headers as Latin-1; a key is what its bytes are.
            if not hmac.compare_digest(given.encode("latin-1"), wanted.encode("utf-8")):
                raise ApiError(
                    "the API key is missing or wrong.",
                    "authorization",
                    "send Authorization: Bearer KEY.",
                    status=401,
                    code="invalid_api_key",
                )

    def _model(self) -> dict:
        return {
            "id": self._config.limits.model,
            "object": "model",
            "created": 0,
            "owned_by": "qwen_jax",
            "max_model_len": self._config.limits.context,
        }

    async def _complete(self, request: Request, read):
        body = read_json(await self._body(request))
        # Off the event loop: a long prompt takes a while to become tokens.
        call = await asyncio.to_thread(read, body, self._tokenizer, self._config.limits)
        ticket = await self._worker.submit(call.requests)
        answer = Answer(call, self._config.limits.model, ticket.prompt_tokens, self._token_bytes)
        if call.stream:
            return EventStream(self._worker, ticket, answer, call)
        try:
            await unless_gone(request.receive, _collect(ticket, answer))
        finally:
            self._worker.cancel(ticket)  # nothing where all has ended
        return _json(answer.whole())

    async def _body(self, request: Request) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # a web page cannot send this one without asking us first
            raise ApiError(
                f"the content type is {kind[:60]!r}.",
                "content-type",
                "send application/json.",
                status=415,
                code="unsupported_media_type",
            )
        pieces, size = [], 0
        try:
            async with asyncio.timeout(self._config.body_seconds):
                async for piece in request.stream():
                    size += len(piece)
                    if size > self._config.max_body_bytes:
                        raise ApiError(
                            f"the body is longer than {self._config.max_body_bytes:,} bytes.",
                            fix="send less.",
                            status=413,
                            code="body_too_large",
                        )
                    pieces.append(piece)
        except TimeoutError:
            raise ApiError(
                f"the body did not come within {self._config.body_seconds} seconds.",
                fix="send it at once.",
                status=408,
                code="timeout",
            ) from None
        return b"".join(pieces)


async def _collect(ticket: Ticket, answer: Answer) -> None:
    async for choice, event in ticket:
        answer.add(choice, event)


class EventStream:
    """A response of server-sent events; the rows are free again as soon as nobody reads it."""

    def __init__(self, worker: Worker, ticket: Ticket, answer: Answer, call: Call):
        self._worker, self._ticket, self._answer, self._call = worker, ticket, answer, call

    async def __call__(self, scope, receive, send) -> None:
        try:
            with contextlib.suppress(ClientDisconnect):  # it is part of life, and the stream's end
                await unless_gone(receive, self._send(send))
        finally:
            self._worker.cancel(self._ticket)

    async def _send(self, send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [
                    (b"content-type", b"text/event-stream; charset=utf-8"),
                    (b"cache-control", b"no-cache"),
                    (b"x-accel-buffering", b"no"),
                ],
            }
        )  # the last: proxies pass each piece on at once
        async for piece in self._pieces():
            await send(
                {
                    "type": "http.response.body",
                    "body": b"data: " + piece + b"\n\n",
                    "more_body": True,
                }
            )
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pieces(self):
        for piece in self._answer.openings():
            yield dumps(piece)
        try:
            async for choice, event in self._ticket:
                if (piece := self._answer.add(choice, event)) is not None:
                    yield dumps(piece)
        except ApiError as error:  # too late for a status; clients read it from the stream
            yield dumps(error.body())
            return
        if self._call.include_usage:
            yield dumps(self._answer.usage_piece())
        yield b"[DONE]"


async def unless_gone(receive, work) -> None:
    """Awaits `work`, and cancels it when the client goes away before.

    Raises:
      ClientDisconnect: the client has gone.
    """

    async def gone():
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect()
        await tasks[0]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def create_app(worker: Worker, tokenizer: Tokenizer, config: ServerConfig):
    """The ASGI application; it starts the worker's thread with itself, and stops it.

    Raises:
      ConfigError: starlette is not installed.
    """
    api = Api(worker, tokenizer, config)

    @contextlib.asynccontextmanager
    async def lifespan(app):
        worker.start()
        yield
        worker.stop()

    handlers: dict[Any, Any] = {
        ApiError: _refuse,
        HTTPException: _no_route,
        ClientDisconnect: _ended,
    }
    app = Starlette(
        lifespan=lifespan,
        routes=[
            Route("/v1/chat/completions", api.chat, methods=["POST"]),
            Route("/v1/completions", api.completion, methods=["POST"]),
            Route("/v1/models", api.models),
            Route("/v1/models/{name:path}", api.model),
            Route("/health", api.health),
            Route("/metrics", api.metrics),
        ],
        exception_handlers=handlers,
    )
    app.add_middleware(_Gate, api=api)
    return app


class _Gate:
    """Before every route: who may ask; after it: counts."""

    def __init__(self, app, api: Api):
        self._app, self._api = app, api

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def count(message):
            if message["type"] == "http.response.start":
                self._api.statuses[message["status"]] += 1
            await send(message)

        try:
            self._api.admit(Request(scope))
        except ApiError as error:
            await _refuse(None, error)(scope, receive, count)
            return
        await self._app(scope, receive, count)


def _refuse(request, error: ApiError) -> Response:
    return _json(error.body(), error.status, error.headers())


def _no_route(request, error: HTTPException) -> Response:
    return _refuse(
        request,
        ApiError(
            f"{request.method} {request.url.path[:60]} is not served here.",
            "",
            "see /v1/models, /v1/chat/completions and /v1/completions.",
            status=error.status_code,
            code="not_found" if error.status_code == 404 else "method_not_allowed",
        ),
    )


def _ended(request, error: ClientDisconnect) -> Response:
    return Response(status_code=499)  # nobody reads it; it is counted


def _json(content, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(dumps(content), status, headers, "application/json")
