"""Shards: written atomically, the same bytes for the same text, and damage is detected."""

import json
import random

import numpy as np
import pytest

from qwen_jax.data import shards
from qwen_jax.data.document import Document
from qwen_jax.errors import DataError
from qwen_jax.tokenizer.load import load_tokenizer
from tests.helpers import tokenizer_folders as folders
from tests.helpers.shard_text import Bytes, make_documents, read


def test_write_stores_every_document_once(tmp_path):
    documents = make_documents()
    shards.write(documents, tmp_path / "s", Bytes(), eval_fraction=0.1, num_shards=3)
    found = []
    for side in ("train", "eval"):
        opened = shards.open_shards(tmp_path / "s" / side)
        tokens = read(tmp_path / "s" / side)
        parts = np.split(tokens, np.flatnonzero(tokens == 256) + 1)[:-1]
        assert opened.documents == len(parts) > 0 and opened.tokens == len(tokens)
        assert opened.text_bytes == len(tokens) - len(parts)
        found += [bytes(part[:-1].astype(np.uint8)).decode() for part in parts]
    assert sorted(found) == sorted(document.text for document in documents)
    assert opened.dtype == "uint16"


def test_write_gives_the_same_bytes_for_any_order_and_after_a_kill(tmp_path):
    documents = make_documents()
    shards.write(documents, tmp_path / "a", Bytes(), eval_fraction=0.1, num_shards=2)
    random.Random(1).shuffle(documents)
    (tmp_path / "b.writing").mkdir()
    (tmp_path / "b.writing" / "half").write_text("left by a killed process")
    shards.write(documents, tmp_path / "b", Bytes(), eval_fraction=0.1, num_shards=2)
    a, b = (
        {str(p.relative_to(tmp_path / x)): p.read_bytes() for p in (tmp_path / x).rglob("*.*")}
        for x in "ab"
    )
    assert a == b
    shards.write(documents, tmp_path / "c", Bytes(), seed=1)
    assert not np.array_equal(read(tmp_path / "c/train"), read(tmp_path / "a/train"))


@pytest.mark.parametrize("block", [1, 60, 1000])
def test_gather_gives_the_same_bytes_for_any_block_size(tmp_path, monkeypatch, block):
    """Blocks of one token, less than a document, or several documents, from several parts."""
    monkeypatch.setattr(shards, "_PART_CHARACTERS", 900)
    for name in "ab":
        shards.write(make_documents(), tmp_path / name, Bytes(), eval_fraction=0.1, num_shards=2)
        monkeypatch.setattr(shards, "_BLOCK", block)
    for path in (tmp_path / "a").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_gather_names_a_truncated_part(tmp_path):
    shards.scatter(make_documents(), tmp_path / "part", Bytes(), split=shards.Split())
    content = (tmp_path / "part.bin").read_bytes()
    (tmp_path / "part.bin").write_bytes(content[:-7])
    with pytest.raises(DataError, match="is truncated"):
        shards.gather([tmp_path / "part"], tmp_path / "shard", 0, np.dtype("<u2"))
    assert not (tmp_path / "shard").exists()


def test_write_failure_leaves_no_files(tmp_path):
    def broken():
        yield Document("a", "text")
        raise DataError("broken", "here", "fix it")

    with pytest.raises(DataError, match="broken"):
        shards.write(broken(), tmp_path / "s", Bytes())
    with pytest.raises(DataError, match="no documents"):
        shards.write([], tmp_path / "s", Bytes())
    with pytest.raises(DataError, match="none of .* documents is in eval"):
        shards.write(make_documents(2), tmp_path / "s", Bytes(), eval_fraction=1e-9)
    assert list(tmp_path.iterdir()) == []


def test_write_does_not_touch_an_existing_folder(tmp_path):
    shards.write(make_documents(), tmp_path / "s", Bytes())
    before = read(tmp_path / "s/train")
    with pytest.raises(DataError, match="already exists"):
        shards.write(make_documents(3), tmp_path / "s", Bytes())
    np.testing.assert_array_equal(read(tmp_path / "s/train"), before)


def damage_bit(folder):
    path = folder / "tokens-00000.bin"
    data = bytearray(path.read_bytes())
    data[100] ^= 4
    path.write_bytes(data)


def damage_length(folder):
    path = folder / "tokens-00000.bin"
    path.write_bytes(path.read_bytes()[:-2])


def damage_manifest(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"end_of_text": 256', '"end_of_text": 255'))


def damage_json(folder):
    (folder / "manifest.json").write_text("{")


@pytest.mark.parametrize(
    "damage, message",
    [
        (damage_bit, "tokens-00000.bin does not match its SHA-256"),
        (damage_length, "bytes, not"),
        (damage_manifest, "was modified"),
        (damage_json, "manifest.json is not valid JSON"),
        (lambda folder: (folder / "tokens-00000.bin").unlink(), "is missing"),
    ],
)
def test_open_shards_detects_damage(tmp_path, damage, message):
    shards.write(make_documents(), tmp_path / "s", Bytes())
    damage(tmp_path / "s/train")
    with pytest.raises(DataError, match=message):
        shards.open_shards(tmp_path / "s/train")


def test_open_shards_explains_a_wrong_folder(tmp_path):
    shards.write(make_documents(), tmp_path / "s", Bytes())
    with pytest.raises(DataError, match="did you mean .*train"):
        shards.open_shards(tmp_path / "s")
    for name in "ab":  # as prepare_data writes them
        shards.write(make_documents(), tmp_path / "out/shards" / name, Bytes())
    for wrong in ("out", "out/shards"):
        with pytest.raises(DataError, match="did you mean .*shards/a/train,.*shards/b/train.?"):
            shards.open_shards(tmp_path / wrong)
    with pytest.raises(DataError, match="shard folder does not exist"):
        shards.open_shards(tmp_path / "t")
    path = tmp_path / "s/train/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 9}))
    with pytest.raises(DataError, match="format 9"):
        shards.open_shards(tmp_path / "s/train")


def test_write_keeps_the_files_of_the_tokenizer(tmp_path):
    folders.write(tmp_path / "tokenizer", "transformers 5")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    shards.write(make_documents(), tmp_path / "s", tokenizer)
    for file in (tmp_path / "tokenizer").iterdir():
        assert (tmp_path / "s" / file.name).read_bytes() == file.read_bytes()
    found = load_tokenizer(tmp_path / "s")
    assert found.fingerprint == tokenizer.fingerprint and found.settings == tokenizer.settings
    assert not (tmp_path / "s/tokenizer.tiktoken").exists()
