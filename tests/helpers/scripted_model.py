"""An engine whose samples are a script, for tests of agents; it stops at strings as ours does."""

from collections.abc import Iterable

from qwen_jax.agent.models.engine import EngineModel
from qwen_jax.inference.request import Event, Request
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.inference.stream import TextStream, token_bytes
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.settings import Settings

BYTES = {bytes([byte]): byte for byte in range(256)}
# As tojson writes; <tool_call> is in it, so the dialect is Hermes.
HERMES_TEMPLATE = """\
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Call as <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == "tool" %}<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% else %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls %}
<tool_call>
{{ call.function | tojson }}
</tool_call>
{%- endfor %}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def react_tokenizer() -> Tokenizer:
    """Byte tokens without a template: the dialect is ReAct."""
    return Tokenizer(BYTES)


def hermes_tokenizer() -> Tokenizer:
    """Byte tokens with a template whose calls are <tool_call>."""
    return Tokenizer(BYTES, settings=Settings(chat_templates={"default": HERMES_TEMPLATE}))


class ScriptedEngine:
    """Continues the n-th prompt by the n-th text of a script, `decode_steps` tokens a step.

    Attributes:
      prompts: texts of the prompts, in order.
      cancelled: number of requests that were cancelled while they ran.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        script: Iterable[str],
        *,
        max_model_len: int = 1 << 20,
        decode_steps: int = 3,
    ):
        self.tokenizer, self.script = tokenizer, list(script)
        self.max_model_len, self.decode_steps = max_model_len, decode_steps
        self.prompts: list[str] = []
        self.requests: list[Request] = []
        self.cancelled = 0
        self._table = token_bytes(tokenizer)
        self._running: dict = {}

    @property
    def busy(self) -> bool:
        return bool(self._running)

    def submit(self, request: Request) -> list[int]:
        assert len(request.prompt) + request.sampling.max_new_tokens <= self.max_model_len
        self.prompts.append(self.tokenizer.decode(request.prompt))
        self.requests.append(request)
        text = self.script[len(self.prompts) - 1]
        tokens = [*self.tokenizer.encode(text, allow_special=True), self.tokenizer.im_end]
        number = len(self.prompts)
        stream = TextStream(self._table, request.sampling.stop)
        self._running[number] = (request, iter(tokens), stream, [0])
        return [number]

    def cancel(self, number: int) -> None:
        self.cancelled += number in self._running
        self._running.pop(number, None)

    def step(self) -> list[Event]:
        events = []
        for number in list(self._running):
            for _ in range(self.decode_steps):
                if number in self._running:
                    events += self._token(number)
        return events

    def _token(self, number: int) -> list[Event]:
        request, tokens, stream, count = self._running[number]
        token = next(tokens)
        if token in request.sampling.stop_token_ids:
            return self._end(number, stream, "stop")
        count[0] += 1
        events = [Event(number, token, stream.add(token), None)]
        if stream.stopped:
            return events + self._end(number, stream, "stop")
        if count[0] == request.sampling.max_new_tokens:
            return events + self._end(number, stream, "length")
        return events

    def _end(self, number: int, stream: TextStream, finish: str) -> list[Event]:
        del self._running[number]
        return [Event(number, None, stream.finish(), None, finish)]


def scripted(
    tokenizer: Tokenizer, script: Iterable[str], *, parallel: bool = True, **settings
) -> tuple[EngineModel, ScriptedEngine]:
    """Returns a model that samples a script, and its engine."""
    engine = ScriptedEngine(tokenizer, script, **settings)
    sampling = SamplingParams(max_new_tokens=1)
    return EngineModel(engine, tokenizer, sampling, parallel=parallel), engine  # pyright: ignore
