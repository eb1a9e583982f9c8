"""Pairs: all formats give the same pairs, and PairRows has the right ends and masks."""

import collections
import json

import numpy as np
import pytest

from qwen_jax.data.chat.conversations import Counts
from qwen_jax.data.chat.pairs import Pair, PairRows, read_pairs
from qwen_jax.errors import DataError
from qwen_jax.tokenizer import chatml
from qwen_jax.tokenizer.bpe import Tokenizer

TOKENIZER = Tokenizer({bytes([byte]): byte for byte in range(256)})
HH = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Hello. \t\n\nHuman: Sum: 1 2\n\nAssistant: 3",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Hello. \t\n\nHuman: Sum: 1 2\n\nAssistant: 4",
}
CONVERSATION = {
    "conversations": [
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello."},
        {"from": "human", "value": "Sum: 1 2"},
    ]
}
SAME = {
    "HH": HH,
    "ShareGPT": CONVERSATION
    | {"chosen": {"from": "gpt", "value": "3"}, "rejected": {"from": "gpt", "value": "4"}},
    "messages": {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Sum: 1 2"},
            {"role": "assistant", "content": "whatever was said"},
        ],
        "chosen": [{"role": "user", "content": "Sum: 1 2"}, {"role": "assistant", "content": "3"}],
        "rejected": "4",
    },
    "Alpaca": {
        "instruction": "Sum: 1 2",
        "history": [["Hi", "Hello."]],
        "chosen": "3",
        "rejected": "4",
    },
}


def write(folder, rows):
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", SAME)
def test_read_pairs_gives_the_same_pair_for_each_format(tmp_path, name):
    (pair,) = read_pairs([write(tmp_path, [SAME[name]])], Counts())
    assert pair.prompt == (("user", "Hi"), ("assistant", "Hello."), ("user", "Sum: 1 2"))
    assert (pair.chosen, pair.rejected) == ("3", "4")


def test_pair_rows_weigh_the_calls_of_a_response_and_not_their_results():
    steps = (("assistant", "call"), ("tool", "result"))
    pair = Pair((("user", "hi"),), "good", "bad", "here", steps)
    (row,) = PairRows([pair], TOKENIZER, context_length=200, counts=Counts(kept=1))
    weighed = [row.targets[side][row.response_weights[side] == 1].tolist() for side in (0, 1)]
    end = TOKENIZER.im_end
    assert weighed == [[*b"call", end, *b"good", end], [*b"bad", end]]
    assert [row.tokens[side, row.end[side]] for side in (0, 1)] == [end, end]
    short = PairRows([pair], TOKENIZER, context_length=80, counts=Counts(kept=1))[0]
    assert row.response_weights.sum() == short.response_weights.sum() == 14
    assert short.targets[0][short.response_weights[0] == 1].tolist() == weighed[0]


@pytest.mark.parametrize("label, chosen", [(1, "A"), (0, "B")])
def test_read_pairs_takes_shp_label_1_as_a_preferred(tmp_path, label, chosen):
    row = {
        "history": "Why?",
        "human_ref_A": "A",
        "human_ref_B": "B",
        "labels": label,
        "score_ratio": 2.0,
    }
    (pair,) = read_pairs([write(tmp_path, [row])], Counts())
    assert pair.prompt == (("user", "Why?"),)
    assert pair.chosen == chosen and {pair.chosen, pair.rejected} == {"A", "B"}


BAD = [
    ({"prompt": "Hi", "chosen": "a", "rejected": "a"}, "chosen and rejected are equal"),
    ({"prompt": "Hi", "chosen": "a", "rejected": " \n"}, "an empty response"),
    ({"prompt": "Hi", "chosen": None, "rejected": "a"}, "a response is not text"),
    (
        CONVERSATION | {"conversations": [], "chosen": "a", "rejected": "b"},
        "roles do not alternate",
    ),
    (
        HH | {"rejected": HH["rejected"].replace("Hi", "Ho")},
        "the dialogues differ before the last response",
    ),
    (HH | {"rejected": "\n\nHuman: Hi"}, "no assistant turn"),
    (
        {"history": "?", "human_ref_A": "a", "human_ref_B": "b", "labels": 7},
        "the label is neither 0 nor 1",
    ),
    ({"history": None, "human_ref_A": "a", "human_ref_B": "b", "labels": 1}, "a turn without text"),
]


@pytest.mark.parametrize("row, reason", BAD, ids=[reason for _, reason in BAD])
def test_read_pairs_skips_an_unusable_row_with_its_reason(tmp_path, row, reason):
    counts = Counts()
    path = write(tmp_path, [HH, row, row])
    assert len(list(read_pairs([path], counts))) == counts.kept == 1
    assert counts.skipped == {reason: 2} and "line 2" in str(counts)


def test_read_pairs_rejects_a_file_without_pairs(tmp_path):
    with pytest.raises(DataError, match="unknown format: the row has the keys text"):
        list(read_pairs([write(tmp_path, [{"text": "a"}])], Counts()))
    conversation = {"messages": [{"role": "user", "content": "a"}]}
    with pytest.raises(DataError, match="keys messages.\n(?s:.*)conversations or prompts is not"):
        list(read_pairs([write(tmp_path, [conversation])], Counts()))
    with pytest.raises(DataError, match="no usable pairs: 0 kept; 1 skipped"):
        list(read_pairs([write(tmp_path, [BAD[0][0]])], Counts()))


@pytest.mark.parametrize(
    "name, pairs",
    [("dpo_en_demo.json", 300), ("dpo_zh_demo.json", 300), ("hh_harmless_test.jsonl.gz", 2312)],
)
def test_read_pairs_counts_what_it_drops_of_real_files(shared, name, pairs):
    counts = Counts()
    found = list(read_pairs([shared / "data" / "preference" / name], counts))
    assert len(found) + counts.skipped.total() == pairs
    assert len(found) == counts.kept > 0.97 * pairs
    for pair in found:
        assert pair.prompt[-1][0] in ("user", "tool") and pair.chosen != pair.rejected
        assert not any("\n\nAssistant:" in text for _, text in pair.prompt)


PAIR = Pair((("system", "Be brief."), ("user", "a long question")), "yes!", "no", "here")


def rows_of(*pairs, context_length=128):
    counts = Counts(kept=len(pairs))
    return PairRows(pairs, TOKENIZER, context_length=context_length, counts=counts), counts


def test_pair_rows_hold_the_dialogue_up_to_the_end_token_of_the_response():
    rows, _ = rows_of(PAIR)
    batch = rows[0]
    for side, response in enumerate(("yes!", "no")):
        n = batch.end[side] + 1
        full = chatml.render([*PAIR.prompt, ("assistant", response)], TOKENIZER).tokens
        np.testing.assert_array_equal(batch.tokens[side, :n], full[:-1])  # without the line end
        assert batch.tokens[side, batch.end[side]] == TOKENIZER.im_end
        assert batch.segment_ids[side].tolist() == [1] * n + [0] * (128 - n)
        learned = batch.targets[side][batch.response_weights[side] == 1]
        assert TOKENIZER.decode(learned) == f"{response}<|im_end|>"
        np.testing.assert_array_equal(batch.targets[side, : n - 1], batch.tokens[side, 1:n])
        assert batch.response_weights[side, n - 1 :].sum() == 0
    assert batch.weights == 1 and rows.padding.weights == 0
    with pytest.raises(IndexError):
        rows[1]


def test_pair_rows_truncate_a_long_prompt_on_the_left_by_the_same_length():
    rows, counts = rows_of(PAIR, context_length=32)
    batch = rows[0]
    assert counts.changed == {"prompt truncated to fit 32 tokens": 1} and counts.kept == 1
    assert batch.end.tolist() == [31, 29]
    starts = [int(np.flatnonzero(weights)[0]) for weights in batch.response_weights]
    assert starts[0] == starts[1]
    np.testing.assert_array_equal(
        batch.tokens[0, : starts[0] + 1], batch.tokens[1, : starts[0] + 1]
    )
    for side, response in enumerate(("yes!", "no")):
        learned = batch.targets[side][batch.response_weights[side] == 1]
        assert TOKENIZER.decode(learned) == f"{response}<|im_end|>"


def test_pair_rows_skip_a_response_that_does_not_fit():
    long = Pair(PAIR.prompt, "x" * 40, "no", "there")
    rows, counts = rows_of(PAIR, long, context_length=32)
    assert len(rows) == 1 == counts.kept
    assert counts.skipped == collections.Counter({"a response of 32 tokens or more": 1})
    with pytest.raises(DataError, match="no pairs to train on"):
        rows_of(long, context_length=32)
