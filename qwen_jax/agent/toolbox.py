"""The tools that people name: `python,docs,calculator`, an OpenAPI document, an MCP server."""

import contextlib
import dataclasses
import functools
import importlib
import pathlib
import tempfile
from collections.abc import Iterator, Sequence

from qwen_jax.agent.interpreter import Interpreter
from qwen_jax.agent.mcp import MCPServer
from qwen_jax.agent.openapi import tools_from_openapi
from qwen_jax.agent.tool import Tool, check_names
from qwen_jax.agent.tools.calculator import calculator
from qwen_jax.agent.tools.docs import Docs
from qwen_jax.agent.tools.plot import plot
from qwen_jax.agent.tools.table import table
from qwen_jax.errors import ConfigError, unknown_name

NAMES = ("python", "docs", "calculator", "table", "plot")


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where the tools of a session come from; fields name flags of experiments.agent."""

    tools: tuple[str, ...] = ("python",)  # of NAMES, or MODULE:NAME of a Tool
    openapi: tuple[str, ...] = ()  # documents
    mcp: tuple[str, ...] = ()  # URLs or command lines
    docs: tuple[str, ...] = ("stdlib",)  # packages that `docs` searches
    folder: str | None = None  # working folder; None: a temporary one
    cell_seconds: float = 30.0
    unsafe: bool = False


@contextlib.contextmanager
def opened(sources: Sources) -> Iterator[tuple[list[Tool], pathlib.Path]]:
    """Yields the tools and their working folder; closes what they hold at the end.

    Raises:
      ConfigError: a name is unknown, or two tools share one.
      SandboxError: code cannot be isolated here, and `python` is one of the tools.
      MCPError: an MCP server does not answer.
    """
    if sources.folder is not None and not pathlib.Path(sources.folder).is_dir():
        raise ConfigError(
            "there is no such folder.", f"--folder={sources.folder}", "make it, or check the path."
        )
    tools: list[Tool] = []
    with contextlib.ExitStack() as stack:
        folder = sources.folder or stack.enter_context(
            tempfile.TemporaryDirectory(prefix="qwen-jax-agent-")
        )
        root, interpreter = pathlib.Path(folder), None
        if "python" in sources.tools:
            interpreter = Interpreter(
                root, cell_seconds=sources.cell_seconds, unsafe=sources.unsafe
            )
            stack.callback(interpreter.close)
        for name in sources.tools:
            tools.append(_named(name, root, interpreter, sources.docs))
        for document in sources.openapi:
            tools += tools_from_openapi(document)
        for server in sources.mcp:
            tools += stack.enter_context(MCPServer(server)).tools
        check_names(tools)
        yield tools, root


@functools.lru_cache(maxsize=4)
def _docs(packages: tuple[str, ...]) -> Docs:
    """Returns the documentation, which takes seconds to index, once for all sessions."""
    return Docs(packages)


def _named(
    name: str, root: pathlib.Path, interpreter: Interpreter | None, docs: Sequence[str]
) -> Tool:
    if name == "python":
        assert interpreter is not None
        return interpreter.tool()
    if name == "docs":
        return _docs(tuple(docs)).tool()
    if name == "calculator":
        return calculator()
    if name == "table":
        return table(root)
    if name == "plot":
        return plot(root)
    module, _, attribute = name.partition(":")
    if not attribute:
        raise unknown_name("tool", name, NAMES, "--tools")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"cannot import the tool {name!r}: {error}.", "--tools", "name MODULE:NAME of a Tool."
        ) from None
    if not isinstance(found, Tool):
        raise ConfigError(f"{name} is not a Tool.", "--tools", "decorate the function with @tool.")
    return found
