"""Responses of server-sent events, which end when their client disconnects."""

import asyncio
import contextlib
from typing import Any

from starlette.requests import ClientDisconnect

from qwen_jax.serve.api.responses import CompletionResponse, dumps
from qwen_jax.serve.connections import EVENT_STREAM
from qwen_jax.serve.errors import ApiError
from qwen_jax.serve.responses.output import ResponsesResponse
from qwen_jax.serve.worker import Ticket, Worker


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
