"""A conversation at a terminal: commands, answers as they come, Ctrl-C.

The page experiments/chat.py loads a model and starts it.
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

from qwen_jax.errors import QwenJaxError
from qwen_jax.inference import chat
from qwen_jax.inference.engine import Engine
from qwen_jax.inference.request import Request
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.tokenizer import chatml
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.utils.files import write_text

HELP = """\
/system TEXT   another system message; starts anew
/reset         starts anew
/save FILE     writes the conversation, a line that experiments.generate reads
/exit          ends, as Ctrl-D does"""

_ENDS = {"length": "--max_new_tokens reached", "cancelled": "stopped"}


class Conversation:
    """What was said, and the commands that change it.

    Args:
      sampling: of every answer; its seed is the first one's, each has the next one.
      context: tokens of prompt and answer together.
      system: the system message; None: the text goes on as it stands, without ChatML.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        sampling: SamplingParams,
        *,
        context: int,
        system: str | None,
    ):
        self._engine, self._tokenizer, self._context = engine, tokenizer, context
        self._plain, self._system = system is None, system or ""
        stop_ids = (tokenizer.end_of_text,) if self._plain else chatml.stop_ids(tokenizer)
        self._sampling = sampling.also_ending_at(stop_ids)
        self._keyboard = Keyboard()
        self._messages: list[dict[str, str]] = []
        self._text = ""  # without ChatML

    def run(self) -> None:
        """Question and answer in turn, until the user ends it."""
        with contextlib.suppress(ImportError):  # the arrow keys, where Python has them
            import readline  # noqa: F401
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")
        while (line := self._keyboard.read("> ")) is not None:
            if line.startswith("/"):
                if not self.command(line):
                    break
            elif line.strip() or self._plain:
                try:
                    self.answer(line)
                except QwenJaxError as error:
                    print(f"({error.what} {error.fix})")

    def command(self, line: str) -> bool:
        """Obeys a line that starts with a slash; whether the conversation goes on."""
        name, _, argument = line.partition(" ")
        argument = argument.strip()
        if name == "/exit":
            return False
        if name == "/reset" or name == "/system" and argument and not self._plain:
            self._system = argument if name == "/system" else self._system
            self._messages, self._text = [], ""
            print("(a new conversation)")
        elif name == "/system":
            print("(--plain has no system message)" if self._plain else f"(system: {self._system})")
        elif name == "/save" and argument:
            self._save(argument)
        else:
            print(HELP)
        return True

    def answer(self, said: str) -> None:
        """Streams the answer to `said`; what the user has seen becomes part of the conversation."""
        tokens, dropped = self._prompt(said)
        if dropped:
            print(f"({dropped} left out to fit the context of {self._context:,} tokens)")
        request = Request(tokens, self._sampling)
        self._sampling = dataclasses.replace(self._sampling, seed=(self._sampling.seed + 1) % 2**32)
        text = stream(self._engine, request, self._keyboard)
        if self._plain:
            self._text += said + text
        elif text:  # a question that was stopped before the first word is taken back
            self._messages += [
                {"role": "user", "content": said},
                {"role": "assistant", "content": text},
            ]

    def _prompt(self, said: str) -> tuple[tuple[int, ...], str]:
        """The prompt, and in words what did not fit before it."""
        budget = self._context - self._sampling.max_new_tokens
        if self._plain:
            ids = self._tokenizer.encode(self._text + said) or [self._tokenizer.end_of_text]
            over = max(len(ids) - budget, 0)
            return tuple(ids[over:]), f"the first {over:,} tokens are" if over else ""
        messages: list[chatml.Message] = [("system", self._system), *self._messages, ("user", said)]
        prompt = chat.fit(messages, self._tokenizer, budget=budget)
        del self._messages[: _start_of(self._messages, prompt.dropped)]
        plural = "turns are" if prompt.dropped > 1 else "turn is"
        return prompt.tokens, f"the oldest {prompt.dropped} {plural}" if prompt.dropped else ""

    def _save(self, name: str) -> None:
        content = (
            {"prompt": self._text}
            if self._plain
            else {"messages": [{"role": "system", "content": self._system}, *self._messages]}
        )
        try:
            write_text(
                pathlib.Path(name).expanduser(), json.dumps(content, ensure_ascii=False) + "\n"
            )
            print(f"(saved to {name})")
        except OSError as error:
            print(f"(not saved: {error})")


def _start_of(messages: list[dict[str, str]], turn: int) -> int:
    """The place of the question of turn number `turn`; the end if there is none."""
    questions = [place for place, message in enumerate(messages) if message["role"] == "user"]
    return [*questions, len(messages)][turn]


class Keyboard:
    """Ctrl-C: an exception at the prompt, elsewhere a note that the answer reads between its steps.

    So the engine is never left in mid-step, and nothing but the prompt can end the program.
    """

    def __init__(self):
        self.pressed = self._reading = False
        signal.signal(signal.SIGINT, self._interrupt)

    def read(self, prompt: str) -> str | None:
        """A line of the user's; None at the end."""
        for attempt in range(2):
            try:
                self._reading = True
                return input(prompt)
            except EOFError:
                print()
                return None
            except KeyboardInterrupt:
                print("\n(Ctrl-C again or Ctrl-D to end)" if attempt == 0 else "")
            finally:
                self._reading = self.pressed = False
        return None

    def _interrupt(self, *_) -> None:
        if self._reading:
            raise KeyboardInterrupt
        self.pressed = True


def stream(engine: Engine, request: Request, keyboard: Keyboard) -> str:
    """Prints the answer as it comes, and its speed; returns its text."""
    pieces, count, finish = [], 0, None
    begin, first, at_once = time.monotonic(), None, 0  # tokens that came with the first
    (request_id,) = engine.submit(request)
    while finish is None:
        if keyboard.pressed:
            engine.cancel(request_id)  # the next step says so
        for event in engine.step():
            pieces.append(event.text)
            count += event.token is not None
            finish = event.finish
            print(printable(event.text), end="", flush=True)
        if first is None and count:
            first, at_once = time.monotonic(), count
    wait = "" if first is None else f", first after {first - begin:.2f} s"
    speed = (
        f", {(count - at_once) / (time.monotonic() - first):.1f} tokens/s"
        if first is not None and count > at_once
        else ""
    )
    print(f"\n({count} tokens{wait}{speed}{'' if finish == 'stop' else f'; {_ENDS[finish]}'})")
    return "".join(pieces)


def printable(text: str) -> str:
    """`text` without the control characters with which it could rule the terminal."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}"
        if unicodedata.category(char) == "Cc" and char not in "\n\t"
        else char
        for char in text
    )
