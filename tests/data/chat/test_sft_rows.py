"""SFT rows: the loss is only on responses, and packing changes only the padding."""

import random
import unicodedata

import jax
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.data.batches import Batches, eval_batches, stack_trees
from qwen_jax.data.chat.conversations import Conversation, Counts, read_conversations
from qwen_jax.data.chat.preview import preview, trained_by_turn
from qwen_jax.data.chat.sft_rows import Example, PackedRows, encode, trained_bytes
from qwen_jax.data.packing import pack
from qwen_jax.errors import DataError
from qwen_jax.model.spec import init_params
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.chatml import original_loss_weights, render
from qwen_jax.train.language_model import make_objective

CHAT = ("alpaca_en_demo.json", "alpaca_zh_demo.json", "glaive_toolcall_en_demo.json")
TURNS = (("user", "Hi"), ("assistant", "Hello."), ("user", "Bye"), ("assistant", "See you."))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer({bytes([byte]): byte for byte in range(256)})


@pytest.mark.parametrize("name", CHAT)
def test_encode_trains_only_on_assistant_turns_of_real_conversations(shared, name):
    qwen = Tokenizer.from_file(shared / "reference" / "qwen.tiktoken")
    counts = Counts()
    conversations = list(read_conversations([shared / "data" / "chat" / name], counts))[:300]
    for conversation in conversations:
        examples = list(encode([conversation], qwen, context_length=1 << 20, counts=counts))
        trained = "".join(qwen.decode(each.tokens[each.weights == 1]) for each in examples)
        messages = [m for m in conversation.rendered.messages if m.role == "assistant"]
        if conversation.rendered.tools or any(message.calls for message in messages):
            for message in messages:  # in ReAct, in their order
                parts = [message.text, *(f"Action: {call.name}" for call in message.calls)]
                for part in filter(None, parts):
                    _, found, trained = trained.partition(unicodedata.normalize("NFC", part))
                    assert found == unicodedata.normalize("NFC", part)
        else:
            assert trained == unicodedata.normalize(
                "NFC", "".join(message.text + "<|im_end|>" for message in messages)
            )
    assert len(conversations) >= 290


def test_packed_rows_waste_little_on_real_conversations(shared):
    qwen = Tokenizer.from_file(shared / "reference" / "qwen.tiktoken")
    counts = Counts()
    conversations = read_conversations([shared / "data" / "chat" / name for name in CHAT], counts)
    examples = list(encode(conversations, qwen, context_length=2048, counts=counts))
    rows = PackedRows(examples, context_length=2048)
    assert rows.efficiency >= 0.98
    assert sum(len(example) for example in examples) == sum(
        int(np.count_nonzero(rows[i].segment_ids)) for i in range(len(rows))
    )


def test_original_loss_weights_keep_the_markers_of_every_turn(tokenizer):
    rendered = render(TURNS, tokenizer)
    kept = tokenizer.decode(rendered.tokens[original_loss_weights(rendered) == 1])
    assert kept == (
        "<|im_start|><|im_end|>\n" * 2
        + "<|im_start|>Hello.<|im_end|>\n"
        + "<|im_start|><|im_end|>\n"
        + "<|im_start|>See you.<|im_end|>\n"
    )


@pytest.mark.parametrize("system", [(), (("system", "s"),)])
def test_encode_gives_no_loss_to_turns_that_are_not_trained(tokenizer, system):
    turns, marks = (*system, *TURNS), (*(False,) * len(system), False, False, False, True)
    kept = {}
    for mask in ("assistant", "original"):
        conversation = Conversation(turns, "a", marks)
        counts = Counts(kept=1)
        (example,) = encode([conversation], tokenizer, context_length=500, counts=counts, mask=mask)
        kept[mask] = tokenizer.decode(example.tokens[example.weights == 1])
    assert kept["assistant"] == "See you.<|im_end|>"
    markers = "<|im_start|><|im_end|>\n"
    assert kept["original"] == 2 * markers + markers + "<|im_start|>See you.<|im_end|>\n"


def test_encode_skips_a_conversation_whose_trained_turn_does_not_fit(tokenizer):
    marked = Conversation((*TURNS[:2], ("user", "x" * 300), TURNS[3]), "a", (False,) * 3 + (True,))
    counts = Counts(kept=1)
    for mask in ("assistant", "original"):
        assert list(encode([marked], tokenizer, context_length=128, counts=counts, mask=mask)) == []
    assert counts.skipped == {"no response within 128 tokens (--data.context_length)": 2}


@pytest.mark.parametrize(
    "answers, trained, size",
    [
        (["Yes."], None, 4),
        (["Yes.", "No"], None, 6),
        (["Yes.", "No"], [False, True], 2),
        (["\u597d"], None, 3),
        (["e\u0301"], None, 2),  # one character after normalization
        (["\U0001f600!"], None, 5),
        (["a<|im_end|>"], None, 11),  # in a text, the name of a token is text
        (["<|endoftext|>"], None, 13),
        ([" \n a"], None, 4),
        (["\ud800x"], None, 4),  # a lone surrogate becomes U+FFFD
    ],
)
@pytest.mark.parametrize("mask", ["assistant", "original"])
def test_trained_bytes_are_those_of_the_text_without_special_tokens(
    tokenizer, answers, trained, size, mask
):
    turns = tuple(turn for text in answers for turn in (("user", "Ask?"), ("assistant", text)))
    marks = trained and tuple(mark for flag in trained for mark in (False, flag))
    counts = Counts(kept=1)
    conversation = Conversation(turns, "a", marks)
    (example,) = encode([conversation], tokenizer, context_length=500, counts=counts, mask=mask)
    # The released script also trains the newline after each turn, which is a byte of text.
    lines = {"assistant": 0, "original": 1 + len(turns) - (trained or []).count(False)}
    assert trained_bytes([example], tokenizer) == size + lines[mask]


def test_trained_bytes_count_a_truncated_character_once(tokenizer):
    conversation = Conversation((("user", "?"), ("assistant", "\u597d" * 100)), "a")
    (example,) = encode([conversation], tokenizer, context_length=150, counts=Counts(kept=1))
    assert trained_bytes([example], tokenizer) == example.weights.sum()  # each byte is a token


def test_encode_truncates_long_examples_and_skips_those_without_targets(tokenizer):
    long_response = Conversation((("user", "Hi"), ("assistant", "x" * 500)), "a")
    long_prompt = Conversation((("user", "x" * 500), ("assistant", "Hi")), "b")
    counts = Counts(kept=2)
    (example,) = encode([long_response, long_prompt], tokenizer, context_length=128, counts=counts)
    assert len(example) == 128 and example.weights.sum() > 0
    assert counts.kept == 1 and counts.changed == {
        "truncated to 128 tokens (--data.context_length)": 1
    }
    assert counts.skipped == {"no response within 128 tokens (--data.context_length)": 1}
    with pytest.raises(DataError, match="no examples to train on"):
        PackedRows([], context_length=128)


def random_examples(tokenizer, number=12):
    rng = random.Random(0)
    conversations = [
        Conversation(
            (
                ("user", "q" * rng.randrange(1, 20)),
                ("assistant", "".join(rng.choices("abc ", k=rng.randrange(1, 60))) + "."),
            ),
            str(i),
        )
        for i in range(number)
    ]
    return list(encode(conversations, tokenizer, context_length=256, counts=Counts(kept=number)))


def test_packed_rows_have_the_gradients_of_unpacked_ones(tokenizer):
    config = sizes.TINY.__class__(**{**vars(sizes.TINY), "vocab_size": 512, "context_length": 256})
    params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
    objective = make_objective(config)
    examples = random_examples(tokenizer)

    @jax.jit
    @jax.value_and_grad
    def mean(params, batch):
        sums = objective(params, batch, None)
        return sums.loss_sum / sums.weight_sum

    packed = PackedRows(examples, context_length=256)
    unpacked = PackedRows(examples, context_length=256, packed=False)

    def gradient(rows):
        batch = stack_trees([rows[i % len(rows)] for i in range(len(unpacked))])
        batch.loss_weights[len(rows) :] = 0  # one shape compiles once: repeated rows count nothing
        return mean(params, batch)

    assert len(packed) < len(unpacked) == len(examples)
    (loss, grads), (want_loss, want_grads) = gradient(packed), gradient(unpacked)
    np.testing.assert_allclose(loss, want_loss, rtol=1e-6)
    for got, want in zip(jax.tree.leaves(grads), jax.tree.leaves(want_grads), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)


def test_pack_keeps_every_example_once_and_wastes_little():
    rng = random.Random(0)
    lengths = [min(2048, int(rng.lognormvariate(5.5, 1)) + 1) for _ in range(3000)]
    bins = pack(lengths, 2048)
    assert sorted(index for packed in bins for index in packed) == list(range(3000))
    assert max(sum(lengths[i] for i in packed) for packed in bins) <= 2048
    assert len(bins) <= -(-sum(lengths) // 2048) + 2


def test_batches_depend_only_on_the_seed_and_the_step(tokenizer):
    rows = PackedRows(random_examples(tokenizer), context_length=256, packed=False)

    def make(host_rows=None, seed=0):
        return Batches(rows, batch_size=4, seed=seed, collate=stack_trees, rows=host_rows)

    with make().iterate(start_step=2) as stream:
        third = next(stream)
    assert np.array_equal(third.tokens, make().batch(2).tokens)
    halves = [make(host_rows=(2 * i, 2 * i + 1)).batch(2).tokens for i in range(2)]
    assert np.array_equal(np.concatenate(halves), third.tokens)
    epoch = np.concatenate([make().batch(step).tokens for step in range(3)])
    assert len({row.tobytes() for row in epoch}) == len(
        {rows[i].tokens.tobytes() for i in range(len(rows))}
    )
    assert not np.array_equal(make(seed=1).batch(2).tokens, third.tokens)


def test_eval_batches_have_every_row_once_and_empty_padding(tokenizer):
    rows = PackedRows(random_examples(tokenizer), context_length=256, packed=False)
    batches = list(eval_batches(rows, 8, 10))
    assert [batch.tokens.shape for batch in batches] == [(8, 256)] * 2
    assert sum(batch.loss_weights.sum() for batch in batches) == sum(
        rows[i].loss_weights.sum() for i in range(len(rows))
    )


def test_preview_marks_the_trained_tokens(tokenizer):
    rendered = render(TURNS[:2], tokenizer)
    weights = np.zeros(len(rendered.tokens), np.float32)
    span = rendered.spans[-1]
    weights[span.start : span.end] = 1
    example = Example(rendered.tokens, weights)
    assert preview(example, tokenizer, color=False).endswith("assistant\n⟦Hello.<|im_end|>⟧\n")
    assert "\x1b[1;32mHello.<|im_end|>\x1b[0m" in preview(example, tokenizer)
    assert preview(example, tokenizer).startswith(
        "trained tokens of each turn: system 0/38, user 0/10, assistant 7/19\n"
    )


def test_trained_by_turn_shows_turns_that_are_not_trained(tokenizer):
    conversation = Conversation(TURNS, "a", (False, False, False, True))
    (example,) = encode([conversation], tokenizer, context_length=500, counts=Counts(kept=1))
    assert [turn[:2] for turn in trained_by_turn(example, tokenizer)] == [
        ("system", 0), ("user", 0), ("assistant", 0), ("user", 0), ("assistant", 9)]  # fmt: skip
    assert sum(total for _, _, total in trained_by_turn(example, tokenizer)) == len(example) + 1
