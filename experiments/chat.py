"""A conversation in the terminal.

python -m experiments.chat --checkpoint=runs/mine
python -m experiments.chat --checkpoint=runs/base --plain   # a model that was not taught ChatML

Ctrl-C stops an answer; at the prompt, two of them or Ctrl-D end the program. /help lists commands.
"""

import contextlib
import dataclasses
import json
import pathlib
import signal
import sys
import time
import unicodedata

from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.errors import QwenJaxError
from qwen_jax.inference import chat
from qwen_jax.inference.engine import Engine
from qwen_jax.inference.request import Request
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.inference.warmup import mesh_of, start_engine
from qwen_jax.pretrained.load import load_model
from qwen_jax.tokenizer import chatml
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.utils.files import write_text

HELP = """\
/system TEXT   another system message; starts anew
/reset         starts anew
/save FILE     writes the conversation, a line that experiments.generate reads
/exit          ends, as Ctrl-D does"""

_ENDS = {"length": "--max_new_tokens reached", "cancelled": "stopped"}


@dataclasses.dataclass(frozen=True)
class Config:
    """How answers are made."""

    checkpoint: str = option("", "a run folder, or a folder in the Qwen or Qwen2 layout")
    tokenizer: str | None = option(None, "a .tiktoken file; None: the one in the model's folder")
    plain: bool = option(False, "continue the text as it stands, without ChatML")
    system: str = option(chatml.DEFAULT_SYSTEM, "what the model is told first")
    max_new_tokens: int = option(512, "the longest answer")
    temperature: float = option(0.7, "0: the most probable token, always")
    top_k: int | None = option(None, "draw from the k most probable tokens alone")
    top_p: float = option(0.8, "the released chat models'")
    repetition_penalty: float = option(1.0, "above 1: what was said becomes less probable")
    seed: int = option(0, "of the first answer; each has the next one")
    context: int | None = option(
        None, "tokens of prompt and answer; None: as far as it makes sense"
    )
    cache_dtype: str | None = option(None, "of keys and values; None: the compute dtype")
    tensor: int = option(1, "devices that the weights and the cache are cut over")

    @property
    def sampling(self) -> SamplingParams:
        """The flags of an answer, checked."""
        fields = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed")
        return SamplingParams.named("--{}", **{name: getattr(self, name) for name in fields})


class Chat:
    """The conversation, and the commands that change it."""

    def __init__(
        self,
        config: Config,
        tokenizer: Tokenizer,
        engine: Engine,
        context: int,
        keyboard: "Keyboard",
    ):
        self.config, self.tokenizer, self.engine, self.context = config, tokenizer, engine, context
        self.keyboard = keyboard
        self.system = config.system
        self.messages: list[dict[str, str]] = []
        self.text = ""  # of --plain
        self.answers = 0

    def command(self, line: str) -> bool:
        """Obeys a line that starts with a slash; whether the program goes on."""
        name, _, argument = line.partition(" ")
        argument = argument.strip()
        if name == "/exit":
            return False
        if name == "/reset" or name == "/system" and argument and not self.config.plain:
            self.system = argument if name == "/system" else self.system
            self.messages, self.text = [], ""
            print("(a new conversation)")
        elif name == "/system":
            print(
                "(--plain has no system message)"
                if self.config.plain
                else f"(system: {self.system})"
            )
        elif name == "/save" and argument:
            self._save(argument)
        else:
            print(HELP)
        return True

    def answer(self, said: str) -> None:
        """Streams the answer to `said`; what the user has seen becomes part of the conversation."""
        tokens, dropped = self._prompt(said)
        if dropped:
            print(f"({dropped} left out to fit the context of {self.context:,} tokens)")
        sampling = dataclasses.replace(
            self.config.sampling,
            seed=(self.config.seed + self.answers) % 2**32,
            stop_token_ids=(
                (self.tokenizer.end_of_text,)
                if self.config.plain
                else chatml.stop_ids(self.tokenizer)
            ),
        )
        request = Request(tokens, sampling)
        self.answers += 1
        text = stream(self.engine, request, self.keyboard)
        if self.config.plain:
            self.text += said + text
        elif text:  # a question that was stopped before the first word is taken back
            self.messages += [
                {"role": "user", "content": said},
                {"role": "assistant", "content": text},
            ]

    def _prompt(self, said: str) -> tuple[tuple[int, ...], str]:
        """The prompt, and in words what did not fit before it."""
        budget = self.context - self.config.max_new_tokens
        if self.config.plain:
            ids = self.tokenizer.encode(self.text + said) or [self.tokenizer.end_of_text]
            over = max(len(ids) - budget, 0)
            return tuple(ids[over:]), f"the first {over:,} tokens are" if over else ""
        prompt = chat.fit(
            [("system", self.system), *self.messages, ("user", said)], self.tokenizer, budget=budget
        )
        del self.messages[: _start_of(self.messages, prompt.dropped)]
        plural = "turns are" if prompt.dropped > 1 else "turn is"
        return prompt.tokens, f"the oldest {prompt.dropped} {plural}" if prompt.dropped else ""

    def _save(self, name: str) -> None:
        content = (
            {"prompt": self.text}
            if self.config.plain
            else {"messages": [{"role": "system", "content": self.system}, *self.messages]}
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
    wait = f", first after {first - begin:.2f} s" if count else ""
    speed = (
        f", {(count - at_once) / (time.monotonic() - first):.1f} tokens/s"
        if count > at_once
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


def main(config: Config) -> None:
    """Loads, then question and answer in turn."""
    _ = config.sampling  # checks the flags before the model is read
    mesh = mesh_of(config.tensor)
    model, params, tokenizer = load_model(config.checkpoint, config.tokenizer, mesh=mesh)
    context, sentence = chat.context(model, config.context)
    config = dataclasses.replace(config, max_new_tokens=min(config.max_new_tokens, context // 2))
    engine = start_engine(
        params, model, tokenizer, rows=1, context=context, cache_dtype=config.cache_dtype, mesh=mesh
    )
    keyboard = Keyboard()
    talk = Chat(config, tokenizer, engine, context, keyboard)
    with contextlib.suppress(ImportError):  # the arrow keys, where Python has them
        import readline  # noqa: F401
    sys.stdout.reconfigure(errors="replace")
    print(f"context: {sentence}; up to {config.max_new_tokens} of them an answer. /help for help")
    while (line := keyboard.read("> ")) is not None:
        if line.startswith("/"):
            if not talk.command(line):
                break
        elif line.strip() or config.plain:
            try:
                talk.answer(line)
            except QwenJaxError as error:
                print(f"({error.what} {error.fix})")


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
