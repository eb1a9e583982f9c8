"""The tokenizer of any folder has the ids that `tokenizers` and transformers give."""

import copy
import itertools
import json
import pathlib
import pickle
import random

import pytest

import qwen_jax
from qwen_jax.errors import QwenJaxError, TokenizerError
from qwen_jax.tokenizer.bpe import PATTERN, PATTERNS, SPECIAL_TOKENS, Tokenizer
from qwen_jax.tokenizer.load import load_tokenizer
from qwen_jax.tokenizer.merges import check_merges
from qwen_jax.tokenizer.nfc import normalize
from tests.helpers import tokenizer_folders as folders

# What text is made of: special tokens and parts of them, long runs, letters that NFC composes.
PARTS = [
    *folders.SPECIAL,
    *folders.OTHERS,
    "<new",
    "<newe\u0301>",
    "<|im_",
    "end|>",
    "<|im_end|>\u0338",
    "\u0338",
    "e\u0301",
    "\u1100\u1161",
    "\u212b",
    "the thing",
    " " * 300,
    "1234567" * 40,
    "\u0663\u0664\uff11",
    "\n" * 200,
    "\r\n",
    "\t ",
    "\u00a0\u2003",
    "\x1c\x85",
    "'LL'\u017f",
    "\u4f60\u597d",
    "\U0001f3f3\ufe0f\u200d\U0001f308",
    "==>",
    "\x00",
]


def texts(count: int, seed: int) -> list[str]:
    """Returns random texts of PARTS and of random code points."""
    rng = random.Random(seed)
    ranges = [range(0x20, 0x7F), range(0xA0, 0xD800), range(0xE000, 0x20000), range(0x300, 0x370)]
    ranges += [range(0x1100, 0x1200), range(0x1AB0, 0x1E00), range(0x1F300, 0x1F700)]

    def part() -> str:
        if rng.random() < 0.4:
            return rng.choice(PARTS)
        return "".join(chr(rng.choice(rng.choice(ranges))) for _ in range(rng.randint(1, 6)))

    return ["".join(part() for _ in range(rng.randint(0, 12))) for _ in range(count)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> pathlib.Path:
    """A folder with one of each form."""
    root = tmp_path_factory.mktemp("forms")
    for form in folders.FORMS:
        folders.write(root / form, form)
    return root


def reference(path: pathlib.Path, *, added: bool = True):
    """Returns the tokenizer of `tokenizers`, with or without added tokens."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    content = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    if not added:
        content["added_tokens"] = []
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def test_load_tokenizer_gives_the_ids_of_tokenizers_on_any_text(tiny):
    ours = load_tokenizer(tiny / "transformers 5")
    theirs, no_added = (reference(tiny / "transformers 5", added=added) for added in (True, False))
    for text in texts(3000, seed=0):
        ids = ours.encode(text, allow_special=True)
        assert ids == theirs.encode(text).ids, text
        if ours.special_tokens[folders.OTHERS[-1]] not in ids:  # theirs takes its letter for a byte
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False), text
        assert ours.encode(text) == no_added.encode(text).ids, text


@pytest.mark.slow
def test_load_tokenizer_gives_the_ids_of_tokenizers_with_the_released_vocabulary(shared, tmp_path):
    ranks = Tokenizer.from_file(shared / "reference" / "qwen.tiktoken").mergeable_ranks
    folders.write(tmp_path, "transformers 5", ranks)
    released = shared / "reference/chat_templates/qwen3_thinking_2507_tokenizer_config.json"
    settings = json.loads(released.read_text())
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    decoder = settings["added_tokens_decoder"]
    content["added_tokens"] = [{"id": int(token), **item} for token, item in decoder.items()]
    folders.dump(tmp_path / "tokenizer.json", content)
    folders.dump(tmp_path / "tokenizer_config.json", settings)
    ours, theirs = load_tokenizer(tmp_path), reference(tmp_path)
    assert ours.token_id("eos_token") == 151645 and ours.settings.model_max_length == 262144
    assert [t.content for t in ours.added_tokens if not t.special][-2:] == ["<think>", "</think>"]
    for text in texts(1000, seed=1):
        assert ours.encode(text, allow_special=True) == theirs.encode(text).ids, text


@pytest.mark.parametrize("form", folders.FORMS)
def test_load_tokenizer_reads_every_form_alike(tiny, form):
    tokenizer, first = load_tokenizer(tiny / form), load_tokenizer(tiny / "released")
    # Only a Python tokenizer's files do not say which of the tokens is searched for when.
    assert form == "slow" or tokenizer.added_tokens == first.added_tokens
    assert tuple(t.content for t in tokenizer.added_tokens if t.special) == folders.SPECIAL
    assert tokenizer.fingerprint == first.fingerprint
    assert tokenizer.token_id("eos_token") == tokenizer.im_end
    assert tokenizer.token_id("pad_token") == tokenizer.end_of_text
    assert tokenizer.token_id("bos_token") is None
    assert tokenizer.settings.model_max_length == 32768
    assert tokenizer.settings.chat_templates == {"default": folders.TEMPLATE}
    names = [path.name for path in (tiny / form).iterdir()]
    assert sorted(tokenizer.settings.files) == sorted(names)
    for name, data in tokenizer.settings.files.items():
        assert (tiny / form / name).read_bytes() == data
    again = pickle.loads(pickle.dumps(tokenizer))
    assert (again.added_tokens, again.settings) == (tokenizer.added_tokens, tokenizer.settings)


@pytest.mark.parametrize("form", ["released", "transformers 4", "transformers 5"])
def test_load_tokenizer_gives_the_ids_of_transformers(tiny, form):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    theirs, ours = (
        transformers.AutoTokenizer.from_pretrained(tiny / form),
        load_tokenizer(tiny / form),
    )
    for text in texts(300, seed=2):
        assert ours.encode(text, allow_special=True) == theirs.encode(text), text
    assert ours.token_id("eos_token") == theirs.eos_token_id
    ids = {token.content: token.id for token in ours.added_tokens}
    assert ids == theirs.get_added_vocab()
    special = {token.content for token in ours.added_tokens if token.special}
    assert special == set(theirs.all_special_tokens)


def test_load_tokenizer_reads_what_transformers_saves(tiny, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    theirs = transformers.AutoTokenizer.from_pretrained(tiny / "released")
    theirs.chat_template = {"default": folders.TEMPLATE, "tool_use": "{{ tools }}"}
    theirs.save_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    assert ours.fingerprint == load_tokenizer(tiny / "released").fingerprint
    assert ours.settings.chat_templates == theirs.chat_template
    assert "additional_chat_templates/tool_use.jinja" in ours.settings.files


def test_load_tokenizer_reads_a_file_without_its_neighbors(tiny):
    path = tiny / "transformers 5" / "tokenizer.json"
    tokenizer = load_tokenizer(path)
    assert tokenizer.fingerprint == load_tokenizer(path.parent).fingerprint
    assert tokenizer.settings.chat_templates == {} == tokenizer.settings.named
    assert tokenizer.settings.files == {"tokenizer.json": path.read_bytes()}
    (tiny / "named.json").write_bytes(path.read_bytes())
    assert load_tokenizer(tiny / "named.json").fingerprint == tokenizer.fingerprint
    qwen1 = qwen_jax.load_tokenizer(tiny / "tiktoken" / "qwen.tiktoken")
    assert tuple(qwen1.special_tokens) == SPECIAL_TOKENS
    with pytest.raises(TokenizerError, match="does not exist"):
        load_tokenizer(tiny / "nothing.tiktoken")


def test_load_tokenizer_takes_special_tokens_before_the_others(tmp_path):
    """As BpeTrainer numbers them: the special tokens first, and in the vocabulary as well."""
    folders.write(tmp_path, "transformers 5")
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = content["added_tokens"]
    shifted = {token: rank + len(tokens) for token, rank in content["model"]["vocab"].items()}
    for index, token in enumerate(tokens):
        token["id"] = index
    content["model"]["vocab"] = {token["content"]: token["id"] for token in tokens} | shifted
    folders.dump(tmp_path / "tokenizer.json", content)
    ours, theirs = load_tokenizer(tmp_path), reference(tmp_path)
    assert (ours.end_of_text, ours.im_end) == (0, 2)
    for text in texts(300, seed=3):
        assert ours.encode(text, allow_special=True) == theirs.encode(text).ids, text


def test_normalize_is_the_nfc_of_tokenizers_for_every_character():
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    theirs = tokenizers.normalizers.NFC()
    every = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    for start in range(0, len(every), 64):
        # Marks of several classes, before and after: what moves or composes shows.
        text = "".join(f"a\u0345{char}\u0899\u0323\u3099" for char in every[start : start + 64])
        assert normalize(text) == theirs.normalize_str(text), hex(start)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("normalizer", [None, "NFC"])
def test_load_tokenizer_takes_other_patterns_and_normal_forms(tmp_path, pattern, normalizer):
    folders.write(tmp_path, "transformers 5", folders.ranks([*folders.MERGES, b"12", b"123"]))
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    content["normalizer"] = normalizer and {"type": normalizer}
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern
    folders.dump(tmp_path / "tokenizer.json", content)
    ours, theirs = load_tokenizer(tmp_path), reference(tmp_path)
    for text in texts(200, seed=4):
        assert ours.encode(text, allow_special=True) == theirs.encode(text).ids, text
    assert len(ours.encode("123")) == (3 if pattern == PATTERN else 1)


REFUSED = {
    "model is not supported: Unigram": ("model", "type", "Unigram"),
    "dropout is not supported: 0.1": ("model", "dropout", 0.1),
    "end_of_word_suffix is not supported: </w>": ("model", "end_of_word_suffix", "</w>"),
    "lstrip of the added token '<\\|endoftext": ("added_tokens", 0, "lstrip", True),
    "single_word of the added token": ("added_tokens", 3, "single_word", True),
    "is not an added token": ("added_tokens", 0, "id", "7"),
    "normalizer is not supported: {'type': 'Lowercase'": ("normalizer", {"type": "Lowercase"}),
    "decoder is not supported": ("decoder", {"type": "Metaspace"}),
    "normalizer is not supported: {'type': 'NFKC'": ("normalizer", {"type": "NFKC"}),
    "pre-tokenizer is not supported: {'type': 'ByteLevel'": (
        "pre_tokenizer",
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    ),
    "regular expression of the pre-tokenizer is not supported: .w.": (
        *("pre_tokenizer", "pretokenizers", 0, "pattern", "Regex"),
        r"\w+|\W+",
    ),
    "post-processor is not supported": (
        *("post_processor", "single"),
        [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}],
    ),
    "has the id 277 in one file": ("added_tokens", 5, "id", 301),
    "comes after one of a higher id": ("model", "merges", 3, ["t", "h"]),
    "is not of known tokens": ("model", "merges", 3, ["x", "h"]),
    "no merge that text can reach produces the token b'in'": ("model", "merges", -5, ["t", "h"]),
    "not a byte-level vocabulary": ("model", "vocab", "\u4f60", 300),
    "b'a' and b'b' have one id, 98": ("model", "vocab", "a", 98),
    "merges is not a list": ("model", "merges", None),
    "decoder is not supported: x": ("decoder", "x"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_load_tokenizer_refuses_what_it_cannot_reproduce(tiny, tmp_path, message):
    folder = tiny / "released"
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["merges"] = [item.split(" ") for item in content["model"]["merges"]]
    *path, last, value = REFUSED[message]
    if "no merge" in message:
        del content["model"]["merges"][5]
    else:
        part = content
        for key in path:
            part = part[key]
        part[last] = value
    folders.dump(tmp_path / "tokenizer.json", content)
    (tmp_path / "tokenizer_config.json").write_bytes(
        (folder / "tokenizer_config.json").read_bytes()
    )
    with pytest.raises(QwenJaxError, match=message):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"eos_token": "<|end|>"}, r"'<\|end\|>' has no id in any file"),
        ({"extra_special_tokens": ["<|x|>"]}, r"'<\|x\|>' has no id"),
        ({"add_bos_token": True, "bos_token": "<|im_start|>"}, "add_bos_token is true"),
        ({"add_prefix_space": True}, "add_prefix_space is true"),
        ({"chat_template": [{"name": "default"}]}, "neither text nor a list"),
        ({"added_tokens_decoder": {"5": "x"}}, "does not map ids"),
    ],
)
def test_load_tokenizer_refuses_settings_that_change_text(tmp_path, change, message):
    folders.write(tmp_path, "transformers 5")
    (tmp_path / "chat_template.jinja").unlink()
    folders.dump(tmp_path / "tokenizer_config.json", folders.config(**change))
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(tmp_path)


def test_load_tokenizer_guesses_no_special_tokens(tmp_path):
    folders.write(tmp_path, "slow")
    for name in ("added_tokens.json", "special_tokens_map.json"):
        (tmp_path / name).unlink()
    with pytest.raises(TokenizerError, match="has no id in any file"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.special_tokens == {}
    folders.dump(tmp_path / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"})
    with pytest.raises(TokenizerError, match="without tokenizer.json is not supported: GPT2"):
        load_tokenizer(tmp_path)


def test_load_tokenizer_replaces_surrogates_next_to_special_tokens(tiny):
    tokenizer = load_tokenizer(tiny / "released")
    ids = tokenizer.encode("a\ud800<|im_end|>\udc00", allow_special=True)
    assert tokenizer.decode(ids) == "a\ufffd<|im_end|>\ufffd"


def test_check_merges_accepts_only_lists_that_give_the_same_ids():
    """Random vocabularies over two letters; every text of up to 9 letters."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    rng = random.Random(0)
    results = {True: 0, False: 0}
    all_texts = ["".join(text) for n in range(1, 10) for text in itertools.product("ab", repeat=n)]
    for _ in range(60):
        ranks = folders.ranks(())
        pairs: list[tuple[bytes, bytes]] = []
        for _ in range(rng.randint(2, 6)):
            known = [b"a", b"b", *{left + right for left, right in pairs}]
            left, right = rng.choice(known), rng.choice(known)
            if len(left + right) > 8 or left + right in ranks and rng.random() < 0.7:
                continue
            ranks.setdefault(left + right, len(ranks))
            pairs.append((left, right))
        if rng.random() < 0.2:
            rng.shuffle(pairs)
        try:
            check_merges(ranks, copy.copy(pairs), "merges")
            accepted = True
        except TokenizerError:
            accepted = False
        results[accepted] += 1
        if accepted:
            vocab = {folders.printable(token): rank for token, rank in ranks.items()}
            listed = [(left.decode(), right.decode()) for left, right in pairs]
            theirs = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, listed))
            ours = Tokenizer(ranks, ())
            wrong = [text for text in all_texts if ours.encode(text) != theirs.encode(text).ids]
            assert wrong == [], pairs
    assert min(results.values()) > 5, results


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_load_tokenizer_reads_the_pair_of_either_file_with_its_settings(tiny, name):
    found = load_tokenizer(tiny / "released" / name)
    assert "tokenizer.json" not in found.settings.files
    assert found.fingerprint == load_tokenizer(tiny / "released").fingerprint
    assert found.im_end == load_tokenizer(tiny / "slow").im_end


def test_load_tokenizer_reads_a_tiktoken_file_of_any_name(tiny, tmp_path):
    file = next((tiny / "tiktoken").glob("*.tiktoken"))
    (tmp_path / "ranks.bpe").write_bytes(file.read_bytes())
    assert load_tokenizer(tmp_path / "ranks.bpe").fingerprint == load_tokenizer(file).fingerprint
