"""Exported tokenizer files, read back by the libraries that they are for."""

import dataclasses
import json
import random

import jax
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.errors import ConfigError, TokenizerError
from qwen_jax.model.spec import param_specs
from qwen_jax.pretrained.huggingface import save_pretrained
from qwen_jax.tokenizer.bpe import Tokenizer, write_ranks
from qwen_jax.tokenizer.huggingface import write_tokenizer
from qwen_jax.tokenizer.load import load_tokenizer
from qwen_jax.tokenizer.merges import BYTE_CHARS, recover_merges
from qwen_jax.tokenizer.settings import Settings

MERGES = [
    b"th",
    b"the",
    b" the",
    b"in",
    b"ing",
    b" w",
    b"\xe4\xbd",
    b"\xe4\xbd\xa0",
    b"  ",
    b"    ",
]


def tiny_ranks() -> dict[bytes, int]:
    tokens = [bytes([byte]) for byte in range(256)] + MERGES
    return {token: rank for rank, token in enumerate(tokens)}


@pytest.fixture
def tiny(tmp_path) -> Tokenizer:
    write_ranks(tmp_path / "tiny.tiktoken", tiny_ranks())
    return Tokenizer.from_file(tmp_path / "tiny.tiktoken")


@pytest.fixture(scope="module")
def qwen(shared) -> Tokenizer:
    return Tokenizer.from_file(shared / "reference" / "qwen.tiktoken")


@pytest.fixture(scope="module")
def folder(qwen, tmp_path_factory):
    """The released vocabulary, exported."""
    folder = tmp_path_factory.mktemp("qwen2")
    write_tokenizer(folder, qwen, layout="qwen2", context_length=2048)
    return folder


@pytest.fixture(scope="module")
def theirs(folder):
    """The exported tokenizer, loaded by transformers."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    return transformers.AutoTokenizer.from_pretrained(folder)


def zeros(config):
    return jax.tree.map(lambda spec: np.zeros(spec.shape, np.float32), param_specs(config))


def real_texts(shared) -> list[str]:
    folder = shared / "data" / "text"
    web = [json.loads(line)["text"] for line in (folder / "c4_demo.jsonl").open(encoding="utf-8")]
    chinese = json.loads((folder / "zh_song_authors.json").read_text(encoding="utf-8"))
    texts = web[:100] + [author["desc"] for author in chinese[:1000]]
    for name in ("wiki_demo.txt", "wikitext2_valid.txt", "tinyshakespeare.txt"):
        texts.append((folder / name).read_text(encoding="utf-8")[:150_000])
    texts += [path.read_text(encoding="utf-8") for path in shared.glob("*.md")]
    return texts


def odd_texts() -> list[str]:
    """Random code points and awkward strings: combining marks, white space, digits, apostrophes."""
    rng = random.Random(0)
    pools = [
        range(0x20, 0x7F),
        range(0xA0, 0x250),
        range(0x300, 0x370),
        range(0x4E00, 0x9FFF),
        range(0xAC00, 0xD7A3),
        range(0x1F300, 0x1F700),
        range(0x1100, 0x1200),
        [9, 10, 13, 32],
    ]
    texts = [
        "".join(chr(rng.choice(rng.choice(pools))) for _ in range(rng.randint(1, 40)))
        for _ in range(1000)
    ]
    return texts + [
        "",
        " ",
        "   \n\n\t x",
        "I'LL they'Re 'tis",
        "e\u0301 \u212b \u1100\u1161",
        "3.14 １２ ٣٤",
        "\r\n\r\n",
        "a\u200bb\ufeff",
        "=" * 300,
        "x" + " " * 500 + "y",
    ]


def test_write_tokenizer_gives_autotokenizer_our_ids(shared, qwen, theirs):
    texts = real_texts(shared) + odd_texts()
    assert sum(map(len, texts)) > 700_000
    ids = theirs(texts, split_special_tokens=True)["input_ids"]
    wrong = [text for text, found in zip(texts, ids, strict=True) if found != qwen.encode(text)]
    assert wrong == []


def test_write_tokenizer_gives_tokenizers_our_ids(shared, qwen, folder):
    """transformers 5 rebuilds much of a Qwen2 tokenizer; other readers use the file as it is."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    plain = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain.encode_special_tokens = True  # special tokens in text are encoded as text
    texts = real_texts(shared) + odd_texts()
    for text, found in zip(texts, plain.encode_batch(texts), strict=True):
        assert found.ids == qwen.encode(text)
    plain.encode_special_tokens = False
    ids = plain.encode("<|im_start|>e\u0301\n<|im_end|>").ids
    assert ids == qwen.encode("<|im_start|>e\u0301\n<|im_end|>", allow_special=True)
    assert plain.decode(ids, skip_special_tokens=False) == "<|im_start|>\u00e9\n<|im_end|>"


def test_write_tokenizer_gives_autotokenizer_the_recorded_ids(shared, theirs):
    cases = json.loads((shared / "reference" / "tokenizer_cases.json").read_text())
    assert len(cases) == 25
    for case in cases:
        assert theirs(case["text"])["input_ids"] == case["ids"], case["text"]
        assert theirs.decode(case["ids"]) == case["decoded"]


def test_write_tokenizer_keeps_special_tokens(qwen, theirs):
    text = "a<|im_start|>user\nhi<|im_end|>\n<|endoftext|><|extra_0|>x<|extra_204|> <|nope|>"
    ids = theirs(text)["input_ids"]
    assert ids == qwen.encode(text, allow_special=True)
    assert {151643, 151644, 151645, 151646, 151850} <= set(ids)
    assert theirs.decode(ids) == text
    assert theirs.eos_token_id == theirs.pad_token_id == qwen.end_of_text
    assert len(theirs) == qwen.vocab_size == 151851
    assert theirs.model_max_length == 2048


def test_chat_template_renders_the_original_conversation(shared, theirs):
    pytest.importorskip("jinja2", reason="jinja2, which renders chat templates, is not installed")
    case = json.loads((shared / "reference" / "chatml_case.json").read_text())
    messages = [{"role": "system", "content": case["system"]}]
    for query, response in case["history"]:
        messages += [{"role": "user", "content": query}]
        messages += [{"role": "assistant", "content": response}]
    messages.append({"role": "user", "content": case["query"]})
    for turns in (messages, messages[1:]):  # the default system message is the same
        assert (
            theirs.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            == case["raw"]
        )
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == case["ids"]


def test_write_tokenizer_vocab_and_merges_give_the_same_ids(qwen, theirs, folder, tmp_path):
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    slow = type(theirs).from_pretrained(tmp_path)
    for text in odd_texts() + ["Large language models\n  read text. 大语言模型"]:
        assert slow(text, split_special_tokens=True)["input_ids"] == qwen.encode(text)


def test_load_tokenizer_inverts_write_tokenizer(qwen, folder):
    assert load_tokenizer(folder).fingerprint == qwen.fingerprint


def test_recover_merges_finds_all_of_qwens_vocabulary(qwen, folder):
    byte_of = {char: bytes([byte]) for byte, char in BYTE_CHARS.items()}
    version, *merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert len(merges) == 151643 - 256
    ranks, last = qwen.mergeable_ranks, 0
    for merge in merges:
        left, right = (b"".join(byte_of[char] for char in part) for part in merge.split(" "))
        assert ranks[left + right] > max(ranks[left], ranks[right], last)
        last = ranks[left + right]


def test_recover_merges_follows_the_ranks():
    assert list(recover_merges(tiny_ranks())) == [
        (b"t", b"h"),
        (b"th", b"e"),
        (b" ", b"the"),
        (b"i", b"n"),
        (b"in", b"g"),
        (b" ", b"w"),
        (b"\xe4", b"\xbd"),
        (b"\xe4\xbd", b"\xa0"),
        (b" ", b" "),
        (b"  ", b"  "),
    ]


def test_recover_merges_names_a_token_that_no_merge_makes():
    with pytest.raises(TokenizerError, match="cannot produce: 1;.*b'xyz'"):
        list(recover_merges(tiny_ranks() | {b"xyz": 266}))


def test_write_tokenizer_rejects_gaps_and_missing_bytes(tmp_path):
    def written(ranks, specials):
        parts = {"mergeable_ranks": ranks, "special_tokens": specials, "settings": Settings()}
        fake = type("Fake", (), parts)()
        write_tokenizer(tmp_path, fake, layout="qwen", context_length=16)

    with pytest.raises(TokenizerError, match="gap or a duplicate at 266"):
        written(tiny_ranks(), {"<|endoftext|>": 300})
    missing = {token: rank for rank, token in enumerate(t for t in tiny_ranks() if t != b"q")}
    with pytest.raises(TokenizerError, match="single bytes without a token: 1; the first is 0x71"):
        written(missing, {"<|endoftext|>": 265})
    assert list(tmp_path.iterdir()) == []


def test_save_pretrained_exports_a_small_vocabulary(tmp_path, tiny):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = dataclasses.replace(sizes.TINY, vocab_size=512)
    params = zeros(config)
    for layout in ("qwen", "qwen2"):
        folder = tmp_path / layout
        save_pretrained(folder, config, params, layout=layout, tokenizer=tiny)
        raw = json.loads((folder / "config.json").read_text())
        generation = json.loads((folder / "generation_config.json").read_text())
        assert raw["eos_token_id"] == generation["pad_token_id"] == tiny.end_of_text
        assert generation["eos_token_id"] == [tiny.end_of_text, tiny.im_end]
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        for text in ["the thing in  the\n你 wind", "", "<|im_end|>"]:
            assert theirs(text, split_special_tokens=True)["input_ids"] == tiny.encode(text)
        assert load_tokenizer(folder).fingerprint == tiny.fingerprint
        save_pretrained(folder, config, params, layout=layout, tokenizer=tiny)  # replaces it


def test_save_pretrained_rejects_a_tokenizer_larger_than_the_model(tmp_path, tiny):
    params = zeros(sizes.TINY)
    with pytest.raises(ConfigError, match="ids, but the model has vocab_size=128"):
        save_pretrained(tmp_path / "out", sizes.TINY, params, tokenizer=tiny)


def test_load_tokenizer_rejects_a_folder_without_one(tmp_path):
    with pytest.raises(TokenizerError, match="there are none of them"):
        load_tokenizer(tmp_path)
