"""The server's routes: OpenAI's API, the tokenizer's, /health and /metrics."""

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
from qwen_jax.serve.api.protocol import ApiRequest, Limits, read_chat, read_completion, read_json
from qwen_jax.serve.api.responses import CompletionResponse, dumps
from qwen_jax.serve.api.scored import ScoredResponse, needs_engine
from qwen_jax.serve.api.tokenizing import detokenize, tokenize, tokenizer_info
from qwen_jax.serve.connections import EVENT_STREAM, Connections
from qwen_jax.serve.errors import ApiError
from qwen_jax.serve.lane import Lane
from qwen_jax.serve.limits import client_of
from qwen_jax.serve.responses.output import ResponsesResponse
from qwen_jax.serve.responses.request import read_responses
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
        "starlette, the web framework, is not installed.",
        "qwen_jax.serve",
        'pip install "qwen_jax[serve]".',
    ) from error

LONG_BODY = 32 * 1024  # bytes; shorter ones are parsed within a few milliseconds


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """The server's settings."""

    limits: Limits
    api_key: str | None = None  # None: no key is required
    local: bool = True  # accept only local host names, which prevents DNS rebinding by web pages
    max_body_bytes: int = 4 * 2**20
    max_header_bytes: int = 16 * 2**10
    body_seconds: float = 30.0  # the time limit for receiving a body
    max_unread_tokens: int = 8192  # tokens of a stream that may wait for the client


class Api:
    """The HTTP endpoints, which submit requests to a worker."""

    def __init__(
        self,
        worker: Worker,
        tokenizer: Tokenizer,
        config: ServerConfig,
        connections: Connections | None,
    ):
        self._worker, self._tokenizer, self._config = worker, tokenizer, config
        self._connections, self._long = connections, Lane()
        self._token_bytes = token_bytes(tokenizer)
        self.statuses: Counter[int] = Counter()  # responses by HTTP status

    async def chat(self, request: Request):
        return await self._complete(request, read_chat, CompletionResponse)

    async def responses(self, request: Request):
        return await self._complete(request, read_responses, ResponsesResponse)

    async def completion(self, request: Request):
        return await self._complete(request, read_completion, CompletionResponse)

    async def _convert(self, request: Request, function, *arguments) -> Response:
        client = client_of(request.client.host if request.client else None)
        body = await self._body(request)

        def convert(body: dict[str, Any], tokenizer: Tokenizer, limits: Limits):
            return function(body, tokenizer, limits, *arguments)

        parsed = self._parse(body, convert, client)
        return _json(await cancel_on_disconnect(request.receive, parsed))

    async def tokenize(self, request: Request) -> Response:
        return await self._convert(request, tokenize, self._token_bytes)

    async def detokenize(self, request: Request) -> Response:
        return await self._convert(request, detokenize)

    async def tokenizer_info(self, request: Request) -> Response:
        return _json(tokenizer_info(self._tokenizer, self._config.limits.context))

    async def models(self, request: Request) -> Response:
        return _json({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self._config.limits.model:
            raise ApiError(
                f"model {name[:60]!r} does not exist.",
                "model",
                f"use {self._config.limits.model!r}, the model of this server.",
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
            metrics.render(self._worker, self.statuses, self._connections),
            media_type="text/plain; version=0.0.4",
        )

    def admit(self, request: Request) -> None:
        """Raises ApiError if a request has too large or wrong headers, or lacks the API key."""
        size = sum(len(name) + len(value) + 4 for name, value in request.headers.raw)
        if size > self._config.max_header_bytes:  # uvicorn limits only those that are incomplete
            raise ApiError(
                f"the headers have {size:,} bytes, more than {self._config.max_header_bytes:,}.",
                fix="send shorter headers.",
                status=431,
                code="headers_too_large",
            )
        host = request.headers.get("host", "")
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if self._config.local and not is_local(name):
            raise ApiError(
                f"the Host header {host[:60]!r} is not a local name.",
                "host",
                f"use one of {', '.join(LOCAL_NAMES)}.",
                status=403,
                code="unknown_host",
            )
        if self._config.api_key is not None and request.url.path != "/health":
            given = request.headers.get("authorization", "")
            wanted = f"Bearer {self._config.api_key}"
            # Starlette decodes headers as Latin-1; keys are compared as bytes.
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

    async def _complete(self, request: Request, read, make_response):
        client = client_of(request.client.host if request.client else None)
        body = await self._body(request)
        parsed = await cancel_on_disconnect(request.receive, self._parse(body, read, client))
        if parsed.scoring is not None:
            scored = self._scored(parsed, client)
            return _json(await cancel_on_disconnect(request.receive, scored))
        ticket = await self._worker.submit(
            parsed.engine_requests,
            client=client,
            max_events=self._config.max_unread_tokens if parsed.stream else None,
        )
        response = make_response(
            parsed, self._config.limits.model, ticket.prompt_tokens, self._token_bytes
        )
        if parsed.stream:
            return EventStream(self._worker, ticket, response)
        try:
            await cancel_on_disconnect(request.receive, _collect(ticket, response))
        finally:
            self._worker.cancel(ticket)  # no effect if all choices have finished
        return _json(response.complete())

    async def _scored(self, parsed: ApiRequest, client: str) -> dict[str, Any]:
        """Returns the response to a request that is scored after its completion."""
        generate, scored = needs_engine(parsed), parsed.logprobs
        response = ScoredResponse(
            parsed, self._config.limits.model, self._token_bytes, self._tokenizer
        )
        if not (generate or scored):
            return response.complete_scored([])
        ticket = await self._worker.submit(
            parsed.engine_requests, client=client, scored=scored, generate=generate
        )
        try:
            if generate:
                await _collect(ticket, response)
            rows = response.rows()
            return response.complete_scored(
                await self._worker.score(ticket, rows) if scored else []
            )
        finally:
            self._worker.cancel(ticket)  # no effect if all choices have finished

    async def _parse(self, body: bytes, read, client: str) -> Any:
        """Parses a body in a thread, because encoding a long prompt takes a while."""

        def parse() -> Any:
            return read(read_json(body), self._tokenizer, self._config.limits)

        if len(body) > LONG_BODY:
            return await self._long.run(client, parse)
        return await asyncio.to_thread(parse)

    async def _body(self, request: Request) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # a web page cannot send it without a preflight request
            raise ApiError(
                f"the content type {kind[:60]!r} is not supported.",
                "content-type",
                "send application/json.",
                status=415,
                code="unsupported_media_type",
            )
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > self._config.max_body_bytes:
            raise self._too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(self._config.body_seconds):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > self._config.max_body_bytes:
                        raise self._too_large()
        except TimeoutError:
            raise ApiError(
                f"the body did not arrive within {self._config.body_seconds} seconds.",
                fix="send the full body without pauses.",
                status=408,
                code="timeout",
            ) from None
        return bytes(body)

    def _too_large(self) -> ApiError:
        return ApiError(
            f"the body is longer than {self._config.max_body_bytes:,} bytes.",
            fix="send a shorter body.",
            status=413,
            code="body_too_large",
        )


async def _collect(ticket: Ticket, response: CompletionResponse | ResponsesResponse) -> None:
    async for events in ticket:
        response.add(events)


class EventStream:
    """A response of server-sent events; its decode slots are freed when the client disconnects."""

    def __init__(
        self, worker: Worker, ticket: Ticket, response: CompletionResponse | ResponsesResponse
    ):
        self._worker, self._ticket, self._response = worker, ticket, response

    async def __call__(self, scope, receive, send) -> None:
        scope.setdefault("state", {})[EVENT_STREAM] = True
        try:
            with contextlib.suppress(ClientDisconnect):  # expected: ends the stream
                await cancel_on_disconnect(receive, self._send(send))
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
                    (b"x-accel-buffering", b"no"),  # proxies forward each chunk immediately
                ],
            }
        )
        async for chunk in self._chunks():
            await send(
                {
                    "type": "http.response.body",
                    "body": chunk,
                    "more_body": True,
                }
            )
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _chunks(self):
        for chunk in self._response.first_chunks():
            yield _server_sent(chunk)
        try:
            async for events in self._ticket:
                for chunk in self._response.chunks(events):
                    yield _server_sent(chunk)
        except ApiError as error:  # the status is already sent, so the stream carries the error
            yield _server_sent(self._response.error_chunk(error))
            return
        for chunk in self._response.usage_chunks():
            yield _server_sent(chunk)
        if isinstance(self._response, CompletionResponse):
            yield b"data: [DONE]\n\n"


def _server_sent(chunk: dict[str, Any]) -> bytes:
    """Returns a server-sent event; those of /v1/responses have a type."""
    kind = f"event: {chunk['type']}\n".encode() if "type" in chunk else b""
    return kind + b"data: " + dumps(chunk) + b"\n\n"


async def cancel_on_disconnect(receive, work) -> Any:
    """Returns what `work` returns, and cancels it if the client disconnects first.

    Raises:
      ClientDisconnect: the client disconnected.
    """

    async def disconnected():
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.ensure_future(work), asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect()
        return await tasks[0]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def create_app(
    worker: Worker,
    tokenizer: Tokenizer,
    config: ServerConfig,
    connections: Connections | None = None,
):
    """Returns the ASGI application, whose lifespan starts and stops the worker's thread.

    Args:
      connections: what /metrics reports about connections; None: nothing.

    Raises:
      ConfigError: starlette is not installed.
    """
    api = Api(worker, tokenizer, config, connections)

    @contextlib.asynccontextmanager
    async def lifespan(app):
        worker.start()
        yield
        worker.stop()

    handlers: dict[Any, Any] = {
        ApiError: _error_response,
        HTTPException: _no_route,
        ClientDisconnect: _disconnected,
    }
    app = Starlette(
        lifespan=lifespan,
        routes=[
            Route("/v1/chat/completions", api.chat, methods=["POST"]),
            Route("/v1/responses", api.responses, methods=["POST"]),
            Route("/v1/completions", api.completion, methods=["POST"]),
            Route("/tokenize", api.tokenize, methods=["POST"]),
            Route("/detokenize", api.detokenize, methods=["POST"]),
            Route("/tokenizer_info", api.tokenizer_info),
            Route("/v1/models", api.models),
            Route("/v1/models/{name:path}", api.model),
            Route("/health", api.health),
            Route("/metrics", api.metrics),
        ],
        exception_handlers=handlers,
    )
    app.add_middleware(_AccessMiddleware, api=api)
    return app


class _AccessMiddleware:
    """Checks access before every route, and counts response statuses."""

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
            await _error_response(None, error)(scope, receive, count)
            return
        await self._app(scope, receive, count)


def _error_response(request, error: ApiError) -> Response:
    return _json(error.body(), error.status, error.headers())


def _no_route(request, error: HTTPException) -> Response:
    return _error_response(
        request,
        ApiError(
            f"{request.method} {request.url.path[:60]} is not a route of this server.",
            "",
            "use /v1/models, /v1/chat/completions, /v1/responses and /v1/completions.",
            status=error.status_code,
            code="not_found" if error.status_code == 404 else "method_not_allowed",
        ),
    )


def _disconnected(request, error: ClientDisconnect) -> Response:
    return Response(status_code=499)  # only counted in /metrics; the client is gone


def _json(content, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(dumps(content), status, headers, "application/json")
