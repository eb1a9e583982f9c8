"""A vocabulary is trained on a given share of each language, without held-out text."""

import dataclasses
import json
import random

import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("tokenizers")

from qwen_jax.corpus import pipeline
from qwen_jax.corpus.output import vocabulary
from qwen_jax.corpus.output.vocabulary import Vocabulary, shares, text_bytes
from qwen_jax.corpus.sources.read import Read
from qwen_jax.data.document import Document
from qwen_jax.data.shards import Split
from qwen_jax.errors import ConfigError, QwenJaxError, TokenizerError
from qwen_jax.tokenizer import extend
from qwen_jax.tokenizer.bpe import Tokenizer, read_ranks, write_ranks
from qwen_jax.tokenizer.load import load_tokenizer
from qwen_jax.utils.jsonl import write_rows
from tests.helpers import tokenizer_folders as folders

CHINESE = "".join(map(chr, range(0x4E00, 0x4E64)))


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> pipeline.Result:
    """Returns 300 English documents, then 200 Chinese ones, then 20 in an unknown language."""
    folder = tmp_path_factory.mktemp("vocabulary")
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmno", k=rng.randint(2, 8))) for _ in range(300)]
    rows = [
        {"text": " ".join(rng.choices(words, k=200)) + f" {i}", "language": "en"}
        for i in range(300)
    ]
    rows += [{"text": "".join(rng.choices(CHINESE, k=150)), "language": "zh"} for _ in range(200)]
    rows += [{"text": "- " * 60 + str(i)} for i in range(20)]
    write_rows(folder / "in.jsonl", rows)
    return pipeline.run(
        [f"{folder}/in.jsonl"], [Read()], str(folder / "out"), workers=0, log=lambda line: None
    )


@pytest.fixture
def base(tmp_path):
    """A base vocabulary of the 256 bytes, two numbers and "th"."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"20": 256, b"200": 257, b"th": 258}
    write_ranks(tmp_path / "base.tiktoken", ranks)
    return str(tmp_path / "base.tiktoken")


def amounts(result, weights, megabytes):
    """Returns the bytes of English and of Chinese in the training text."""
    chosen = shares(text_bytes(result), weights, megabytes)
    chunks = list(vocabulary.texts(result, chosen, Split()))
    chinese = sum(len(chunk.encode()) for chunk in chunks if chunk[0] in CHINESE)
    english = sum(len(chunk) for chunk in chunks if chunk[0].isascii() and chunk[0] != "-")
    return english, chinese


def test_shares_follow_the_weights():
    chosen = shares({"en": 6_000_000, "zh": 2_000_000}, {"zh": 3.0}, 4)
    assert [(share.language, share.copies) for share in chosen] == [("zh", 1.5), ("en", 1 / 6)]
    shown = vocabulary.table(chosen)
    assert "| zh | 3 | 2.00 | 1.5 times | 75.0% |" in shown
    # With less text, all of it; at most four copies; a named language without text is listed.
    chosen = shares({"en": 900, "zh": 100}, {"zh": 9.0, "he": 2.0}, 500)
    assert {share.language: share.copies for share in chosen} == {
        "zh": 4.0,
        "en": pytest.approx(1000 / 10 / 900),
        "he": 0.0,
    }
    assert shares({"?": 100}, {"zh": 8.0}, 500)[0].copies == 1.0


def test_texts_samples_each_language_throughout(result):
    sizes = text_bytes(result)
    assert sizes["zh"] == 200 * 150 * 3 and sizes["en"] > 3 * sizes["zh"]
    english, chinese = amounts(result, {"zh": 3.0, "?": 0.0}, 0.12)
    assert chinese == pytest.approx(90_000, rel=0.02)
    assert english == pytest.approx(30_000, rel=0.1)
    english, chinese = amounts(result, {"en": 0.0, "?": 0.0}, 0.2)
    assert english == 0 and chinese == pytest.approx(200_000, rel=0.02)


def test_measured_texts_are_held_out_of_training(result):
    split = Split(eval_fraction=0.2, seed=4)
    chosen = shares(text_bytes(result), {}, 500)
    held_out = vocabulary.measured_texts(result, split)
    assert list(held_out) == ["en", "zh", "?"]
    for texts in held_out.values():
        assert all(split.assign(Document("", text))[0] == split.num_shards for text in texts)
    assert set(vocabulary.texts(result, chosen, split)).isdisjoint(sum(held_out.values(), []))
    assert list(vocabulary.measured_texts(result, Split()))[0] == "en (seen)"


def test_chunks_end_at_line_ends():
    rng = random.Random(1)
    text = "".join(rng.choices(["word ", "\n", "\r\n", "\n\n\n", "字"], [8, 1, 1, 1, 4], k=20_000))
    chunks = list(vocabulary._chunks(text))
    assert "".join(chunks) == text and len(chunks) > 5
    tokenizer = Tokenizer({bytes([byte]): byte for byte in range(256)} | {b"\n\n": 256})
    assert sum(map(tokenizer.encode, chunks), []) == tokenizer.encode(text)
    assert list(vocabulary._chunks("")) == []


def test_learn_extends_a_base_and_compare_measures_by_language(result, base, tmp_path):
    lines = []
    config = Vocabulary(base=base, num_new=200, chinese_characters=False)
    split = Split(eval_fraction=0.2)
    path = vocabulary.learn(
        config, result, tmp_path / "new.tiktoken", split=split, log=lines.append
    )
    ranks = read_ranks(path)
    assert len(ranks) == 257 + 200 and b"20" not in ranks and ranks[b"th"] == 256
    assert "257 tokens of" in lines[-1] and "without 2 multi-digit numbers" in lines[-1]
    assert "| zh | 8 |" in lines[0]
    vocabulary.compare(config, result, path, tmp_path, split=split, log=lines.append)
    rows = {
        (row["language"], row["tokenizer"]): row["ratio"]
        for row in json.loads((tmp_path / "compression.json").read_text())
    }
    assert rows["zh", "base"] == 1 and rows["zh", "ours"] > 1.5
    assert (tmp_path / "compression.png").exists() and lines[-1].startswith("language")


def test_learn_adds_chinese_characters_before_merges(result, base, tmp_path):
    config = Vocabulary(base=base, num_new=4500)
    vocabulary.learn(config, result, tmp_path / "a.tiktoken", split=Split(), log=print)
    ranks = read_ranks(tmp_path / "a.tiktoken")
    ids = [ranks[character.encode()] for character in extend.common_chinese()]
    prefixes = {character.encode()[:2] for character in extend.common_chinese()}
    assert max(ids) + 1 == 257 + 3755 + len(prefixes) < len(ranks)
    few = Vocabulary(base=base, num_new=300)
    with pytest.raises(TokenizerError, match="(?s)characters take .* of 300.*chinese_characters"):
        vocabulary.learn(few, result, tmp_path / "b.tiktoken", split=Split(), log=print)


def test_learn_refuses_other_settings_and_reads_former_records(result, tmp_path):
    path = tmp_path / "new.tiktoken"
    config = Vocabulary(size=300)

    def learn(config):
        vocabulary.learn(config, result, path, split=Split(), log=lambda line: None)

    learn(config)
    made = path.stat().st_mtime_ns
    learn(config)
    with pytest.raises(ConfigError, match="languages: was None"):
        learn(Vocabulary(size=300, languages=("zh=2",)))
    former = {"vocab_size": 300, "base": None, "num_new": 50000, "vocabulary_mb": 500}
    path.with_suffix(".json").write_text(json.dumps(former))
    learn(config)
    with pytest.raises(ConfigError, match="vocab_size: was 300, now 301"):
        learn(Vocabulary(size=301))
    assert path.stat().st_mtime_ns == made


def test_learn_takes_what_a_small_corpus_holds_unless_a_size_is_set(result, base, tmp_path):
    lines = []

    def learn(config, name):
        path = tmp_path / name
        return read_ranks(vocabulary.learn(config, result, path, split=Split(), log=lines.append))

    ranks = learn(Vocabulary(), "default.tiktoken")
    assert 256 < len(ranks) < 32768
    assert f"{len(ranks):,} tokens; there is too little text for 32,768" in lines[-1]
    with pytest.raises(TokenizerError, match=f"(?s)--vocabulary.size={len(ranks)}[.]"):
        learn(Vocabulary(size=32768), "set.tiktoken")
    assert learn(Vocabulary(size=len(ranks)), "set.tiktoken") == ranks
    with pytest.raises(ConfigError, match="the vocabulary has .* tokens, not 32,768"):
        learn(Vocabulary(size=32768), "default.tiktoken")
    few = Vocabulary(base=base, chinese_characters=False)
    extended = learn(few, "extended.tiktoken")
    with pytest.raises(TokenizerError, match=f"--vocabulary.num_new={len(extended) - 257}[.]"):
        learn(dataclasses.replace(few, num_new=99_999), "more.tiktoken")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_new": 200}, "(?s)num_new has no effect without.*--vocabulary.size"),
        ({"size": 200}, "(?s)no room for merges.*--vocabulary.size"),
        ({"chinese_characters": False}, "chinese_characters has no effect without"),
        ({"base": True, "size": 9000}, "(?s)size has no effect with.*--vocabulary.num_new"),
        ({"base": True, "num_new": 0}, "num_new=0 is not an integer from 1"),
        ({"base": True, "num_new": 9}, "the characters take"),
    ],
)
def test_check_refuses_sizes_before_any_work(base, settings, message):
    given = settings | ({"base": base} if "base" in settings else {})
    with pytest.raises(QwenJaxError, match=message):
        vocabulary.check(Vocabulary(**given))


def test_learn_grows_a_base_with_settings_behind_its_added_tokens(result, tmp_path):
    folders.write(tmp_path / "base", "transformers 5")
    config = Vocabulary(base=f"{tmp_path}/base", num_new=20, chinese_characters=False)
    vocabulary.check(config)
    lines: list[str] = []
    target = tmp_path / "out/tokenizer.tiktoken"
    target.parent.mkdir()
    for _ in range(2):  # the second time it is reused
        path = vocabulary.learn(config, result, target, split=Split(), log=lines.append)
    assert path == str(tmp_path / "out/tokenizer") and not target.exists()
    base, grown = load_tokenizer(tmp_path / "base"), load_tokenizer(path)
    assert grown.added_tokens == base.added_tokens and grown.vocab_size == base.vocab_size + 20
    assert grown.settings.chat_templates == base.settings.chat_templates
    assert sum("20 new tokens" in line for line in lines) == 1
    with pytest.raises(ConfigError, match="no size to grow to"):
        vocabulary.check(Vocabulary(base=f"{tmp_path}/base"))
