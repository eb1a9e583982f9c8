"""The routes of the web page: its files, what the server offers, votes and calls of tools."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qwen_jax.serve.api.protocol import read_json, tool_dialect
from qwen_jax.serve.errors import ApiError
from qwen_jax.serve.models import Models, Served
from qwen_jax.serve.page.assets import FILES, HEADERS, assets
from qwen_jax.serve.page.tools import Toolboxes
from qwen_jax.serve.page.votes import Votes
from qwen_jax.tokenizer.template.tokens import reads, source_of

if TYPE_CHECKING:
    from starlette.requests import Request

MAX_BODY = 4 << 20  # bytes of a vote or of a call
Handler = Callable[[dict[str, Any]], Any]  # from the parameters of a URL, or a body, to JSON


class Page:
    """The web page of a server.

    Args:
      models: what the page talks to.
      votes: where votes of comparisons are kept; None: nowhere.
      tools: what the models may call; None: nothing.
      more: further routes, such as those of the runs: path -> a function from the URL's parameters
        to JSON, which runs in a thread.
      key: whether the API needs a key.
    """

    def __init__(
        self,
        models: Models,
        *,
        votes: Votes | None = None,
        tools: Toolboxes | None = None,
        more: Mapping[str, Handler] | None = None,
        key: bool = False,
    ):
        self._models, self._votes, self._tools = models, votes, tools
        self._more, self._key = more or {}, key

    @property
    def open_paths(self) -> Collection[str]:
        """Paths that need no key: the page itself asks for it."""
        return FILES.keys()

    def close(self) -> None:
        """Ends the sessions of tools."""
        if self._tools is not None:
            self._tools.close()

    def routes(self) -> Sequence[Any]:
        """Returns the routes of Starlette."""
        from starlette.routing import Route

        return [
            *(Route(path, self._asset) for path in FILES),
            Route("/page/settings", self._read(lambda _: self._settings())),
            Route("/page/model", self._model),
            Route("/page/votes", self._write(self._vote), methods=["POST"]),
            Route("/page/tools", self._write(self._call), methods=["POST"]),
            *(Route(path, self._read(handler)) for path, handler in self._more.items()),
        ]

    async def _asset(self, request: "Request"):
        from starlette.responses import Response

        asset = assets()[request.url.path]
        headers = {**HEADERS, "etag": asset.etag}
        if request.headers.get("if-none-match") == asset.etag:
            return Response(status_code=304, headers=headers)
        return Response(asset.content, headers=headers, media_type=asset.media_type)

    def _read(self, handler: Handler):
        async def route(request: "Request"):
            check_origin(request)
            return _json(await asyncio.to_thread(handler, dict(request.query_params)))

        return route

    def _write(self, handler: Handler):
        async def route(request: "Request"):
            check_origin(request)
            if request.headers.get("content-type", "").partition(";")[0] != "application/json":
                raise ApiError("the body is not JSON.", "content-type", status=415)
            body = bytearray()
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY:
                    raise ApiError(f"the body is longer than {MAX_BODY:,} bytes.", status=413)
            return _json(await asyncio.to_thread(handler, read_json(bytes(body))))

        return route

    def _settings(self) -> dict[str, Any]:
        return {
            "models": self._models.names(),
            "loaded": list(self._models.loaded),
            "votes": self._votes is not None,
            "tools": self._tools is not None,
            "runs": bool(self._more),
            "key": self._key,
        }

    async def _model(self, request: "Request"):
        """Returns what a model has; loads it if it is not loaded."""
        check_origin(request)
        served = await self._models.get(request.query_params.get("name"))
        return _json(describe(served, self._tools))

    def _vote(self, body: dict[str, Any]) -> dict[str, Any]:
        if self._votes is None:
            raise ApiError(
                "this server keeps no votes.",
                fix="start it with --page.votes=FOLDER.",
                status=404,
                code="no_votes",
            )
        return self._votes.add(body, self._models.names())

    def _call(self, body: dict[str, Any]) -> dict[str, Any]:
        if self._tools is None:
            raise ApiError(
                "this server runs no tools.",
                fix="start it with --page.tools=calculator,python.",
                status=404,
                code="no_tools",
            )
        return self._tools.call(body)


def describe(served: Served, tools: Toolboxes | None) -> dict[str, Any]:
    """Returns a model as the page shows it: context, default sampling, thinking and its tools."""
    definitions: list[dict[str, Any]] = []
    if tools is not None:
        try:
            definitions = tools.definitions(tool_dialect(served.tokenizer))
        except ApiError:  # the model has no format for calls
            definitions = []
    try:
        source = source_of(served.tokenizer, ())
    except Exception as error:  # any type: the chat says what is wrong, with what was sent
        return _described(served, definitions, False) | {"problem": str(error)}
    return _described(served, definitions, bool(source and reads(source, "enable_thinking")))


def _described(served: Served, tools: list[dict[str, Any]], thinking: bool) -> dict[str, Any]:
    return {
        "id": served.limits.model,
        "context": served.limits.context,
        "defaults": dict(served.limits.defaults),
        "thinking": thinking,
        "tools": tools,
        "vocab_size": served.tokenizer.vocab_size,
    }


def check_origin(request: "Request") -> None:
    """Raises ApiError if another web page sends the request."""
    origin, host = request.headers.get("origin"), request.headers.get("host", "")
    site = request.headers.get("sec-fetch-site", "none")
    if origin not in (None, f"http://{host}", f"https://{host}") or site not in (
        "none",
        "same-origin",
    ):
        raise ApiError(
            "the request is from another web page.",
            "origin",
            "open this server's own page.",
            status=403,
            code="other_origin",
        )


def _json(content: Any):
    from starlette.responses import Response

    from qwen_jax.serve.api.responses import dumps

    return Response(dumps(content), headers=HEADERS, media_type="application/json")
