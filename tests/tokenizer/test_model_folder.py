"""The tokenizer in a model folder, and whether it fits the model."""

import dataclasses

import pytest

from qwen_jax.errors import QwenJaxError
from qwen_jax.tokenizer.model_folder import check_vocabulary, find_tokenizer
from tests.helpers.tiny_checkpoint import CONFIG, TOKENIZER, write


def test_find_tokenizer_finds_one_or_counts_them(tmp_path):
    released, bare = write(tmp_path / "tiny"), tmp_path / "bare"
    with pytest.raises(QwenJaxError, match="the folder of the model does not exist"):
        find_tokenizer(bare)
    bare.mkdir()
    with pytest.raises(QwenJaxError, match="no model in this folder"):
        find_tokenizer(bare)
    (bare / "config.json").write_text("{}")
    with pytest.raises(QwenJaxError, match="there are none of them"):
        find_tokenizer(bare)
    assert find_tokenizer(released).fingerprint == TOKENIZER.fingerprint
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).write_bytes((released / name).read_bytes())
    assert find_tokenizer(bare).fingerprint == TOKENIZER.fingerprint
    (bare / "tokenizer.json").unlink()
    for name in ("a.tiktoken", "b.tiktoken"):
        TOKENIZER.save(bare / name)
    with pytest.raises(QwenJaxError, match="2 .tiktoken files"):
        find_tokenizer(bare)
    assert find_tokenizer(bare, str(bare / "b.tiktoken")).fingerprint == TOKENIZER.fingerprint


def test_find_tokenizer_reads_the_special_tokens_of_a_released_folder(tmp_path):
    released = write(tmp_path / "tiny")
    for name in ("tokenizer_config.json", "tokenizer.json"):
        text = (released / name).read_text().replace("<|extra_3|>", "<|tool|>")
        (released / name).write_text(text)
        if name == "tokenizer_config.json":
            with pytest.raises(QwenJaxError, match="another has <|extra_3|> with the id"):
                find_tokenizer(released)
    assert "<|tool|>" in find_tokenizer(released).special_tokens


def test_check_vocabulary_rejects_more_ids_than_the_model_has():
    check_vocabulary(TOKENIZER, CONFIG, flag="--tokenizer")
    small = dataclasses.replace(CONFIG, vocab_size=TOKENIZER.vocab_size - 1)
    with pytest.raises(QwenJaxError, match="464 ids, but the model has vocab_size=463"):
        check_vocabulary(TOKENIZER, small, flag="--tokenizer")
