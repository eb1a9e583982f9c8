"""The loop of an agent: the model thinks and calls, tools answer, until it answers. Report: 3.4.

Nothing is printed and no file is written here: `run` yields events, and messages grow in place.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from qwen_jax.agent import messages as made
from qwen_jax.agent.calls import Runner, without_labels
from qwen_jax.agent.deltas import Deltas
from qwen_jax.agent.events import (
    Answer,
    Call,
    Delta,
    Event,
    Observation,
    Reply,
    Shortened,
    Stopped,
    Thought,
)
from qwen_jax.agent.models.protocol import Model
from qwen_jax.agent.tool import Limits, Tool, check_names
from qwen_jax.config import option
from qwen_jax.ranges import ABOVE_ZERO, ONE_OR_MORE, Checked, Range
from qwen_jax.tokenizer.dialects.calls import ToolCall
from qwen_jax.tokenizer.dialects.react import REACT

_MIN_ROOM = 32  # tokens; a shorter reply has no room for a call
_WANTED_ROOM = 256  # tokens; old results are left out to have it
_SHORTENED = "[an old result; left out]"


@dataclasses.dataclass(frozen=True)
class Budgets(Checked):
    """What one question may spend. A budget that is used up ends the turn with a reason."""

    max_turns: int = option(10, "maximum replies of the model to one question", ONE_OR_MORE)
    max_tokens: int = option(4096, "maximum sampled tokens for one question", ONE_OR_MORE)
    max_seconds: float = option(600.0, "maximum seconds for one question", ABOVE_ZERO)
    max_repeats: int = option(3, "identical calls in a row after which the turn ends", Range(2))
    max_observation: int = option(
        8000, "maximum characters of a result that the model reads", ONE_OR_MORE
    )


def run(
    model: Model,
    tools: Sequence[Tool],
    messages: list[dict[str, Any]],
    budgets: Budgets,
    *,
    language: str = "en",
    cancelled: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Event]:
    """Answers the last message, a user's.

    The last event is an Answer or a Stopped. A call that cannot be read, names no tool or has
    wrong arguments gets an observation that says what is wrong. A reply that is cancelled is not
    added to the messages.

    Args:
      messages: the conversation, as in OpenAI's API. Grows in place by the replies and results.
      language: of the descriptions of tools, "en" or "zh".
      cancelled: called between tokens and while tools run; true ends the turn.
      clock: seconds, for the budget of time.

    Raises:
      ConfigError: two tools share a name.
    """
    check_names(tools)
    yield from _Turn(model, tools, messages, budgets, language, cancelled, clock).events()


class _Turn:
    def __init__(self, model, tools, messages, budgets, language, cancelled, clock):
        self._model: Model = model
        self._messages, self._budgets = messages, budgets
        self._definitions = [tool.definition(model.dialect, language) for tool in tools]
        self._runner = Runner(tools, max_characters=budgets.max_observation)
        self._cancelled, self._clock = cancelled, clock
        self._end = clock() + budgets.max_seconds
        self._deadline = time.monotonic() + budgets.max_seconds
        self._tokens = self._replies = 0
        self._last: list[tuple[str, str]] = []
        self._repeated = 0
        self._before = sum(message["role"] == "assistant" for message in messages)

    def events(self) -> Iterator[Event]:
        while True:
            stopped = self._over_budget()
            if stopped is None:
                room, shortened = self._make_room()
                if shortened is not None:
                    yield shortened
                if room < _MIN_ROOM:
                    first = "; the tools are a part of it: use fewer" if not self._replies else ""
                    why = f"the conversation fills the model's context{first}"
                    stopped = Stopped("context", why)
            if stopped is not None:
                yield stopped
                return
            limit = min(room, self._budgets.max_tokens - self._tokens)
            reply = yield from self._reply(limit)
            if (stopped := self._ended(reply, limit)) is not None:
                yield stopped
                return
            reasoning, _ = made.parse(self._model.dialect, reply.content)
            if reasoning:
                yield Thought(reasoning)
            calls, problems = self._calls(reply)
            if not calls and not problems:
                self._messages.append(made.answer(reply.parsed, reasoning))
                yield Answer(reply.parsed.text.strip())
                return
            yield from self._observe(reply, calls, problems, reasoning)
            if (stopped := self._repeats(calls)) is not None:
                yield stopped
                return

    def _over_budget(self) -> Stopped | None:
        budgets = self._budgets
        if self._cancelled():
            return Stopped("cancelled", "the user stopped the turn")
        if self._replies >= budgets.max_turns:
            return Stopped("turns", f"no answer after {budgets.max_turns} replies (max_turns)")
        if self._tokens >= budgets.max_tokens:
            return Stopped("tokens", f"no answer after {budgets.max_tokens} tokens (max_tokens)")
        if self._clock() >= self._end:
            return Stopped("seconds", f"no answer after {budgets.max_seconds:g} s (max_seconds)")
        return None

    def _make_room(self) -> tuple[int, Shortened | None]:
        """Returns the tokens that fit; leaves out old observations until a reply fits."""
        count = characters = 0
        room = self._model.room(self._messages, self._definitions)
        wanted = min(self._budgets.max_tokens - self._tokens, _WANTED_ROOM)
        for message in self._messages:
            if room >= wanted:
                break
            if message["role"] == "tool" and len(message["content"]) > 2 * len(_SHORTENED):
                count, characters = count + 1, characters + len(message["content"])
                message["content"] = _SHORTENED
                room = self._model.room(self._messages, self._definitions)
        return room, Shortened(count, characters) if count else None

    def _reply(self, limit: int):
        """Samples a reply and yields its deltas; returns it."""
        deltas, texts = Deltas(self._model.dialect), []
        replying = self._model.reply(
            self._messages,
            self._definitions,
            max_tokens=limit,
            turn=self._before + self._replies,
        )
        reply: Reply | None = None
        try:
            while not self._cancelled() and self._clock() < self._end:
                try:
                    text = next(replying)
                except StopIteration as end:
                    reply = end.value
                    break
                texts.append(text)
                yield from deltas.add(text)
        finally:
            replying.close()
        yield from deltas.finish()
        if reply is None:
            content = "".join(texts)
            _, parsed = made.parse(self._model.dialect, content)
            reply = Reply(content, parsed, None, 0, "cancelled")
        elif len(reply.content) > (seen := len("".join(texts))):
            yield Delta("call", reply.content[seen:])
        self._replies += 1
        self._tokens += reply.count
        yield reply
        return reply

    def _ended(self, reply: Reply, limit: int) -> Stopped | None:
        if reply.finish == "cancelled":
            return self._over_budget() or Stopped("cancelled", "the model stopped")
        if reply.finish != "length":
            return None
        if limit >= self._budgets.max_tokens - (self._tokens - reply.count):
            return Stopped(
                "tokens", f"no answer after {self._budgets.max_tokens} tokens (max_tokens)"
            )
        return Stopped("context", "the reply does not fit into the model's context")

    def _calls(self, reply: Reply) -> tuple[list[Call], tuple[str, ...]]:
        """Returns the calls of a reply, and why others cannot be read."""
        found, problems = list(reply.parsed.calls), reply.parsed.problems
        if not found and problems and self._model.dialect is REACT:
            # An action without input. In ReAct an observation follows a call, so it stays one.
            action = made.ACTION.search(reply.content)
            found, problems = [ToolCall(action[1].strip() if action else "", "")], ()
        elif self._model.dialect is REACT:
            problems = ()  # an observation that the model made up is left out, and a real one comes
        return [
            Call(
                call.id or f"call_{self._before + self._replies}_{index}", call.name, call.arguments
            )
            for index, call in enumerate(found)
        ], problems

    def _observe(
        self,
        reply: Reply,
        calls: Sequence[Call],
        problems: Sequence[str],
        reasoning: str | None,
    ) -> Iterator[Event]:
        message = made.with_calls(self._model.dialect, reply.parsed, reasoning, calls)
        if calls and message["content"]:
            yield Thought(message["content"])
        self._messages.append(message)
        yield from calls
        limits = Limits(self._deadline, self._cancelled)
        for observation in self._runner.run(calls, limits):
            if self._model.dialect is REACT:
                observation = dataclasses.replace(
                    observation, text=without_labels(observation.text)
                )
            self._messages.append(made.result(observation))
            yield observation
        if problems:
            text = f"Error: {'; '.join(problems)}. Write the call again."
            self._messages.append({"role": self._model.feedback_role, "content": text})
            yield Observation("", "", text, is_error=True)

    def _repeats(self, calls: Sequence[Call]) -> Stopped | None:
        made = [(call.name, call.arguments) for call in calls]
        self._repeated = self._repeated + 1 if made and made == self._last else 1
        self._last = made
        if self._repeated < self._budgets.max_repeats:
            return None
        return Stopped("repeats", f"the same call {self._repeated} times in a row (max_repeats)")
