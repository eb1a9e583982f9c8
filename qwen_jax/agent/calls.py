"""Runs the calls of a reply: refuses malformed ones in words, and waits no longer than allowed."""

import threading
import time
from collections.abc import Iterator, Sequence

from qwen_jax.agent import schema
from qwen_jax.agent.events import Call, Observation
from qwen_jax.agent.tool import Limits, Result, Tool, select
from qwen_jax.errors import ConfigError
from qwen_jax.tokenizer.dialects.react import LABEL

_POLL = 0.05
_GRACE = 5.0  # seconds in which a tool that knows its limits may end by itself


class Runner:
    """Runs calls in threads: those of one reply at the same time, those of one tool in order.

    A function of Python cannot be stopped from outside. If it does not return in time, the call
    fails, its thread is left behind, and later calls of the tool fail until it has ended.

    Args:
      max_characters: of an observation; more is left out in the middle.
    """

    def __init__(self, tools: Sequence[Tool], *, max_characters: int):
        self._tools, self._max_characters = tools, max_characters
        self._locks = {tool.name: threading.Lock() for tool in tools if not tool.concurrent}

    def run(self, calls: Sequence[Call], limits: Limits) -> Iterator[Observation]:
        """Yields the observations in the order of the calls."""
        queues: dict[str, list[_Running]] = {}
        running = []
        for call in calls:
            one = _Running(self._prepared(call), limits)
            running.append(one)
            tool = call.name if call.name in self._locks else call.id
            queues.setdefault(tool, []).append(one)
        for name, queue in queues.items():
            lock = self._locks.get(name, threading.Lock())
            threading.Thread(target=_run_all, args=(queue, lock, limits), daemon=True).start()
        for call, one in zip(calls, running, strict=True):
            yield self._observation(call, one)

    def _prepared(self, call: Call) -> "Result | tuple[Tool, dict]":
        """Returns the tool and its arguments, or what is wrong with the call."""
        try:
            tool = select(self._tools, call.name)
        except ConfigError as error:
            return Result(f"Error: {error.what} {_sentence(error.fix)}", is_error=True)
        arguments, problem = tool.arguments(call.arguments)
        found = [problem] if arguments is None else schema.problems(arguments, tool.parameters)
        if arguments is None or found:
            return Result(
                f"Error: {tool.name} was not run: {'; '.join(found)}. Correct the arguments and "
                "call it again.",
                is_error=True,
            )
        return tool, arguments

    def _observation(self, call: Call, one: "_Running") -> Observation:
        result = one.wait()
        text, left_out = shorten(result.text, self._max_characters)
        ran = not isinstance(one.prepared, Result)
        return Observation(call.id, call.name, text, result.is_error, result.files, left_out, ran)


class _Running:
    """A call, and its result when it is there."""

    def __init__(self, prepared: "Result | tuple[Tool, dict]", limits: Limits):
        self.prepared, self._limits = prepared, limits
        self.result: Result | None = prepared if isinstance(prepared, Result) else None
        self.done = threading.Event()
        if self.result is not None:
            self.done.set()

    def wait(self) -> Result:
        while not self.done.wait(_POLL):
            if self._limits.cancelled():
                if self.done.wait(_GRACE):
                    break
                return Result("Error: the user stopped the call.", is_error=True)
            if time.monotonic() > self._limits.deadline + _GRACE:
                return Result("Error: the call did not return in time.", is_error=True)
        assert self.result is not None
        return self.result


def _run_all(queue: list[_Running], lock: threading.Lock, limits: Limits) -> None:
    for one in queue:
        if one.result is not None:
            continue
        tool, arguments = one.prepared  # pyright: ignore[reportGeneralTypeIssues]
        if not lock.acquire(timeout=limits.seconds(3600.0)):
            one.result = Result(
                "Error: the tool is still busy with an earlier call.", is_error=True
            )
            one.done.set()
            continue
        try:
            found = tool.run(arguments, limits)
            one.result = found if isinstance(found, Result) else Result(str(found))
        except BaseException as error:  # also SystemExit: a tool may not end the program
            one.result = Result(f"Error: {type(error).__name__}: {error}"[:2000], is_error=True)
        finally:
            lock.release()
            one.done.set()


def shorten(text: str, limit: int) -> tuple[str, int]:
    """Returns a text with at most about `limit` characters, and how many are left out.

    The start and the end are kept: the end of a traceback says what is wrong.
    """
    left_out = len(text) - limit
    if left_out <= 0:
        return text, 0
    first = limit * 2 // 3
    note = f"\n[... {left_out:,} characters are left out ...]\n"
    return f"{text[:first]}{note}{text[len(text) - (limit - first) :]}", left_out


def without_labels(text: str) -> str:
    """Returns an observation whose lines do not begin with labels of ReAct.

    A page that says "Action: ..." could otherwise speak as the model. A space is put before them.
    """
    return LABEL.sub(lambda found: f" {found[0]}", text)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"
