"""An agent in the terminal: thoughts, calls and observations in color as they stream."""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from qwen_jax.agent.events import (
    Answer,
    Call,
    Delta,
    Event,
    Observation,
    Reply,
    Shortened,
    Stopped,
)
from qwen_jax.agent.loop import Budgets, run
from qwen_jax.agent.models.protocol import Model
from qwen_jax.agent.tool import Tool
from qwen_jax.agent.transcript import Recorder
from qwen_jax.errors import QwenJaxError
from qwen_jax.inference.terminal import Keyboard, printable

_COLORS = {"thought": "2", "call": "36", "observation": "33", "answer": "1", "error": "31"}
HELP = """\
/tools     list the tools
/reset     start a new conversation; the tools keep their state
/exit      exit, like Ctrl-D"""


def has_color() -> bool:
    """Returns whether stdout is a terminal, and the user has not set NO_COLOR or TERM=dumb."""
    return (
        sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    )


class Printer:
    """Prints events. Control characters of models and tools do not reach the terminal.

    Args:
      color: whether to use colors.
      write: receives the text.
    """

    def __init__(self, *, color: bool, write: Callable[[str], Any] | None = None):
        self._color = color
        self._write = write or _to_stdout
        self._at_start = True  # of a line

    def show(self, event: Event) -> None:
        """Prints an event: a delta at once, an observation on lines of its own."""
        if isinstance(event, Delta):
            # Text of the Hermes dialect is an answer until a call follows.
            self._print(event.text, "answer" if event.kind == "text" else event.kind)
        elif isinstance(event, Reply | Answer | Call):
            self._end_line()
        elif isinstance(event, Observation):
            self._end_line()
            kind = "error" if event.is_error else "observation"
            self._print(f"Observation: {event.text.rstrip()}\n", kind)
            for path in event.files:
                self._print(f"(file: {path})\n", kind)
        elif isinstance(event, Shortened):
            self._end_line()
            self._print(f"({event.observations} old results left out to fit the context)\n", None)
        elif isinstance(event, Stopped):
            self._end_line()
            self._print(f"(stopped: {event.detail})\n", "error")

    def _print(self, text: str, kind: str | None) -> None:
        text = printable(text)
        if not text:
            return
        self._at_start = text.endswith("\n")
        if self._color and kind in _COLORS:
            body = text.rstrip("\n")
            text = f"\x1b[{_COLORS[kind]}m{body}\x1b[0m{text[len(body) :]}"
        self._write(text)

    def _end_line(self) -> None:
        if not self._at_start:
            self._write("\n")
            self._at_start = True


class Session:
    """A conversation with an agent in the terminal.

    Args:
      system: the system message; "": none.
      recorder: writes the transcript, if there is one.
    """

    def __init__(
        self,
        model: Model,
        tools: Sequence[Tool],
        budgets: Budgets,
        *,
        system: str = "",
        language: str = "en",
        recorder: Recorder | None = None,
        color: bool | None = None,
    ):
        self._model, self._tools, self._budgets = model, tools, budgets
        self._system, self._language, self._recorder = system, language, recorder
        self._printer = Printer(color=has_color() if color is None else color)
        self._keyboard = Keyboard()
        self._messages: list[dict[str, Any]] = []

    def run(self) -> None:
        """Reads questions and answers them until the user exits. Ctrl-C stops a turn."""
        while (line := self._keyboard.read("> ")) is not None:
            if line.startswith("/"):
                if not self.command(line.strip()):
                    break
            elif line.strip():
                before = list(self._messages)
                try:
                    self.ask(line)
                except QwenJaxError as error:  # such as a server that has gone
                    self._messages = before
                    print(f"\n({error.what} {error.fix})")

    def command(self, line: str) -> bool:
        """Runs a command; returns False for /exit."""
        if line == "/exit":
            return False
        if line == "/tools":
            for tool in self._tools:
                print(f"{tool.name}: {tool.description}")
        elif line == "/reset":
            self._messages = []
            print("(new conversation)")
        else:
            print(HELP)
        return True

    def ask(self, question: str) -> None:
        """Answers a question, which is printed as it happens."""
        new = [{"role": "user", "content": question}]
        if not self._messages and self._system:
            new.insert(0, {"role": "system", "content": self._system})
        self._messages += [dict(message) for message in new]
        events: Iterable[Event] = run(
            self._model,
            self._tools,
            self._messages,
            self._budgets,
            language=self._language,
            cancelled=lambda: self._keyboard.pressed,
        )
        if self._recorder is not None:
            self._recorder.question(new)
            events = self._recorder.record(events)
        self._keyboard.pressed = False
        for event in events:
            self._printer.show(event)


def _to_stdout(text: str) -> None:
    print(text, end="", flush=True)
