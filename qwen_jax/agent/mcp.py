"""Tools of an MCP server, by the official SDK: a program on stdio, or a URL (streamable HTTP)."""

import asyncio
import concurrent.futures
import importlib
import os
import shlex
import threading
from collections.abc import Coroutine, Mapping
from typing import Any

from qwen_jax.agent.tool import Limits, Result, Tool
from qwen_jax.errors import ConfigError, QwenJaxError

_CONNECT_SECONDS = 60.0
_CALL_SECONDS = 600.0
_MAX_TOOLS = 1000


class MCPError(QwenJaxError):
    """An MCP server that does not start, or does not answer as one."""


class MCPServer:
    """A connection to an MCP server; `tools` are its tools. A context manager.

    Args:
      server: a URL such as http://127.0.0.1:8000/mcp, or a command line, whose program is started
        and speaks on its stdin and stdout. It is not a shell's: no pipes, no variables.
      environment: more environment variables of the program; it does not inherit ours, except for
        PATH, HOME and the like.
      prefix: put before the names of the tools, so that those of two servers differ.

    Raises:
      ConfigError: the SDK is not installed.
      MCPError: the server does not start, or does not answer.
    """

    def __init__(
        self, server: str, *, environment: Mapping[str, str] | None = None, prefix: str = ""
    ):
        self._server, self._environment = server, dict(environment or {})
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._ready: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._connection = self._target()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        try:
            self._client = self._ready.result(_CONNECT_SECONDS)
            found = self._wait(self._list(), _CONNECT_SECONDS)
        except Exception as error:
            self.close()
            raise MCPError(
                f"the MCP server does not answer: {_reason(error)}.",
                server,
                "start it by hand to see its output, and check the URL or the command.",
            ) from None
        self.tools = [self._tool(one, prefix) for one in found]

    def close(self) -> None:
        """Ends the connection, and the program, if it was started here."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join(_CONNECT_SECONDS)

    def __enter__(self) -> "MCPServer":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _target(self) -> Any:
        """Returns what the SDK's client connects to."""
        try:
            stdio = importlib.import_module("mcp.client.stdio")  # an extra
        except ImportError:
            raise ConfigError(
                "MCP needs its SDK.", "mcp", "run: pip install 'qwen_jax[mcp]'."
            ) from None
        if self._server.startswith(("http://", "https://")):
            return self._server
        command = shlex.split(self._server)
        if not command:
            raise ConfigError("there is no MCP server.", "mcp", "pass a URL or a command.")
        environment = {"PATH": os.environ.get("PATH", os.defpath)} | self._environment
        return stdio.StdioServerParameters(command=command[0], args=command[1:], env=environment)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._connected())
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)
        finally:
            self._loop.close()

    async def _connected(self) -> None:
        async with importlib.import_module("mcp").Client(self._connection) as client:
            self._ready.set_result(client)
            await self._closing.wait()

    async def _list(self) -> list[Any]:
        found, cursor = [], None
        while True:
            page = await self._client.list_tools(cursor=cursor)
            found += page.tools
            cursor = page.next_cursor
            if not cursor or len(found) > _MAX_TOOLS:
                return found

    def _tool(self, one: Any, prefix: str) -> Tool:
        schema = dict(one.input_schema)
        schema.setdefault("type", "object")

        def run(arguments: dict[str, Any], limits: Limits) -> Result:
            seconds = limits.seconds(_CALL_SECONDS)
            try:
                answer = self._wait(self._client.call_tool(one.name, arguments), seconds)
            except concurrent.futures.TimeoutError:
                return Result("Error: the MCP server did not answer in time.", is_error=True)
            except Exception as error:
                return Result(f"Error: the MCP server: {_reason(error)}.", is_error=True)
            parts = [_content(part) for part in answer.content]
            return Result("\n".join(parts) or "(no content)", bool(answer.is_error))

        description = one.description or one.title or one.name
        return Tool(f"{prefix}{one.name}", description, run, schema, concurrent=True)

    def _wait(self, coroutine: Coroutine[Any, Any, Any], seconds: float) -> Any:
        if not self._thread.is_alive():
            coroutine.close()
            raise ConnectionError("the connection has ended")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(seconds)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise


def _content(part: Any) -> str:
    """Returns a part of an answer as text; a model of text reads of an image that there is one."""
    if part.type == "text":
        return part.text
    if part.type == "resource":
        text = getattr(part.resource, "text", None)
        return text if isinstance(text, str) else f"[resource {part.resource.uri}]"
    if part.type == "resource_link":
        return f"[resource {part.uri}]"
    return f"[{part.type}, {getattr(part, 'mime_type', 'unknown type')}]"


def _reason(error: BaseException) -> str:
    """Returns the innermost reason of a group of exceptions, as task groups raise."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"[:500].rstrip(".")
