"""Learned vocabularies: tiktoken gives the ids that the trainer gave."""

import collections
import itertools
import json
import pathlib
import re
import sys

import pytest
import regex

from qwen_jax.errors import TokenizerError
from qwen_jax.tokenizer.bpe import PATTERN, Tokenizer, read_ranks
from qwen_jax.tokenizer.carry import save_tokenizer
from qwen_jax.tokenizer.extend import (
    QWEN_RANKS,
    add_characters,
    common_chinese,
    extend_like_qwen,
    grow,
    grow_tokenizer,
    qwen_base,
    train,
    verify,
)
from qwen_jax.tokenizer.load import load_tokenizer
from qwen_jax.tokenizer.merges import recover_merges
from tests.helpers import tokenizer_folders as folders

BYTES = {bytes([byte]): byte for byte in range(256)}


def stdlib_source(*names: str) -> list[str]:
    folder = pathlib.Path(json.__file__).parent.parent
    return [(folder / f"{name}.py").read_text(encoding="utf-8") for name in names]


@pytest.fixture(scope="module")
def source() -> list[str]:
    return stdlib_source("argparse", "typing", "inspect", "tarfile", "datetime", "ast")


@pytest.fixture(scope="module")
def code_ranks(source) -> dict[bytes, int]:
    return train(iter(source), vocab_size=2000)


@pytest.fixture(scope="module")
def cl100k(shared) -> dict[bytes, int]:
    return read_ranks(shared / "reference" / "cl100k_base.tiktoken")


@pytest.fixture(scope="module")
def chinese(shared) -> list[str]:
    path = shared / "data" / "text" / "zh_song_authors.json"
    if not path.is_file():
        pytest.skip(f"no Chinese text at {path}")
    return [author["desc"] for author in json.loads(path.read_text(encoding="utf-8"))][:3000]


def checked_words(monkeypatch) -> list[int]:
    """Records how many words grow verifies."""
    counts = []
    monkeypatch.setattr(
        "qwen_jax.tokenizer.extend.verify", lambda ranks, words: counts.append(verify(ranks, words))
    )
    return counts


def test_train_gives_the_requested_size_and_compresses(source, code_ranks):
    assert sorted(code_ranks.values()) == list(range(2000))
    tokenizer = Tokenizer(code_ranks)
    for text in stdlib_source("textwrap", "shlex") + ["\u4f60\u597d \ud800 123"]:
        assert tokenizer.decode(tokenizer.encode(text)) == text.replace("\ud800", "\ufffd")
    held_out = stdlib_source("optparse")[0]
    assert len(held_out.encode()) / len(tokenizer.encode(held_out)) > 2.5
    assert not any(len(token) > 1 and re.search(rb"[0-9]", token) for token in code_ranks)


def test_train_agrees_with_the_trainer_of_tokenizers(source, code_ranks):
    """Compares with byte-level BPE trained only by `tokenizers` on the same text."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    pre = tokenizers.pre_tokenizers
    learner = tokenizers.Tokenizer(tokenizers.models.BPE())
    learner.pre_tokenizer = pre.Sequence(
        [
            pre.Split(tokenizers.Regex(PATTERN), "isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    learner.train_from_iterator(
        source,
        tokenizers.trainers.BpeTrainer(
            vocab_size=2000,
            show_progress=False,
            special_tokens=[],
            initial_alphabet=pre.ByteLevel.alphabet(),
        ),
    )
    learner.decoder = tokenizers.decoders.ByteLevel()
    ours = Tokenizer(code_ranks)
    theirs = [len(ids.ids) for ids in learner.encode_batch(source)]
    counts = [len(ours.encode(text)) for text in source]
    assert counts == pytest.approx(theirs, rel=2e-3)  # equal but for ties
    shared_tokens = {learner.decode([token]) for token in range(2000)} & {
        token.decode("utf-8", "replace") for token in code_ranks
    }
    assert len(shared_tokens) > 1800


def test_train_merges_the_most_frequent_pair():
    """Checks the definition of BPE, step by step, on a small text."""
    text = "the thin thing then thanked the other thing; in the end, the ten men met. " * 3
    ranks = train([text], vocab_size=280)
    words = [
        [bytes([byte]) for byte in word.encode()]
        for word in re.findall(r" ?[a-z]+| ?[^\sa-z]+|\s+(?!\S)|\s+", text)
    ]
    for token in sorted(ranks, key=ranks.get)[256:]:
        pairs = collections.Counter(pair for word in words for pair in itertools.pairwise(word))
        made = {pair: count for pair, count in pairs.items() if pair[0] + pair[1] == token}
        assert max(made.values()) == max(pairs.values()), token
        pair = max(made, key=made.get)
        for word in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == pair:
                    word[i : i + 2] = [token]
                i += 1


def test_qwen_base_is_the_start_of_the_released_vocabulary(shared, cl100k):
    base = qwen_base(cl100k)
    qwen = read_ranks(shared / "reference" / "qwen.tiktoken")
    assert len(cl100k) - len(base) == 1100
    assert len(base) == 99_156
    assert list(base.items()) == list(qwen.items())[:99_156]


def test_common_chinese_is_level_1_of_gb_2312():
    characters = common_chinese()
    assert len(characters) == len(set(characters)) == 3755
    assert (characters[0], characters[-1]) == ("\u554a", "\u5ea7")  # the first and the last row
    assert set("\u7684\u4e00\u662f\u4e0d\u4e86\u5728\u4eba\u6709\u6211\u4ed6") <= set(characters)


def test_common_chinese_is_in_the_released_vocabulary(shared):
    qwen = Tokenizer.from_file(shared / "reference" / "qwen.tiktoken")
    split = [each for each in common_chinese() if len(qwen.encode(each)) > 1]
    assert split == ["\u7877", "\u77fd"]


def test_add_characters_makes_each_a_token():
    ranks = BYTES | {b"\xe4\xbd": 256}
    added = add_characters(ranks, "\u4f60\u4eba\u4ebaa")
    assert list(added)[257:] == [
        b"\xe4\xbd\xa0",
        b"\xe4\xba",
        b"\xe4\xba\xba",
    ]
    tokenizer = Tokenizer(added)
    assert tokenizer.encode("\u4f60\u4eba\u4f60") == [257, 259, 257]
    assert len(list(recover_merges(added))) == len(added) - 256
    # The base merges the last byte of one character with the first of the next.
    with pytest.raises(TokenizerError, match="single tokens: 1 of 2"):
        add_characters(BYTES | {b"\xa0\xe4": 256}, "\u4f60\u4eba")


def test_extend_like_qwen_extends_a_small_base():
    text = "the thin thing then thanked the other thing 2020 " * 3
    ranks = BYTES | {b"20": 256, b"th": 257}
    grown = extend_like_qwen(ranks, [text], num_new=6, characters="\u4f60")
    assert list(grown)[256:259] == [b"th", b"\xe4\xbd", b"\xe4\xbd\xa0"]
    assert len(grown) == 257 + 6 and b" th" in grown
    with pytest.raises(TokenizerError, match="characters take 2 of 1"):
        extend_like_qwen(ranks, [text], num_new=1, characters="\u4f60")
    with pytest.raises(TokenizerError, match="leaves 0 to add"):
        extend_like_qwen(ranks, [text], num_new=0)


def test_extend_like_qwen_makes_the_released_size_from_cl100k(cl100k, chinese, monkeypatch):
    """Adds 52,487 ranks for 151,643. Learns few merges, since all of them take ten seconds."""
    requested = []
    monkeypatch.setattr(
        "qwen_jax.tokenizer.extend.grow",
        lambda ranks, texts, num_new, **_: (
            requested.append(num_new) or grow(ranks, texts, num_new=500)
        ),
    )
    ranks = extend_like_qwen(cl100k, chinese[:500])
    start = len(ranks) - 500
    assert start + requested[0] == 99_156 + 52_487 == QWEN_RANKS == 151_643
    assert list(ranks)[:99_156] == list(qwen_base(cl100k))
    assert 3227 + 100 == start - 99_156  # characters, and the first two bytes of some
    tokenizer = Tokenizer(ranks)
    assert tokenizer.vocab_size == len(ranks) + 208
    for character in common_chinese():
        assert len(tokenizer.encode_word(character + "\u3001" + character)) <= 3
    # Each token is a merge of two lower ones, so all can be reached.
    assert len(list(recover_merges(ranks))) == len(ranks) - 256
    assert not [token for token in ranks if len(token) > 1 and re.search(rb"[0-9]", token)]


def test_grow_from_qwens_base_is_exact(cl100k, chinese, source, monkeypatch):
    counts = checked_words(monkeypatch)
    base = qwen_base(cl100k)
    texts = chinese + source[:2]
    grown = grow(base, iter(texts), num_new=1500)
    assert list(grown.items())[: len(base)] == list(base.items())
    assert sorted(grown.values()) == list(range(len(base) + 1500))
    assert counts[0] > 10_000  # every different word, against the trainer's ids
    before, after = Tokenizer(base), Tokenizer(grown)
    text = "".join(chinese[:300])
    assert after.decode(after.encode(text)) == before.decode(before.encode(text))
    assert len(after.encode(text)) < 0.87 * len(before.encode(text))


def test_pattern_splits_alike_in_regex_and_tiktoken(source, code_ranks):
    """The trainer splits text with the `regex` module, tiktoken with its own engine."""
    tokenizer = Tokenizer(code_ranks)
    for text in source + ["x  \n\n  y\u3000\u3000z \u00bd\u2163 I'LL\r\n\r\n ...\n"]:
        words = regex.findall(PATTERN, text)
        ids = [token for word in words for token in tokenizer.encode_word(word)]
        assert ids == tokenizer.encode(text)


def test_train_normalizes_texts_to_nfc():
    ranks = train(["e\u0301 " * 50 + "\ud800"], vocab_size=257)
    assert "\u00e9".encode() in ranks


def test_train_takes_special_tokens_as_text(source):
    ranks = train(source[:1] + ["<|im_end|>" * 3000], vocab_size=400)
    assert b"im" in ranks and b"<|" in ranks
    assert b"<|im_end|>" not in ranks  # PATTERN splits it


def test_train_and_grow_reject_too_little_text():
    with pytest.raises(TokenizerError, match="only 4 new merges, not 44"):
        train(["aaaa bc"] * 3, vocab_size=300)
    with pytest.raises(TokenizerError, match="only 0 new merges"):
        grow(BYTES, iter([]), num_new=1)
    with pytest.raises(TokenizerError, match="no room"):
        train(["a"], vocab_size=256)


def test_verify_counts_words_that_differ():
    ranks = BYTES | {b"ab": 256, b"bc": 257}
    assert verify(ranks, [("abc", [256, 99]), ("bc", [257])]) == 2
    with pytest.raises(TokenizerError, match=r"1 of 3 words.*'abc' gives .256, 99., not .97, 257"):
        verify(ranks, iter([("x", [120]), ("abc", [97, 257]), ("bc", [257])]))


def test_train_without_tokenizers_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(TokenizerError, match=r"pip install \"qwen_jax\[data\]\""):
        train(["some text"], vocab_size=260)


@pytest.mark.parametrize("form", ["released", "transformers 5", "slow"])
def test_grow_tokenizer_keeps_ids_added_tokens_and_files(tmp_path, source, form):
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    folders.write(tmp_path / "base", form)
    base = load_tokenizer(tmp_path / "base")
    grown = grow_tokenizer(base, source[:2], num_new=50, characters="\u4f60")
    (tmp_path / "grown").mkdir()
    save_tokenizer(tmp_path / "grown", grown)
    again = load_tokenizer(tmp_path / "grown")
    assert again.fingerprint == grown.fingerprint and again.vocab_size == base.vocab_size + 50
    assert again.added_tokens == base.added_tokens
    assert base.mergeable_ranks.items() <= again.mergeable_ranks.items()
    new = {n for t, n in again.mergeable_ranks.items() if t not in base.mergeable_ranks}
    assert new == set(range(base.vocab_size, base.vocab_size + 50))
    assert again.encode("\u4f60") == [again.mergeable_ranks["\u4f60".encode()]]
    text = source[0][:3000] + "<|im_end|><think>"
    ids = again.encode(text, allow_special=True)
    assert again.decode(ids) == text and len(ids) < len(base.encode(text))
    changed = {"tokenizer.json", "vocab.json", "merges.txt"}
    for path in (tmp_path / "base").iterdir():
        same = (tmp_path / "grown" / path.name).read_bytes() == path.read_bytes()
        assert same == (path.name not in changed)
    if form != "slow":
        theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "grown/tokenizer.json"))
        assert theirs.encode(text).ids == ids


def test_grow_tokenizer_refuses_what_cannot_keep_its_ids(tmp_path, source):
    folders.write(tmp_path, "tiktoken")
    with pytest.raises(TokenizerError, match="no place for tokens behind added ones"):
        grow_tokenizer(load_tokenizer(tmp_path), source[:1], num_new=5)
    with pytest.raises(TokenizerError, match="another way than Qwen's"):
        grow_tokenizer(Tokenizer(BYTES, nfc=False), source[:1], num_new=5)
    folders.write(tmp_path / "b", "released")
    with pytest.raises(TokenizerError, match="the characters take 2 of 1"):
        grow_tokenizer(load_tokenizer(tmp_path / "b"), [], num_new=1, characters="\u4e00")
