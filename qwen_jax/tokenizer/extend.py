"""Vocabularies: from nothing, from another one, and Qwen's way from cl100k. Report: 2.2.

The report's vocabulary is `extend_like_qwen`: cl100k_base without numbers of several digits, a
token for each common Chinese character, then merges of text.

Training and growing are the same: grow the 256 bytes, or grow the tokens that there are. The
trainer of `tokenizers` cannot start from existing merges, but its characters may stand for
anything: each base token is written as one character, so it learns merges of base tokens.
"""

import json
from collections.abc import Iterable, Iterator, Mapping

import regex

from qwen_jax.errors import TokenizerError
from qwen_jax.tokenizer.bpe import PATTERN, Tokenizer, normalize

# Of the released vocabulary; the report says "about 152K". With 208 special tokens: 151,851 ids.
QWEN_RANKS = 151_643
_INSTALL = 'pip install "qwen_jax[data]".'
# Token i is written as the character U+40000 + i: planes 4 to 16 have room for 851,968, hold no
# white space, and nothing looks up what their characters are.
_FIRST_CHAR = 0x40000
_SEPARATOR = " "  # between words; no word holds it, since base tokens are written otherwise


def train(texts: Iterable[str], *, vocab_size: int) -> dict[bytes, int]:
    """token -> rank of a vocabulary learned from `texts`: the 256 bytes, then merges by frequency.

    Args:
      texts: read once; memory holds the different words, not the text.
      vocab_size: without special tokens, which a Tokenizer adds on top.

    Raises:
      TokenizerError: too little text for `vocab_size`, or `tokenizers` is not installed.

    Report: 2.2.
    """
    if vocab_size <= 256:
        raise TokenizerError(
            f"{vocab_size} tokens leave no room beside the 256 bytes.",
            "train(vocab_size)",
            "ask for more than 256.",
        )
    return grow({bytes([byte]): byte for byte in range(256)}, texts, num_new=vocab_size - 256)


def grow(ranks: Mapping[bytes, int], texts: Iterable[str], *, num_new: int) -> dict[bytes, int]:
    """`ranks` with `num_new` merges after them, learned from what `ranks` make of `texts`.

    Every id of `ranks` stays what it was. Each word of the texts is checked to have the ids that
    the trainer gives it.

    Args:
      texts: read once; memory holds the different words, not the text.

    Raises:
      TokenizerError: the text does not hold `num_new` merges, `tokenizers` is not installed, or
        words that the ranks cannot express as they were learned.

    Report: 2.2.
    """
    base = Tokenizer(ranks, special_tokens=())
    written: dict[str, str] = {}  # word -> its base tokens, a character each
    trainer = _learn(_write(texts, base, written), len(ranks), num_new)
    token_of = {chr(_FIRST_CHAR + rank): token for token, rank in ranks.items()}
    grown = dict(ranks)
    merges = json.loads(trainer.to_str())["model"]["merges"]
    for left, right in merges:
        token_of[left + right] = token_of[left] + token_of[right]
        grown.setdefault(token_of[left + right], len(grown))
    if len(merges) < num_new:
        raise TokenizerError(
            f"the texts hold {len(merges)} new merges, not {num_new}.",
            "texts",
            "pass more text, or ask for fewer tokens (--vocabulary.num_new, --vocabulary.size).",
        )
    if len(grown) != len(ranks) + len(merges):
        # The trainer tells pairs apart, (a, bc) from (ab, c); tiktoken sees the same abc.
        raise TokenizerError(
            f"{len(ranks) + len(merges) - len(grown)} merges make a token that there is already.",
            "texts",
            "pass other text or another num_new.",
        )
    verify(
        grown,
        (
            (word, [grown[token_of[part]] for part in trainer.encode(text).tokens])
            for word, text in written.items()
        ),
    )
    return grown


def verify(ranks: Mapping[bytes, int], words: Iterable[tuple[str, list[int]]]) -> int:
    """How many words were checked to have, by tiktoken, the ids that a trainer gives them.

    Args:
      words: (word, the trainer's ids of it).

    Raises:
      TokenizerError: with the number of words that differ, and the first of them.
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
            f"{len(wrong)} of {count} words have other ids than in training; {word!r} has "
            f"{tokenizer.encode_word(word)}, not {expected}.",
            "ranks",
            "pass other text or another size: these merges cannot be written as ranks.",
        )
    return count


def qwen_base(ranks: Mapping[bytes, int]) -> dict[bytes, int]:
    """`ranks` without numbers of several digits, in the same order, numbered from 0.

    Qwen's pattern cuts numbers into single digits, so these tokens could never occur (report 2.2).
    Of cl100k_base 99,156 tokens stay, the first 99,156 of the released vocabulary. It keeps two
    numbers in full-width digits, which cannot occur either, and so does this.
    """
    kept = sorted(
        (token for token in ranks if len(token) == 1 or not token.isdigit()),
        key=lambda token: ranks[token],
    )
    return {token: rank for rank, token in enumerate(kept)}


def common_chinese() -> str:
    """The 3,755 common characters: level 1 of the national standard GB 2312, rows 16 to 55.

    The report adds "commonly used Chinese characters" and does not list them. This list is ours;
    the released vocabulary has a token for each of them but two.
    """
    places = [(row, column) for row in range(16, 56) for column in range(1, 95)][:-5]
    return bytes(0xA0 + number for place in places for number in place).decode("gb2312")


def add_characters(ranks: Mapping[bytes, int], characters: Iterable[str]) -> dict[bytes, int]:
    """`ranks` with a token for each of `characters` after them.

    A character of three base tokens takes two new tokens: its first two bytes, then the character.

    Raises:
      TokenizerError: characters that merges of `ranks` cut within a word.
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
    # Each twice in a word: tiktoken does not merge a word that is one token.
    if cut := [each for each in characters if len(grown.encode_word(each * 2)) > 2]:
        raise TokenizerError(
            f"{len(cut)} of {len(characters)} characters are no single tokens, first {cut[0]!r}.",
            "characters",
            "leave them out: earlier merges cut them.",
        )
    return added


def extend_like_qwen(
    ranks: Mapping[bytes, int],
    texts: Iterable[str],
    *,
    num_new: int | None = None,
    characters: str | None = None,
) -> dict[bytes, int]:
    """`qwen_base(ranks)` with `num_new` tokens after them: characters, then merges of `texts`.

    Args:
      ranks: cl100k_base's in the report.
      texts: see grow; their languages share the merges by how much text they have.
      num_new: None: 52,487 on top of cl100k_base, which makes QWEN_RANKS; as many elsewhere.
      characters: each becomes a token. None: common_chinese().

    Raises:
      TokenizerError: `ranks` has QWEN_RANKS tokens already, `num_new` is too few for the
        characters, or see grow.

    Report: 2.2.
    """
    base = qwen_base(ranks)
    num_new = QWEN_RANKS - len(base) if num_new is None else num_new
    if num_new <= 0:
        raise TokenizerError(
            f"the base has {len(base)} tokens, which leaves {num_new} to add.",
            "extend_like_qwen(num_new)",
            "set it with --vocabulary.num_new.",
        )
    added = add_characters(base, common_chinese() if characters is None else characters)
    if len(added) - len(base) > num_new:
        raise TokenizerError(
            f"the characters take {len(added) - len(base)} of {num_new} new tokens.",
            "extend_like_qwen(num_new, characters)",
            "raise --vocabulary.num_new, or pass --vocabulary.chinese_characters=false.",
        )
    return grow(added, texts, num_new=len(base) + num_new - len(added))


def _write(texts: Iterable[str], base: Tokenizer, written: dict[str, str]) -> Iterator[str]:
    """Each text with its base tokens as characters, words apart; adds its words to `written`."""
    for text in texts:
        words = regex.findall(PATTERN, normalize(text))
        for word in set(words).difference(written):
            written[word] = "".join(chr(_FIRST_CHAR + token) for token in base.encode_word(word))
        yield _SEPARATOR.join([written[word] for word in words])


def _learn(lines: Iterable[str], num_base: int, num_new: int):
    """A `tokenizers.Tokenizer` that has learned `num_new` merges of the characters in `lines`."""
    try:
        import tokenizers  # an extra
    except ImportError:
        raise TokenizerError(
            "tokenizers, which learns the merges, is not installed.",
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
