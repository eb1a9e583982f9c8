"""Which turns of a conversation fit into the context."""

import dataclasses

import pytest

from qwen_jax import sizes
from qwen_jax.attention_config import AttentionVariant, RopeScaling
from qwen_jax.config import ContextExtension
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.inference import chat
from qwen_jax.tokenizer import chatml
from qwen_jax.tokenizer.bpe import Tokenizer
from tests.helpers.chat_templates import released

CONVERSATION = [
    ("system", "Be brief."),
    ("user", "one"),
    ("assistant", "1"),
    ("user", "two"),
    ("assistant", "2, twice"),
    ("user", "three"),
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer({bytes([byte]): byte for byte in range(256)})


@pytest.mark.parametrize(
    "messages", [CONVERSATION, CONVERSATION[1:]]
)  # the default system message too
def test_fit_drops_the_oldest_turns_and_keeps_the_system_message(tokenizer, messages):
    system = messages[:1] if messages is CONVERSATION else []
    turns = messages[len(system) :]
    kept = [
        chatml.prompt([*system, *turns[2 * dropped :]], tokenizer).tolist() for dropped in range(3)
    ]
    for dropped, tokens in enumerate(kept):
        exact = chat.fit(messages, tokenizer, budget=len(tokens))
        assert (list(exact.tokens), exact.dropped) == (tokens, dropped)
        if dropped < 2:
            less = chat.fit(messages, tokenizer, budget=len(tokens) - 1)
            assert (list(less.tokens), less.dropped) == (kept[dropped + 1], dropped + 1)
    with pytest.raises(DataError, match=f"{len(kept[2])} tokens, but only {len(kept[2]) - 1} are"):
        chat.fit(messages, tokenizer, budget=len(kept[2]) - 1)


def test_fit_drops_a_leading_assistant_message(tokenizer):
    conversation = [("assistant", "Welcome."), ("user", "Hi")]
    tokens = chatml.prompt(conversation[1:], tokenizer).tolist()
    found = chat.fit(conversation, tokenizer, budget=len(tokens))
    assert list(found.tokens) == tokens


def test_context_is_four_training_lengths_with_dynamic_ntk():
    long = dataclasses.replace(sizes.TINY, context_length=2048)
    short = dataclasses.replace(long, extension=ContextExtension(dynamic_ntk=False))
    assert chat.context(long, None) == (
        8192,
        "8,192 tokens (trained at 2,048, extended by dynamic NTK)",
    )
    assert chat.context(short, None) == (2048, "2,048 tokens (trained at 2,048)")
    assert "unusable output" in chat.context(short, 2049)[1]
    assert "quality drops" in chat.context(long, 9000)[1]
    yarn = AttentionVariant(rope_scaling=RopeScaling("yarn", 4.0, original_length=1024))
    stretched = dataclasses.replace(short, variant=yarn)
    assert chat.context(stretched, None)[1] == "4,096 tokens (trained at 2,048, extended by YaRN)"
    with pytest.raises(ConfigError, match="context of 1 "):
        chat.context(long, 1)


def test_fit_renders_the_template_of_the_model_without_the_oldest_turns(shared):
    tokenizer = released(shared, "qwen3")
    messages = [{"role": role, "content": text} for role, text in CONVERSATION]
    off = {"enable_thinking": False}
    kept = [messages[0], *messages[3:]]
    right = tokenizer.apply_chat_template(kept, add_generation_prompt=True, **off)
    budget = len(tokenizer.encode(right, allow_special=True))
    found = chat.fit(messages, tokenizer, budget=budget, variables=off)
    assert tokenizer.decode(found.tokens) == right and found.dropped == 1
