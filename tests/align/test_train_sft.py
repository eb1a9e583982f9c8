"""Evaluation during fine-tuning."""

import json
import math
import types

import pytest

from qwen_jax.align import train_sft
from qwen_jax.tokenizer.bpe import Tokenizer


def test_held_out_counts_only_the_bytes_of_the_answers_text(tmp_path):
    row = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "Yes."}]}
    path = tmp_path / "held.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    config = types.SimpleNamespace(
        model=types.SimpleNamespace(context_length=128),
        data=types.SimpleNamespace(mask="assistant", packed=True),
        train=types.SimpleNamespace(eval_batches=None),
    )
    # "Yes" and "." are tokens, so an answer has three with <|im_end|>.
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"Ye": 256, b"Yes": 257}
    text = train_sft._held_out("held", str(path), config, Tokenizer(ranks), lambda line: None)  # type: ignore[arg-type]
    assert text.bytes_per_token == 4 / 3
    # A loss that gave 2.44 bits per byte when <|im_end|> counted as ten bytes of text.
    loss = 2.435 * math.log(2) * 14 / 3
    assert loss / math.log(2) / text.bytes_per_token == pytest.approx(8.52, abs=0.01)
