"""Trains and extends vocabularies, including Qwen's extension of cl100k. Report: 2.2.

The report's vocabulary is `extend_like_qwen`: cl100k_base without multi-digit numbers, then a token
for each common Chinese character, then merges learned from text.

Training grows the 256 bytes; extending grows an existing vocabulary. The trainer in `tokenizers`
cannot start from existing merges, but its characters can represent anything. Each base token is
therefore written as one character, and the trainer learns merges of base tokens.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping

import regex

from qwen_jax.errors import TokenizerError
from qwen_jax.tokenizer.bpe import PATTERN, Tokenizer
from qwen_jax.tokenizer.huggingface import with_merges
from qwen_jax.tokenizer.nfc import normalize

# The released vocabulary ("about 152K" in the report). With 208 special tokens: 151,851 ids.
QWEN_RANKS = 151_643
_INSTALL = 'pip install "qwen_jax[data]".'
# Token i is written as the character U+40000 + i. Planes 4 to 16 have room for 851,968 characters,
# contain no white space, and have no properties that affect the trainer.
_FIRST_CHAR = 0x40000
_SEPARATOR = " "  # between words; words of base tokens never contain it


def train(texts: Iterable[str], *, vocab_size: int, allow_fewer: bool = False) -> dict[bytes, int]:
    """Trains a vocabulary on `texts` and returns token -> rank: 256 bytes, then merges.

    Args:
      texts: documents, read once; only the distinct words are held in memory.
      vocab_size: number of tokens, excluding the special tokens that Tokenizer adds.
      allow_fewer: whether too little text gives a smaller vocabulary.

    Raises:
      TokenizerError: there is too little text for `vocab_size`, or `tokenizers` is not installed.

    Report: 2.2.
    """
    if vocab_size <= 256:
        raise TokenizerError(
            f"vocab_size={vocab_size} leaves no room for merges after the 256 bytes.",
            "train(vocab_size)",
            "use more than 256.",
        )
    return grow(
        {bytes([byte]): byte for byte in range(256)},
        texts,
        num_new=vocab_size - 256,
        allow_fewer=allow_fewer,
        setting=("--vocabulary.size", 256),
    )


def grow(
    ranks: Mapping[bytes, int],
    texts: Iterable[str],
    *,
    num_new: int,
    allow_fewer: bool = False,
    setting: tuple[str, int] = ("num_new", 0),
) -> dict[bytes, int]:
    """Returns `ranks` plus `num_new` merges, learned from `texts` tokenized with `ranks`.

    The ids of `ranks` do not change. Every word is checked to encode to the trainer's ids.

    Args:
      texts: documents, read once; only the distinct words are held in memory.
      allow_fewer: whether to return fewer than `num_new` merges if the texts yield no more.
      setting: the flag to change if they yield too few, and its value for 0 merges.

    Raises:
      TokenizerError: the texts yield fewer than `num_new` merges, `tokenizers` is not installed, or
        the new ranks encode a word differently from the trainer.

    Report: 2.2.
    """
    base = Tokenizer(ranks, special_tokens=())
    written: dict[str, str] = {}  # word -> its base tokens, one character each
    trainer = _learn(_write(texts, base, written), len(ranks), num_new)
    token_of = {chr(_FIRST_CHAR + rank): token for token, rank in ranks.items()}
    grown = dict(ranks)
    merges = json.loads(trainer.to_str())["model"]["merges"]
    for left, right in merges:
        token_of[left + right] = token_of[left] + token_of[right]
        grown.setdefault(token_of[left + right], len(grown))
    if len(merges) < num_new and not allow_fewer:
        flag, start = setting
        raise TokenizerError(
            f"the texts yield only {len(merges)} new merges, not {num_new}.",
            flag,
            f"use more text, or {flag}={start + len(merges)}.",
        )
    if len(grown) != len(ranks) + len(merges):
        # The trainer distinguishes the pairs (a, bc) and (ab, c); to tiktoken both are abc.
        raise TokenizerError(
            f"merges that repeat an existing token: {len(ranks) + len(merges) - len(grown)}.",
            "texts",
            "pass different text, or change num_new.",
        )
    verify(
        grown,
        (
            (word, [grown[token_of[part]] for part in trainer.encode(text).tokens])
            for word, text in written.items()
        ),
    )
    return grown


def grow_tokenizer(
    tokenizer: Tokenizer,
    texts: Iterable[str],
    *,
    num_new: int,
    characters: str = "",
    setting: tuple[str, int] = ("num_new", 0),
) -> Tokenizer:
    """Returns a tokenizer with `num_new` more merges, which keeps all that was there.

    No id changes: those of new tokens follow the added tokens, such as <|im_end|>. The files are
    those of the tokenizer with the merges in them, so roles, flags and templates stay.

    Args:
      texts, setting: as in grow.
      characters: characters that become tokens first, as in add_characters.

    Raises:
      TokenizerError: as in grow and add_characters; or the tokenizer splits text in another way
        than Qwen's, or it is a .tiktoken file, which has no place for tokens behind added ones.

    Report: 2.2.
    """
    check_growable(tokenizer)
    ordered = sorted(tokenizer.mergeable_ranks, key=lambda token: tokenizer.mergeable_ranks[token])
    dense = {token: number for number, token in enumerate(ordered)}
    added = add_characters(dense, characters)
    more = len(dense) + num_new - len(added)
    if more < 0:
        raise TokenizerError(
            f"the characters take {len(added) - len(dense)} of {num_new} new tokens.",
            "grow_tokenizer(num_new, characters)",
            "raise --vocabulary.num_new, or pass --vocabulary.chinese_characters=false.",
        )
    grown = grow(added, texts, num_new=more, setting=setting)
    first = tokenizer.vocab_size - len(dense)
    new = {token: first + number for token, number in grown.items() if token not in dense}
    ranks = {**tokenizer.mergeable_ranks, **new}
    files = with_merges(tokenizer.settings.files, ranks, new, tokenizer.special_tokens)
    settings = dataclasses.replace(tokenizer.settings, files=files)
    return Tokenizer(ranks, tokenizer.added_tokens, settings=settings)


def check_growable(tokenizer: Tokenizer) -> None:
    """
    Raises:
      TokenizerError: as in grow_tokenizer.
    """
    files = tokenizer.settings.files
    if tokenizer.pattern != PATTERN or not tokenizer.nfc:
        what = "it splits text in another way than Qwen's, whose words merges are learned from"
    elif "tokenizer.json" not in files and "vocab.json" not in files:
        what = "a .tiktoken file has no place for tokens behind added ones"
    else:
        return
    raise TokenizerError(
        f"this tokenizer cannot grow: {what}.",
        "--vocabulary.base",
        "grow the tokenizer.json of a Qwen, or a .tiktoken file by itself.",
    )


def verify(ranks: Mapping[bytes, int], words: Iterable[tuple[str, list[int]]]) -> int:
    """Checks that tiktoken encodes each word to the trainer's ids; returns the number of words.

    Args:
      words: pairs (word, its ids from the trainer).

    Raises:
      TokenizerError: the ids of some words differ; the error gives their number and the first one.
    """
    tokenizer = Tokenizer(ranks, special_tokens=())
    count, wrong = 0, []
    for word, expected in words:
        count += 1
        if tokenizer.encode_word(word) != expected:
            wrong.append((word, expected))
    if wrong:
        word, expected = wrong[0]
        raise TokenizerError(
            f"{len(wrong)} of {count} words encode differently than in training: {word!r} gives "
            f"{tokenizer.encode_word(word)}, not {expected}.",
            "ranks",
            "pass different text, or change the size; these merges cannot be expressed as ranks.",
        )
    return count


def qwen_base(ranks: Mapping[bytes, int]) -> dict[bytes, int]:
    """Returns `ranks` without multi-digit numbers, in the same order, renumbered from 0.

    Qwen's pattern splits numbers into single digits, so these tokens can never occur (report 2.2).
    cl100k_base keeps 99,156 tokens, the first 99,156 of the released vocabulary. Like the released
    vocabulary, the result keeps two numbers in full-width digits, which cannot occur either.
    """
    kept = sorted(
        (token for token in ranks if len(token) == 1 or not token.isdigit()),
        key=lambda token: ranks[token],
    )
    return {token: rank for rank, token in enumerate(kept)}


def common_chinese() -> str:
    """Returns the 3,755 characters of level 1 of the national standard GB 2312, rows 16 to 55.

    The report adds "commonly used Chinese characters" without listing them. This list is our
    choice; the released vocabulary has a token for all but two of them.
    """
    cells = [(row, column) for row in range(16, 56) for column in range(1, 95)][:-5]
    return bytes(0xA0 + number for cell in cells for number in cell).decode("gb2312")


def add_characters(ranks: Mapping[bytes, int], characters: Iterable[str]) -> dict[bytes, int]:
    """Returns `ranks` plus a token for each of `characters`.

    A character that is three base tokens needs two new ones: its first two bytes and the character.

    Raises:
      TokenizerError: merges in `ranks` split a character inside a word.
    """
    base = Tokenizer(ranks, special_tokens=())
    token_of = {rank: token for token, rank in ranks.items()}
    characters = list(characters)
    added = dict(ranks)
    for character in characters:
        parts = [token_of[token] for token in base.encode_word(character)]
        for end in range(2, len(parts) + 1):
            added.setdefault(b"".join(parts[:end]), len(added))
    grown = Tokenizer(added, special_tokens=())
    # Each is checked as a word of two, because tiktoken does not merge a word that is a token.
    if split := [each for each in characters if len(grown.encode_word(each * 2)) > 2]:
        raise TokenizerError(
            f"characters that are not single tokens: {len(split)} of {len(characters)}; the first "
            f"is {split[0]!r}.",
            "characters",
            "remove them; earlier merges split them.",
        )
    return added


def extend_like_qwen(
    ranks: Mapping[bytes, int],
    texts: Iterable[str],
    *,
    num_new: int | None = None,
    characters: str | None = None,
) -> dict[bytes, int]:
    """Returns `qwen_base(ranks)` plus `num_new` tokens: characters, then merges of `texts`.

    Without `num_new`, too little text gives a smaller vocabulary.

    Args:
      ranks: the base vocabulary; cl100k_base in the report.
      texts: as in grow; languages get merges in proportion to their amount of text.
      num_new: number of tokens to add; None: up to QWEN_RANKS tokens in total (52,487 on top of
        cl100k_base).
      characters: characters that become tokens. None: common_chinese().

    Raises:
      TokenizerError: `ranks` already has QWEN_RANKS tokens, or `num_new` is too small for the
        characters; also as in grow.

    Report: 2.2.
    """
    base, added, new = room(ranks, num_new, characters)
    return grow(
        added,
        texts,
        num_new=base + new - len(added),
        allow_fewer=num_new is None,
        setting=("--vocabulary.num_new", len(added) - base),
    )


def room(
    ranks: Mapping[bytes, int], num_new: int | None, characters: str | None
) -> tuple[int, dict[bytes, int], int]:
    """Checks the arguments of extend_like_qwen, which reads texts only afterward.

    Returns:
      (number of tokens kept of `ranks`, the ranks with the characters, number of tokens to add).

    Raises:
      TokenizerError: there is no room for new tokens, or for the characters.
    """
    base = qwen_base(ranks)
    new = QWEN_RANKS - len(base) if num_new is None else num_new
    if new <= 0:
        raise TokenizerError(
            f"the base has {len(base)} tokens, which leaves {new} to add.",
            "extend_like_qwen(num_new)",
            "set --vocabulary.num_new to a positive number.",
        )
    added = add_characters(base, common_chinese() if characters is None else characters)
    if len(added) - len(base) > new:
        raise TokenizerError(
            f"the characters take {len(added) - len(base)} of {new} new tokens.",
            "extend_like_qwen(num_new, characters)",
            "raise --vocabulary.num_new, or pass --vocabulary.chinese_characters=false.",
        )
    return len(base), added, new


def _write(texts: Iterable[str], base: Tokenizer, written: dict[str, str]) -> Iterator[str]:
    """Yields each text with words written as base-token characters; adds them to `written`."""
    for text in texts:
        words = regex.findall(PATTERN, normalize(text))
        for word in set(words).difference(written):
            written[word] = "".join(chr(_FIRST_CHAR + token) for token in base.encode_word(word))
        yield _SEPARATOR.join([written[word] for word in words])


def _learn(lines: Iterable[str], num_base: int, num_new: int):
    """Returns a `tokenizers.Tokenizer` with `num_new` merges learned from `lines`."""
    try:
        import tokenizers  # an optional dependency
    except ImportError:
        raise TokenizerError(
            "training needs the tokenizers package, which is not installed.",
            "qwen_jax.tokenizer.extend",
            _INSTALL,
        ) from None
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=num_base + num_new,
        show_progress=False,
        special_tokens=[],
        initial_alphabet=[chr(_FIRST_CHAR + rank) for rank in range(num_base)],
    )
    learner = tokenizers.Tokenizer(tokenizers.models.BPE())
    learner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    learner.train_from_iterator(lines, trainer)
    return learner
