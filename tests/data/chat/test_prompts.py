"""Prompts: reading and rendering them, and selection over thousands of tags."""

import collections
import json
import random

import numpy as np
import pytest

from qwen_jax.data.chat.conversations import Counts
from qwen_jax.data.chat.prompts import choose_diverse, read_prompt_rows, read_prompts
from qwen_jax.errors import DataError
from qwen_jax.tokenizer.bpe import Tokenizer

TOKENIZER = Tokenizer({bytes([byte]): byte for byte in range(256)})
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


def read(tmp_path, rows, max_tokens=1000):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    counts = Counts()
    return [
        TOKENIZER.decode(tokens)
        for tokens in read_prompts([path], TOKENIZER, max_tokens=max_tokens, counts=counts)
    ], counts


def test_read_prompts_ends_each_format_with_the_assistant_header(tmp_path):
    want = f"{SYSTEM}<|im_start|>user\n1+2?<|im_end|>\n<|im_start|>assistant\n"
    texts, counts = read(
        tmp_path,
        [
            {"prompt": "1+2?"},
            {"instruction": "1+2?", "output": "3"},
            {
                "messages": [
                    {"role": "user", "content": "1+2?"},
                    {"role": "assistant", "content": "3"},
                ]
            },
            {"conversations": [{"from": "human", "value": "1+2?"}]},
        ],
    )
    assert texts == [want] * 4 and counts.kept == 4


def test_read_prompts_counts_long_rows_and_rows_without_a_prompt(tmp_path):
    texts, counts = read(
        tmp_path,
        [
            {"prompt": "a"},
            {"prompt": "b" * 60},
            {"prompt": " "},
            {"messages": [{"role": "assistant", "content": "c"}]},
        ],
        max_tokens=100,
    )
    assert len(texts) == counts.kept == 1
    assert counts.skipped == {"longer than 100 tokens": 1, "no prompt": 2}
    with pytest.raises(DataError, match="no usable prompts"):
        read(tmp_path, [{"prompt": "b" * 60}], max_tokens=100)
    with pytest.raises(DataError, match="has no prompts: it is empty"):
        read(tmp_path, [], max_tokens=100)


@pytest.mark.parametrize(
    "columns, unread", [((), {"level": 2, "test": 1}), ({"level"}, {"test": 1}), (None, {})]
)
def test_read_prompt_rows_keeps_rows_and_counts_only_keys_that_nobody_reads(
    tmp_path, columns, unread
):
    rows = [
        {"question": "1+1?", "answer": "2", "level": 1},
        {"question": "b" * 99, "answer": "2"},
        {"prompt": "2+3?", "level": 2, "test": [5]},
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    counts = Counts()
    found = list(read_prompt_rows([path], TOKENIZER, max_tokens=99, counts=counts, columns=columns))
    assert [row for _, row in found] == [rows[0], rows[2]] and counts.kept == 2
    assert "2+3?" in TOKENIZER.decode(found[1][0])
    assert counts.unread.get(str(path), {}) == unread


def test_read_prompts_reads_real_conversations(shared):
    counts = Counts()
    found = list(
        read_prompts(
            [shared / "data" / "chat" / "alpaca_en_demo.json"],
            TOKENIZER,
            max_tokens=300,
            counts=counts,
        )
    )
    assert len(found) == counts.kept > 500
    assert max(map(len, found)) <= 300
    assert all(
        TOKENIZER.decode(tokens[-11:]).endswith("<|im_start|>assistant\n") for tokens in found
    )


def test_choose_diverse_orders_by_complexity_ties_and_no_tags():
    tags = {
        "none": [],
        "a": ["math"],
        "b": ["math", "poem"],
        "c": ["code"],
        "d": ["math"],
        "e": ["code", "code"],
    }
    assert choose_diverse(tags, 2) == ["b", "c"]  # two tags first; then the first with a new one
    assert choose_diverse(tags, 6) == ["b", "c", "a", "e", "d", "none"]
    with pytest.raises(DataError, match="7 prompts were requested, but there are only 6"):
        choose_diverse(tags, 7)


def test_choose_diverse_covers_thousands_of_tags_sooner_than_random():
    """6,600 tags, as in the report, with the frequencies of words (Zipf)."""
    random_state, rng = random.Random(0), np.random.default_rng(0)
    weights = 1 / np.arange(1, 6601)
    sampled = rng.choice(6600, size=(20_000, 5), p=weights / weights.sum())
    tags = {
        f"prompt {i}": [f"tag {t}" for t in row[: random_state.randrange(6)]]
        for i, row in enumerate(sampled)
    }
    chosen = choose_diverse(tags, 2000)
    assert len(set(chosen)) == 2000 and chosen == choose_diverse(tags, 2000)

    def covered(prompts):
        return len({tag for prompt in prompts for tag in tags[prompt]})

    assert covered(chosen) > 1.5 * covered(random_state.sample(sorted(tags), 2000))

    def share(prompts):
        counter = collections.Counter(tag for prompt in prompts for tag in set(tags[prompt]))
        return counter.most_common(1)[0][1] / counter.total()

    # Balanced: the share of the most common tag is smaller than in the data.
    assert share(chosen) < 0.8 * share(tags)
    # Complex: more tags per prompt than in the data.
    assert np.mean([len(set(tags[p])) for p in chosen]) > np.mean(
        [len(set(t)) for t in tags.values()]
    )


def test_choose_diverse_keeps_the_order_if_all_have_one_tag():
    chosen = choose_diverse({str(i): ["same"] for i in range(1000)}, 300)
    assert chosen == [str(i) for i in range(300)]
