"""Which turns of a conversation fit."""

import dataclasses

import pytest

from qwen_jax import sizes
from qwen_jax.config import ContextExtension
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.inference import chat
from qwen_jax.tokenizer import chatml
from qwen_jax.tokenizer.bpe import Tokenizer

TALK = [
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


@pytest.mark.parametrize("messages", [TALK, TALK[1:]])  # the default system message too
def test_the_oldest_turns_go_first_and_the_system_message_stays(tokenizer, messages):
    system = messages[:1] if messages is TALK else []
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
    with pytest.raises(DataError, match=f"{len(kept[2])} tokens, and {len(kept[2]) - 1} are left"):
        chat.fit(messages, tokenizer, budget=len(kept[2]) - 1)


def test_an_answer_that_follows_no_question_goes_with_the_start(tokenizer):
    talk = [("assistant", "Welcome."), ("user", "Hi")]
    tokens = chatml.prompt(talk[1:], tokenizer).tolist()
    found = chat.fit(talk, tokenizer, budget=len(tokens))
    assert list(found.tokens) == tokens


def test_the_context_is_four_training_lengths_where_it_can_be_extended():
    long = dataclasses.replace(sizes.TINY, context_length=2048)
    short = dataclasses.replace(long, extension=ContextExtension(dynamic_ntk=False))
    assert chat.context(long, None) == (
        8192,
        "8,192 tokens (trained at 2,048, extended by dynamic NTK)",
    )
    assert chat.context(short, None) == (2048, "2,048 tokens (trained at 2,048)")
    assert "nonsense" in chat.context(short, 2049)[1]
    assert "quality falls" in chat.context(long, 9000)[1]
    with pytest.raises(ConfigError, match="context of 1 "):
        chat.context(long, 1)
