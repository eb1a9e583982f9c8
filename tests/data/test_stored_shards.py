"""Token shards in an object store give the batches of those on a disk."""

import pickle
import shutil

import jax
import numpy as np
import pytest

from qwen_jax.config import DataConfig
from qwen_jax.data import shards, stored_shards
from qwen_jax.data.document import Document
from qwen_jax.data.loader import Loader, TokenSequences
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.train.attempts import inputs


@pytest.fixture
def words(tmp_path, monkeypatch):
    """Returns the folder of shards in several files; its copy in a store is next to it."""
    monkeypatch.setenv("QWEN_JAX_STAGING", str(tmp_path / "staging"))
    rng = np.random.default_rng(0)
    documents = [
        Document(str(i), " ".join(rng.choice(["a", "bc", "def", "gh"], 90))) for i in range(90)
    ]
    tokenizer = Tokenizer({bytes([byte]): byte for byte in range(256)})
    shards.write(documents, tmp_path / "words", tokenizer, num_shards=3)
    shutil.copytree(tmp_path / "words", tmp_path / "store/words")
    return tmp_path / "words/train"


@pytest.fixture
def url(words):
    return f"flat://{words.parent.parent}/store/words/train"


def loader(source) -> Loader:
    end = shards.open_shards(source, verify=False).end_of_text
    config = DataConfig(sources=(str(source),))
    return Loader(config, context_length=32, batch_size=16, end_of_text=end, seed=0)


def same_batches(a: Loader, b: Loader) -> None:
    assert a.names == b.names and a.tokens_per_epoch == b.tokens_per_epoch
    with a.iterate(3) as left, b.iterate(3) as right:
        for _ in range(60):
            jax.tree.map(np.testing.assert_array_equal, next(left), next(right))


def test_stored_shards_of_a_small_source_are_copied(words, url):
    opened = shards.open_shards(url)
    assert opened.url is None and opened.tokens == shards.open_shards(words).tokens
    same_batches(loader(words), loader(url))


def test_stored_shards_are_read_by_ranges(words, url, monkeypatch):
    monkeypatch.setattr(shards, "_VERIFY_BYTES", 0)
    monkeypatch.setattr(stored_shards, "_SMALL_BLOCK", 512)
    for gib, block in (("1", 1 << 20), (str(8 * 512 / 2**30), 512)):  # all fits; 8 blocks
        monkeypatch.setenv("QWEN_JAX_CACHE_GIB", gib)
        found = loader(url)
        assert found._sequences[0]._stored.block == block
        same_batches(loader(words), found)


def test_stored_shards_cache_is_bounded_and_warm(url, monkeypatch):
    opened = shards.open_shards(url, verify=False)
    monkeypatch.setattr(stored_shards, "_SMALL_BLOCK", 512)
    files = [(file.name, n) for file, n in zip(opened.files, opened.lengths, strict=True)]
    tokens = stored_shards.StoredTokens(url, files, np.dtype(opened.dtype), limit=4 * 512)
    assert tokens._cache.shape == (4, 512)
    count, load = [], tokens._load
    monkeypatch.setattr(tokens, "_load", lambda key: count.append(key) or load(key))
    tokens.fetch([(0, 0, 600)])
    reads = len(count)
    first = tokens.read(0, 0, 600)
    assert len(count) == reads and len(first) == 600
    for start in range(0, 6000, 500):
        tokens.read(1, start, start + 500)
    assert len(tokens._slot_of) == 4
    np.testing.assert_array_equal(tokens.read(0, 0, 600), first)


def test_stored_sequences_can_be_pickled(words, url, monkeypatch):
    sequences = TokenSequences(shards.open_shards(url, verify=False), 32)
    again = pickle.loads(pickle.dumps(sequences))
    np.testing.assert_array_equal(again[5], TokenSequences(shards.open_shards(words), 32)[5])


def test_stored_shards_that_are_damaged_are_found(words, url):
    path = words.parent.parent / "store/words/train/tokens-00001.bin"
    good = path.read_bytes()
    path.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    with pytest.raises(DataError, match="tokens-00001.bin does not match its SHA-256"):
        shards.open_shards(url)
    path.write_bytes(good[:-2])
    with pytest.raises(DataError, match="tokens-00001.bin has"):
        shards.open_shards(url, verify=False)
    path.unlink()
    with pytest.raises(DataError, match="tokens-00001.bin is missing"):
        shards.open_shards(url, verify=False)
    (words.parent.parent / "store/words/train/manifest.json").unlink()
    with pytest.raises(DataError, match="manifest.json is missing"):
        shards.open_shards(url)


def test_stored_shards_that_shrink_while_they_are_read_are_found(words, url):
    sequences = TokenSequences(shards.open_shards(url, verify=False), 32)
    for path in (words.parent.parent / "store/words/train").glob("*.bin"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="ends at byte 100"):
        sequences[40]


def test_stored_shards_refuse_a_wrong_cache_size(url, monkeypatch):
    monkeypatch.setenv("QWEN_JAX_CACHE_GIB", "many")
    with pytest.raises(ConfigError, match="QWEN_JAX_CACHE_GIB"):
        TokenSequences(shards.open_shards(url, verify=False), 32)


def test_inputs_identify_stored_shards_by_their_manifest(words, url):
    local = inputs.of_settings({"data.sources": [str(words)]}, None)
    (stored,) = inputs.of_settings({"data.sources": [url]}, None)
    assert stored.path == url and stored.same(local[0])
