"""Interactive chat in a terminal: commands, streamed responses, Ctrl-C.

experiments/chat.py loads a model and starts the conversation.
"""

import contextlib
import dataclasses
import io
import json
import pathlib
import signal
import sys
import time
import unicodedata
from collections.abc import Mapping
from typing import Any

from qwen_jax.errors import QwenJaxError
from qwen_jax.inference import chat
from qwen_jax.inference.engine import Engine
from qwen_jax.inference.request import Request
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.template import tokens
from qwen_jax.utils.files import write_text

HELP = """\
/system TEXT   set the system message and start a new conversation
/reset         start a new conversation
/save FILE     save the conversation as an input line for experiments.generate
/exit          exit, like Ctrl-D"""

_FINISHES = {"length": "--max_new_tokens reached", "cancelled": "stopped"}


class Conversation:
    """A conversation, and the commands that change it.

    Args:
      sampling: the sampling parameters of every response. The seed is that of the first response
        and increases by 1 with each response.
      context: maximum tokens of prompt and response together.
      system: the system message; None: that of the chat template.
      template: whether the chat template is used; otherwise the text is continued as it is.
      variables: of the chat template.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        sampling: SamplingParams,
        *,
        context: int,
        system: str | None,
        template: bool = True,
        variables: Mapping[str, Any] | None = None,
    ):
        self._engine, self._tokenizer, self._context = engine, tokenizer, context
        self._template, self._system, self._variables = template, system, variables
        stop_ids = (tokens.stop_ids if template else tokens.text_stop_ids)(tokenizer)
        self._sampling = sampling.with_stop_ids(stop_ids)
        self._keyboard = Keyboard()
        engine.on_new_size = _say_compiling
        self._messages: list[dict[str, str]] = []
        self._text = ""  # prompts and responses so far, without a template

    def run(self) -> None:
        """Reads messages and streams responses until the user exits."""
        with contextlib.suppress(ImportError):  # arrow keys, if Python has readline
            import readline  # noqa: F401
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")
        while (line := self._keyboard.read("> ")) is not None:
            if line.startswith("/"):
                if not self.command(line):
                    break
            elif line.strip() or not self._template:
                try:
                    self.respond(line)
                except QwenJaxError as error:
                    print(f"({error.what} {error.fix})")

    def command(self, line: str) -> bool:
        """Runs a command, a line that starts with a slash; returns False for /exit."""
        name, _, argument = line.partition(" ")
        argument = argument.strip()
        if name == "/exit":
            return False
        if name == "/reset" or name == "/system" and argument and self._template:
            self._system = argument if name == "/system" else self._system
            self._messages, self._text = [], ""
            print("(new conversation)")
        elif name == "/system":
            system = "that of the chat template" if self._system is None else self._system
            print(
                f"(system: {system})"
                if self._template
                else "(no system message with --no_chat_template)"
            )
        elif name == "/save" and argument:
            self._save(argument)
        else:
            print(HELP)
        return True

    def respond(self, message: str) -> None:
        """Streams the response to `message`; adds both to the conversation, even if interrupted."""
        ids, dropped = self._prompt(message)
        if dropped:
            print(f"({dropped} dropped to fit the context of {self._context:,} tokens)")
        request = Request(ids, self._sampling)
        self._sampling = dataclasses.replace(self._sampling, seed=(self._sampling.seed + 1) % 2**32)
        text = stream(self._engine, request, self._keyboard)
        if not self._template:
            self._text += message + text
        elif text:  # a message that was stopped before the first token is dropped
            self._messages += [
                {"role": "user", "content": message},
                {"role": "assistant", "content": text},
            ]

    def _prompt(self, message: str) -> tuple[tuple[int, ...], str]:
        """Returns the prompt, and a phrase that describes the part that did not fit."""
        budget = self._context - self._sampling.max_new_tokens
        if not self._template:
            ids = self._tokenizer.encode(self._text + message) or [self._tokenizer.end_of_text]
            over = max(len(ids) - budget, 0)
            return tuple(ids[over:]), f"the first {over:,} tokens are" if over else ""
        messages = [*self._with_system(), {"role": "user", "content": message}]
        prompt = chat.fit(messages, self._tokenizer, budget=budget, variables=self._variables)
        del self._messages[: _start_of(self._messages, prompt.dropped)]
        plural = "turns are" if prompt.dropped > 1 else "turn is"
        return prompt.tokens, f"the oldest {prompt.dropped} {plural}" if prompt.dropped else ""

    def _with_system(self) -> list[dict[str, str]]:
        system = [] if self._system is None else [{"role": "system", "content": self._system}]
        return [*system, *self._messages]

    def _save(self, name: str) -> None:
        content = (
            {"prompt": self._text} if not self._template else {"messages": self._with_system()}
        )
        try:
            write_text(
                pathlib.Path(name).expanduser(), json.dumps(content, ensure_ascii=False) + "\n"
            )
            print(f"(saved to {name})")
        except OSError as error:
            print(f"(not saved: {error})")


def _say_compiling(size: int) -> None:
    print(f"(compiling for prompts of up to {size} tokens, once ...)", flush=True)


def _start_of(messages: list[dict[str, str]], turn: int) -> int:
    """Returns the index of the user message that starts turn `turn`, or the end if none does."""
    starts = [index for index, message in enumerate(messages) if message["role"] == "user"]
    return [*starts, len(messages)][turn]


class Keyboard:
    """Handles Ctrl-C: raises at the prompt; elsewhere sets a flag that is read between steps.

    The engine is therefore never interrupted within a step, and the program exits only at the
    prompt.
    """

    def __init__(self):
        self.pressed = self._reading = False
        signal.signal(signal.SIGINT, self._interrupt)

    def read(self, prompt: str) -> str | None:
        """Returns a line from the user; None at the end of input."""
        for attempt in range(2):
            try:
                self._reading = True
                return input(prompt)
            except EOFError:
                print()
                return None
            except KeyboardInterrupt:
                print("\n(Ctrl-C again or Ctrl-D to exit)" if attempt == 0 else "")
            finally:
                self._reading = self.pressed = False
        return None

    def _interrupt(self, *_) -> None:
        if self._reading:
            raise KeyboardInterrupt
        self.pressed = True


def stream(engine: Engine, request: Request, keyboard: Keyboard) -> str:
    """Streams the response to stdout, then prints its speed; returns its text."""
    texts, count, finish = [], 0, None
    begin, first, with_first = time.monotonic(), None, 0  # with_first: tokens of the first step
    (request_id,) = engine.submit(request)
    while finish is None:
        if keyboard.pressed:
            engine.cancel(request_id)  # the next step returns its last event
        for event in engine.step():
            texts.append(event.text)
            count += event.token is not None
            finish = event.finish
            print(printable(event.text), end="", flush=True)
        if first is None and count:
            first, with_first = time.monotonic(), count
    wait = "" if first is None else f", first token after {first - begin:.2f} s"
    speed = (
        f", {(count - with_first) / (time.monotonic() - first):.1f} tokens/s"
        if first is not None and count > with_first
        else ""
    )
    tokens = "1 token" if count == 1 else f"{count} tokens"
    print(f"\n({tokens}{wait}{speed}{'' if finish == 'stop' else f'; {_FINISHES[finish]}'})")
    return "".join(texts)


def printable(text: str) -> str:
    """Returns `text` with control characters replaced, so it cannot control the terminal."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}"
        if unicodedata.category(char) == "Cc" and char not in "\n\t"
        else char
        for char in text
    )
