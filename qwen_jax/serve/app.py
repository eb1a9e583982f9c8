"""The server's routes: OpenAI's API, the tokenizer's, /health and /metrics."""

import asyncio
import contextlib
import dataclasses
import hmac
from collections import Counter
from collections.abc import Collection
from typing import Any

from qwen_jax.errors import ConfigError
from qwen_jax.serve import metrics
from qwen_jax.serve.address import LOCAL_NAMES, is_local
from qwen_jax.serve.api.protocol import ApiRequest, read_chat, read_completion, read_json
from qwen_jax.serve.api.responses import CompletionResponse, dumps
from qwen_jax.serve.api.scored import ScoredResponse, needs_engine
from qwen_jax.serve.api.tokenizing import detokenize, tokenize, tokenizer_info
from qwen_jax.serve.connections import Connections
from qwen_jax.serve.errors import ApiError
from qwen_jax.serve.lane import Lane
from qwen_jax.serve.limits import client_of
from qwen_jax.serve.models import Models, Served
from qwen_jax.serve.page.routes import Page
from qwen_jax.serve.responses.output import ResponsesResponse
from qwen_jax.serve.responses.request import read_responses
from qwen_jax.serve.worker import Ticket, Worker

try:
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import Response
    from starlette.routing import Route

    from qwen_jax.serve.event_stream import EventStream, cancel_on_disconnect
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

    api_key: str | None = None  # None: no key is required
    local: bool = True  # accept only local host names, which prevents DNS rebinding by web pages
    max_body_bytes: int = 4 * 2**20
    max_header_bytes: int = 16 * 2**10
    body_seconds: float = 30.0  # the time limit for receiving a body
    max_unread_tokens: int = 8192  # tokens of a stream that may wait for the client


class Api:
    """The HTTP endpoints, which submit requests to the worker of a model."""

    def __init__(
        self,
        models: Models,
        config: ServerConfig,
        connections: Connections | None,
        open_paths: Collection[str] = (),
    ):
        self._models, self._config = models, config
        self._connections, self._long = connections, Lane()
        self._open_paths = {"/health", *open_paths}  # no key is required
        self.statuses: Counter[int] = Counter()  # responses by HTTP status

    async def chat(self, request: Request):
        return await self._complete(request, read_chat, CompletionResponse)

    async def responses(self, request: Request):
        return await self._complete(request, read_responses, ResponsesResponse)

    async def completion(self, request: Request):
        return await self._complete(request, read_completion, CompletionResponse)

    async def _convert(self, request: Request, convert) -> Response:
        client = client_of(request.client.host if request.client else None)
        body = await self._body(request)
        _, found = await cancel_on_disconnect(request.receive, self._parse(body, convert, client))
        return _json(found)

    async def tokenize(self, request: Request) -> Response:
        return await self._convert(
            request,
            lambda body, one: tokenize(body, one.tokenizer, one.limits, one.token_bytes),
        )

    async def detokenize(self, request: Request) -> Response:
        return await self._convert(
            request, lambda body, one: detokenize(body, one.tokenizer, one.limits)
        )

    async def tokenizer_info(self, request: Request) -> Response:
        served = await self._models.get(request.query_params.get("model"))
        return _json(tokenizer_info(served.tokenizer, served.limits.context))

    async def models(self, request: Request) -> Response:
        names = await asyncio.to_thread(self._models.names)
        return _json({"object": "list", "data": [self._model(name) for name in names]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in await asyncio.to_thread(self._models.names):
            raise self._models.unknown(name)
        return _json(self._model(name))

    async def health(self, request: Request) -> Response:
        if (failure := self._models.failure) is not None:
            return _json({"status": "failed", **failure.body()}, 503)
        return _json({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        return Response(
            metrics.render(self._workers(), self.statuses, self._connections),
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
        if self._config.api_key is not None and request.url.path not in self._open_paths:
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

    def _model(self, name: str) -> dict:
        served = self._models.loaded.get(name)
        length = {} if served is None else {"max_model_len": served.limits.context}
        return {"id": name, "object": "model", "created": 0, "owned_by": "qwen_jax", **length}

    def _workers(self) -> list[Worker]:
        return [served.worker for served in self._models.loaded.values()]

    async def _complete(self, request: Request, read, make_response):
        client = client_of(request.client.host if request.client else None)
        body = await self._body(request)
        served, parsed = await cancel_on_disconnect(
            request.receive,
            self._parse(body, lambda body, one: read(body, one.tokenizer, one.limits), client),
        )
        if parsed.scoring is not None:
            scored = self._scored(served, parsed, client)
            return _json(await cancel_on_disconnect(request.receive, scored))
        ticket = await served.worker.submit(
            parsed.engine_requests,
            client=client,
            max_events=self._config.max_unread_tokens if parsed.stream else None,
        )
        response = make_response(
            parsed, served.limits.model, ticket.prompt_tokens, served.token_bytes
        )
        if parsed.stream:
            return EventStream(served.worker, ticket, response)
        try:
            await cancel_on_disconnect(request.receive, _collect(ticket, response))
        finally:
            served.worker.cancel(ticket)  # no effect if all choices have finished
        return _json(response.complete())

    async def _scored(self, served: Served, parsed: ApiRequest, client: str) -> dict[str, Any]:
        """Returns the response to a request that is scored after its completion."""
        generate, scored = needs_engine(parsed), parsed.logprobs
        response = ScoredResponse(parsed, served.limits.model, served.token_bytes, served.tokenizer)
        if not (generate or scored):
            return response.complete_scored([])
        ticket = await served.worker.submit(
            parsed.engine_requests, client=client, scored=scored, generate=generate
        )
        try:
            if generate:
                await _collect(ticket, response)
            rows = response.rows()
            return response.complete_scored(
                await served.worker.score(ticket, rows) if scored else []
            )
        finally:
            served.worker.cancel(ticket)  # no effect if all choices have finished

    async def _parse(self, body: bytes, read, client: str) -> tuple[Served, Any]:
        """Returns the model that a body names, and the parsed body.

        Bodies are parsed in a thread, because encoding a long prompt takes a while.
        """

        def parse(served: Served | None) -> tuple[Served | None, Any]:
            fields = read_json(body)
            served = served or self._models.ready(fields.get("model"))
            return served, read(fields, served) if served else fields.get("model")

        async def run(served: Served | None = None) -> tuple[Served | None, Any]:
            if len(body) > LONG_BODY:
                return await self._long.run(client, lambda: parse(served))
            return await asyncio.to_thread(parse, served)

        served, found = await run()
        if served is None:  # it is loaded first
            served, found = await run(await self._models.get(found))
        assert served is not None
        return served, found

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


def create_app(
    models: Models,
    config: ServerConfig,
    connections: Connections | None = None,
    page: Page | None = None,
):
    """Returns the ASGI application, whose lifespan starts and stops the threads of the models.

    Args:
      connections: what /metrics reports about connections; None: nothing.
      page: the web page at /; None: only the API.

    Raises:
      ConfigError: starlette is not installed.
    """
    api = Api(models, config, connections, page.open_paths if page else ())

    @contextlib.asynccontextmanager
    async def lifespan(app):
        models.start()
        yield
        models.stop()
        if page is not None:
            page.close()

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
            *(page.routes() if page else ()),
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
