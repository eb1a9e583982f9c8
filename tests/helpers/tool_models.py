"""Tokenizers with templates of tools and thoughts, and an engine that says given texts."""

from qwen_jax.inference.request import Request
from qwen_jax.tokenizer.added_tokens import AddedToken
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.settings import Settings
from tests.helpers.fake_engine import FakeEngine

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_OTHERS = ("<tool_call>", "</tool_call>", "<think>", "</think>")
# A template of ours, in the dialect of Qwen2.5 and Qwen3.
HERMES = """\
{%- if tools %}<|im_start|>system
Tools:{% for tool in tools %} {{ tool | tojson }}{% endfor %}
Call them so: <tool_call>
{"name": ..., "arguments": ...}
</tool_call><|im_end|>
{% endif %}
{%- for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}
{%- for call in m.tool_calls or [] %}{{ '\n' }}<tool_call>
{"name": {{ call.function.name | tojson }}, "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
# ... and one of a model that thinks, unless enable_thinking is false.
THINKING = (
    HERMES.removesuffix("{% endif %}")
    + """\
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif %}"""
)
NO_TOOLS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "The time."}}


def tokenizer_with(template: str | None) -> Tokenizer:
    """Returns a tokenizer with a token per byte and Qwen's added tokens; None: Qwen-1's format."""
    if template is None:
        return Tokenizer({bytes([byte]): byte for byte in range(256)})
    tokens = [AddedToken(name, 256 + i) for i, name in enumerate(_SPECIAL)]
    tokens += [
        AddedToken(name, 256 + len(_SPECIAL) + i, special=False) for i, name in enumerate(_OTHERS)
    ]
    settings = Settings(
        named={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        chat_templates={"default": template},
    )
    return Tokenizer({bytes([byte]): byte for byte in range(256)}, tokens, settings=settings)


class ScriptedEngine(FakeEngine):
    """Says the next of `texts` to each request, then a stop token."""

    def __init__(self, tokenizer: Tokenizer, texts: list[str], **settings):
        super().__init__(tokenizer, max_model_len=8192, **settings)
        self.tokenizer, self.texts = tokenizer, list(texts)
        self.requests: list[Request] = []

    def completion(self, request: Request, sample: int) -> list[int]:
        self.requests.append(request)
        ids = self.tokenizer.encode(self.texts.pop(0), allow_special=True)
        return [*ids[: request.sampling.max_new_tokens], self.end]

    def shown_prompts(self) -> list[str]:
        return [self.tokenizer.decode(request.prompt) for request in self.requests]
