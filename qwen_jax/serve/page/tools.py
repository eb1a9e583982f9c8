"""Runs the tools that a model calls on the page; each conversation has a session of its own."""

import base64
import collections
import contextlib
import pathlib
import threading
import time
from typing import Any

from qwen_jax.agent.calls import Runner
from qwen_jax.agent.events import Call
from qwen_jax.agent.tool import Limits
from qwen_jax.agent.toolbox import Sources, opened
from qwen_jax.serve.errors import ApiError
from qwen_jax.tokenizer.dialects.calls import Dialect

MAX_SESSIONS = 4  # an interpreter holds up to a gigabyte of memory
CALL_SECONDS = 60.0
MAX_CHARACTERS = 20_000  # of a result
MAX_FIGURE = 4 << 20  # bytes
_FIGURES = {".png": b"\x89PNG\r\n\x1a\n"}  # what a page shows as an image, by its first bytes


class Toolboxes:
    """Tools of `sources`, in sessions that are made when they are first used.

    Raises:
      ConfigError, SandboxError: as agent.toolbox.opened; at once, not at the first call.
    """

    def __init__(self, sources: Sources):
        self._sources = sources
        self._sessions: collections.OrderedDict[str, _Session] = collections.OrderedDict()
        self._lock = threading.Lock()
        first = _Session(sources)
        self._tools, self._spare = first.tools, [first]

    def definitions(self, dialect: Dialect) -> list[dict[str, Any]]:
        """Returns the tools as OpenAI's API has them."""
        return [tool.definition(dialect) for tool in self._tools]

    def call(self, body: dict[str, Any]) -> dict[str, Any]:
        """Runs a call: {"session", "name", "arguments"} -> {"text", "is_error", "figures"}.

        Figures are data: URLs of PNG files that the call has written.

        Raises:
          ApiError: a field is missing, or not text.
        """
        for name in ("session", "name", "arguments"):
            if not isinstance(body.get(name), str):
                raise ApiError(f"{name} is missing or not text.", name)
        found = self._session(body["session"][:100]).run(
            Call("call", body["name"], body["arguments"])
        )
        figures = [url for path in found.files if (url := _figure(pathlib.Path(path)))]
        return {"text": found.text, "is_error": found.is_error, "figures": figures}

    def close(self) -> None:
        with self._lock:
            for session in [*self._sessions.values(), *self._spare]:
                session.close()
            self._sessions.clear()
            self._spare = []

    def _session(self, name: str) -> "_Session":
        with self._lock:
            if name not in self._sessions:
                while len(self._sessions) >= MAX_SESSIONS:  # the one used longest ago
                    self._sessions.popitem(last=False)[1].close()
                self._sessions[name] = self._spare.pop() if self._spare else _Session(self._sources)
            self._sessions.move_to_end(name)
            return self._sessions[name]


class _Session:
    """The tools of one conversation."""

    def __init__(self, sources: Sources):
        self._stack = contextlib.ExitStack()
        self.tools, _ = self._stack.enter_context(opened(sources))
        self._runner = Runner(self.tools, max_characters=MAX_CHARACTERS)

    def run(self, call: Call):
        limits = Limits(deadline=time.monotonic() + CALL_SECONDS)
        return next(self._runner.run([call], limits))

    def close(self) -> None:
        self._stack.close()


def _figure(path: pathlib.Path) -> str | None:
    """Returns a figure as a data: URL; None if the file is something else, or too large."""
    start = _FIGURES.get(path.suffix.lower())
    try:
        if start is None or path.stat().st_size > MAX_FIGURE:
            return None
        content = path.read_bytes()
    except OSError:
        return None
    if not content.startswith(start):
        return None
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
