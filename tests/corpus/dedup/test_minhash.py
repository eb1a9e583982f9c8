"""MinHash in numpy: words match the definition, signatures estimate the exact Jaccard."""

import random
import unicodedata

import numpy as np

from qwen_jax.corpus.dedup import minhash
from qwen_jax.corpus.dedup.minhash import signatures, word_hashes, words

VOCABULARY = [f"word{i}" for i in range(3000)]


def test_words_of_several_scripts():
    assert words("Don't  STOP_now…“yes”") == b"don t stop now yes"
    assert words("我爱，北京。") == "我 爱 北 京".encode()
    assert words("ＡＢＣ１２ カナ") == "abc12 カ ナ".encode()
    assert words("Ärger—Öl «x»") == "ärger öl x".encode()
    assert words("...") == b""


def strange_texts(number=1500):
    """Texts of all of Unicode, of characters at word boundaries, of letters, and empty ones."""
    rng = random.Random(0)
    everything = [c for c in map(chr, range(0x30000)) if unicodedata.category(c)[0] != "C"]
    pools = (everything, "abc XYZ.,-é—“字水カナ한글… ·²µ", "abCd  EF", "的一是，。 A1\n")
    texts = [
        "".join(rng.choices(pools[i % 4], k=rng.choice([0, 1, 3, 50, 400]))) for i in range(number)
    ]
    return [*texts, "half \ud83d pair", "x" * 3000 + " 的" * 2000 + "yé" * 1000]


def encoded(texts):
    return [text.encode("utf-8", "replace") for text in texts]


def test_word_hashes_match_words(monkeypatch):
    texts = strange_texts()
    monkeypatch.setattr(minhash, "_BYTES", 1000)  # words then span two blocks
    hashes, ends = word_hashes(encoded(texts))
    found = [word for text in texts for word in words(text).split()]
    assert ends.tolist() == np.cumsum([len(words(text).split()) for text in texts]).tolist()
    assert (
        len(set(zip(found, hashes.tolist(), strict=True)))
        == len(set(found))
        == len(set(hashes.tolist()))
    )
    monkeypatch.undo()
    np.testing.assert_array_equal(word_hashes(encoded(texts))[0], hashes)


def test_signatures_do_not_depend_on_other_texts(monkeypatch):
    texts = strange_texts(200) + ["one two three four five " * 300]
    rows, together = signatures(encoded(texts), hashes=64, shingle=5, seed=1)
    assert rows.tolist() == [i for i, text in enumerate(texts) if words(text)]
    monkeypatch.setattr(minhash, "_SHINGLES", 64)  # texts then span several blocks
    np.testing.assert_array_equal(
        signatures(encoded(texts), hashes=64, shingle=5, seed=1)[1], together
    )
    for row, signature in zip(rows, together, strict=True):
        single = signatures(encoded([texts[row]]), hashes=64, shingle=5, seed=1)[1]
        np.testing.assert_array_equal(single[0], signature)


def test_signatures_are_the_minimum_over_all_shingles():
    """Each text of five words is one shingle."""
    parts = [f"w{i}" for i in range(40)]
    one_by_one = [" ".join(parts[i : i + 5]) for i in range(36)]
    _, each = signatures(encoded(one_by_one), hashes=32, shingle=5, seed=2)
    _, full = signatures(encoded([" ".join(parts)]), hashes=32, shingle=5, seed=2)
    np.testing.assert_array_equal(full[0], each.min(0))


def shingles(text, size=5):
    found = words(text).split()
    return {tuple(found[i : i + size]) for i in range(max(1, len(found) - size + 1))}


def jaccard(a, b):
    return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


def test_signatures_estimate_jaccard():
    rng = random.Random(0)
    pairs = []
    for _ in range(200):
        parts = rng.choices(VOCABULARY, k=150)
        other = list(parts)
        for i in rng.sample(range(150), rng.randrange(12)):
            other[i] = rng.choice(VOCABULARY)
        pairs.append((" ".join(parts), " ".join(other)))
    a, b = (
        signatures(encoded(pair[i] for pair in pairs), hashes=256, shingle=5, seed=1)[1]
        for i in (0, 1)
    )
    error = (a == b).mean(1) - [jaccard(*pair) for pair in pairs]
    assert abs(error.mean()) < 0.01 and np.sqrt((error**2).mean()) < 0.045  # sqrt(s(1-s)/256)
