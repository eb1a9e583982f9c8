"""Byte-level BPE with Qwen's pre-tokenization, based on tiktoken. Report: 2.2."""

import base64
import binascii
import concurrent.futures
import copy
import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tiktoken

from qwen_jax.errors import TokenizerError
from qwen_jax.tokenizer.added_tokens import AddedToken, Splitter, number
from qwen_jax.tokenizer.nfc import normalize, well_formed
from qwen_jax.tokenizer.settings import Settings
from qwen_jax.tokenizer.template.chat import apply_chat_template
from qwen_jax.utils.files import atomic_write, read_bytes

# Splits text into the words that BPE merges within. Numbers are split into single digits.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The patterns that are supported. cl100k's takes up to three digits.
PATTERNS = (PATTERN, PATTERN.replace(r"\p{N}| ?", r"\p{N}{1,3}| ?"))
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    *(f"<|extra_{i}|>" for i in range(205)),
)

_DOWNLOAD = "pass a .tiktoken file, or download it again."
# tiktoken's regex fails on 10^6 blanks in a row (its backtracking stack overflows), so runs longer
# than this bypass it; see _long_runs.
_MAX_RUN = 100_000
# The characters that \s in PATTERN matches, except \r and \n. Python's \s differs (\x1c to \x1f).
_BLANK = r"[\t\v\f \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"


def read_ranks(path: str | os.PathLike, *, sha256: str | None = None) -> dict[bytes, int]:
    """Reads a .tiktoken file as token -> rank. Each line is a token in base64 and its rank.

    Always reads `path`, unlike tiktoken's loader, which returns a cached copy after the first read.

    Args:
      sha256: expected hex digest of the file; None: not checked.

    Raises:
      TokenizerError: the file does not exist or has a different digest, a line is malformed, a
        token is repeated, a rank is not the line number, or a single byte is not a token.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise TokenizerError(
            "the file does not exist.", str(path), "pass the path of a .tiktoken file."
        )
    data = read_bytes(path, error=TokenizerError, fix=_DOWNLOAD, max_bytes=1 << 28)
    return parse_ranks(data, str(path), sha256=sha256)


def parse_ranks(data: bytes, path: str, *, sha256: str | None = None) -> dict[bytes, int]:
    """Returns token -> rank of the content of a .tiktoken file. Raises as read_ranks does."""
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256.lower():
        raise TokenizerError(
            f"the file's SHA-256 is {found}, not {sha256}.",
            path,
            "download it again, or pass the digest of the intended file.",
        )
    ranks: dict[bytes, int] = {}
    for index, line in enumerate(data.splitlines(), start=1):
        where = f"{path}, line {index}"
        token = _parse(line, index - 1, where)
        if token in ranks:
            raise TokenizerError(
                f"the token {token!r} is already on line {ranks[token] + 1}.",
                where,
                "download or write the file again.",
            )
        ranks[token] = index - 1
    _check_ranks(ranks, path)
    return ranks


def write_ranks(path: str | os.PathLike, ranks: Mapping[bytes, int]) -> None:
    """Writes `ranks` as a .tiktoken file, atomically.

    Raises:
      TokenizerError: the ranks are not 0, 1, 2 ..., or a single byte is not a token.
    """
    _check_ranks(ranks, "ranks")
    with atomic_write(path) as file:
        for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
            file.write(base64.b64encode(token) + b" %d\n" % rank)


class Tokenizer:
    """Converts text to ids and back. Special tokens in text are encoded as text by default.

    `qwen_jax.load_tokenizer` makes one from the files of any Qwen.

    Args:
      mergeable_ranks: token -> rank, which is its id; of two merges, the lower rank goes first.
      special_tokens: names, numbered after the ranks, name -> id, or tokens with their ids, also
        some that are not special, such as <think>. None: the special tokens of Qwen-1.
      pattern: the regular expression that splits text into words, one of PATTERNS.
      nfc: whether text is normalized to NFC.
      settings: the roles of tokens, the chat templates and the files.

    Example:
      >>> tokenizer = Tokenizer.from_file("qwen.tiktoken")  # doctest: +SKIP
      >>> tokenizer.encode("Hello, world!")  # doctest: +SKIP
      [9707, 11, 1879, 0]

    Raises:
      TokenizerError: a byte is not a token, or tokens share an id.

    Report: 2.2.
    """

    def __init__(
        self,
        mergeable_ranks: Mapping[bytes, int],
        special_tokens: Iterable[str | AddedToken] | Mapping[str, int] | None = None,
        *,
        pattern: str = PATTERN,
        nfc: bool = True,
        settings: Settings | None = None,
    ):
        _check_bytes(mergeable_ranks, "Tokenizer(mergeable_ranks)")
        self.mergeable_ranks = dict(mergeable_ranks)
        if len(set(self.mergeable_ranks.values())) < len(self.mergeable_ranks):
            raise TokenizerError(
                "two tokens have one rank.", "Tokenizer(mergeable_ranks)", "number each token."
            )
        specials = SPECIAL_TOKENS if special_tokens is None else special_tokens
        self.added_tokens = number(specials, self.mergeable_ranks)
        # All added tokens, also those that are not special: none of them is text.
        self.special_tokens = {token.content: token.id for token in self.added_tokens}
        self.pattern, self.nfc = pattern, nfc
        self._normalize = normalize if nfc else well_formed
        self.settings = settings or Settings()
        self._encoding = tiktoken.Encoding(
            "qwen_jax",
            pat_str=pattern,
            mergeable_ranks=self.mergeable_ranks,
            special_tokens=self.special_tokens,
        )
        self._ids = frozenset(self.mergeable_ranks.values()) | set(self.special_tokens.values())
        self._splitter = Splitter(self.added_tokens, self._normalize)

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike,
        *,
        sha256: str | None = None,
        special_tokens: Iterable[str] | Mapping[str, int] | None = None,
    ) -> "Tokenizer":
        """Loads a .tiktoken file. Raises as read_ranks does."""
        return cls(read_ranks(path, sha256=sha256), special_tokens)

    def __reduce__(self):
        keywords = {"pattern": self.pattern, "nfc": self.nfc, "settings": self.settings}
        make = functools.partial(type(self), **keywords)
        return make, (self.mergeable_ranks, self.added_tokens)

    def with_settings(self, settings: Settings) -> "Tokenizer":
        """Returns a copy with other settings, which shares everything else."""
        other = copy.copy(self)
        other.settings = settings
        return other

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Returns the ids of `text`, normalized as the tokenizer says.

        Args:
          text: any string; lone surrogates are encoded as U+FFFD.
          allow_special: whether to parse added tokens in `text`. Unsafe for untrusted text.
        """
        if not allow_special or not self.special_tokens:
            return self._encode_ordinary(self._normalize(text)).tolist()
        ids = []
        for part in self.split(text):
            ids += [part] if isinstance(part, int) else self._encode_ordinary(part).tolist()
        return ids

    def normalized(self, text: str) -> str:
        """Returns `text` as it is encoded: in NFC, if the tokenizer says so."""
        return self._normalize(text)

    def split(self, text: str) -> Iterator[str | int]:
        """Yields the ids of the added tokens in `text`, and the normalized text between them."""
        return self._splitter.split(well_formed(text))

    def encode_batch(
        self, texts: Sequence[str], *, num_threads: int | None = None
    ) -> list[np.ndarray]:
        """Returns the ids of each text, uint32 [T]; special tokens are encoded as text.

        Args:
          num_threads: number of threads; None: one per core.
        """
        threads = num_threads or os.cpu_count() or 1
        size = max(1, len(texts) // (8 * threads))  # dispatching a task costs as much as a text
        parts = [texts[i : i + size] for i in range(0, len(texts), size)]
        if threads == 1 or len(parts) == 1:
            return self._encode_part(texts)
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            return [ids for part in pool.map(self._encode_part, parts) for ids in part]

    def _encode_part(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self._encode_ordinary(self._normalize(text)) for text in texts]

    def encode_word(self, word: str) -> list[int]:
        """Returns the ids of `word` without normalization and without splitting it."""
        return self._encoding._encode_single_piece(word.encode("utf-8"))

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`; invalid UTF-8 (a partial character) becomes U+FFFD.

        Raises:
          TokenizerError: an id has no token, such as those that pad the model's vocabulary.
        """
        numbers: list[int] = np.asarray(ids if hasattr(ids, "__len__") else list(ids)).tolist()
        if unknown := [token for token in numbers if token not in self._ids]:
            raise TokenizerError(
                f"no token has the id {unknown[0]}; the highest id is {self.vocab_size - 1}.",
                "decode",
                "limit sampling to the tokenizer's vocab_size, or use the model's tokenizer.",
            )
        return self._encoding.decode(numbers, errors="replace")

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        **kwargs: Any,
    ) -> str:
        """Returns a conversation as text, by the chat template of the tokenizer's files.

        Without a template it is ChatML, and tools are ReAct's, as in Qwen-1.

        Args:
          messages: OpenAI's: "role", "content", "tool_calls", also "reasoning_content".
          tools: definitions of functions as JSON schemas, as in OpenAI's API.
          add_generation_prompt: whether to end with the start of the assistant's turn.
          kwargs: further variables of the template, such as enable_thinking=False.
            `chat_template` names one of several templates, or is the source of another one.

        Raises:
          TokenizerError: the template refuses the conversation, or jinja2 is not installed.
        """
        return apply_chat_template(self.settings, messages, tools, add_generation_prompt, **kwargs)

    @property
    def vocab_size(self) -> int:
        """The highest id plus one, including special tokens."""
        return max(self._ids) + 1

    @functools.cached_property
    def max_token_bytes(self) -> int:
        """Bytes of the longest token of text; T tokens of text have at most T times as many."""
        return max(map(len, self.mergeable_ranks))

    @functools.cached_property
    def token_sizes(self) -> np.ndarray:
        """Bytes of the text of each id, int64 [vocab_size]; the text of an added token is its name.

        0 for ids without a token.
        """
        sizes = np.zeros(self.vocab_size, np.int64)
        for token, rank in self.mergeable_ranks.items():
            sizes[rank] = len(token)
        for name, token_id in self.special_tokens.items():
            sizes[token_id] = len(name.encode("utf-8"))
        return sizes

    @property
    def end_of_text(self) -> int:
        return self._special_id("<|endoftext|>")

    @property
    def im_start(self) -> int:
        return self._special_id("<|im_start|>")

    @property
    def im_end(self) -> int:
        return self._special_id("<|im_end|>")

    def token_id(self, role: str) -> int | None:
        """Returns the id of a role that the files name: "eos_token", "bos_token", "pad_token".

        None if they do not name it.
        """
        name = self.settings.named.get(role)
        return None if name is None else self._special_id(name)

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits that identify how text becomes ids; stable across releases."""
        digest = hashlib.sha256()
        for token in sorted(self.mergeable_ranks, key=lambda token: self.mergeable_ranks[token]):
            digest.update(base64.b64encode(token) + b"\n")
        for name, token in sorted(self.special_tokens.items(), key=lambda item: item[1]):
            digest.update(f"{token} {name}\n".encode())
        if (self.pattern, self.nfc) != (PATTERN, True):
            digest.update(f"{self.nfc} {self.pattern}\n".encode())
        return digest.hexdigest()[:16]

    def save(self, path: str | os.PathLike) -> None:
        """Writes the ranks as a .tiktoken file, which does not store special tokens."""
        write_ranks(path, self.mergeable_ranks)

    def _encode_ordinary(self, text: str) -> np.ndarray:
        """Returns the ids of normalized text, uint32 [T], with special tokens as text."""
        parts, done = [], 0
        for start, end in _long_runs(text):
            parts.append(self._by_regex(text[done:start]))
            parts.append(np.array(self.encode_word(text[start:end]), np.uint32))
            done = end
        last = self._by_regex(text[done:])
        return np.concatenate([*parts, last]) if parts else last

    def _by_regex(self, text: str) -> np.ndarray:
        return self._encoding.encode_to_numpy(text, disallowed_special=())

    def _special_id(self, name: str) -> int:
        if name not in self.special_tokens:
            raise TokenizerError(
                f"the tokenizer has no special token {name}.",
                "Tokenizer",
                "add it to special_tokens, or omit special_tokens to get Qwen's.",
            )
        return self.special_tokens[name]


def _long_runs(text: str) -> Iterator[tuple[int, int]]:
    """Yields (start, end) of the words of any of PATTERNS that are long runs of blanks.

    Splitting there changes no id. Consider a maximal run of blanks (white space without line ends).
    If a line end follows, the run is part of `\\s*[\\r\\n]+`, which never fails. Otherwise a word
    starts at the start of the run, because no alternative continues from another character into a
    blank. `\\s+(?!\\S)` then matches the full run at the end of the text, and otherwise all but the
    last blank, which belongs to the next word. No alternative looks behind, or ahead past a blank.
    """
    if len(text) <= _MAX_RUN:
        return
    # The lookbehind skips the rest of a run that is too short, instead of retrying inside it.
    for run in re.finditer(f"(?<!{_BLANK}){_BLANK}{{{_MAX_RUN},}}", text):
        start, end = run.span()
        if end == len(text):
            yield start, end
        elif text[end] not in "\r\n" and end - 1 > start:
            yield start, end - 1


def _parse(line: bytes, rank: int, where: str) -> bytes:
    """Parses a line of a .tiktoken file and returns its token."""
    try:
        encoded, found = line.split()
        token, found = base64.b64decode(encoded, validate=True), int(found)
    except (ValueError, binascii.Error):
        raise TokenizerError(
            f"{line[:60]!r} is not a base64 token followed by its rank.",
            where,
            "download the file again, and check its SHA-256.",
        ) from None
    if found != rank or not token:
        raise TokenizerError(
            f"the rank is {found}, not {rank}." if token else "the token is empty.",
            where,
            "download the file again; a rank is the line number, from 0.",
        )
    return token


def _check_ranks(ranks: Mapping[bytes, int], where: str) -> None:
    _check_bytes(ranks, where)
    for expected, rank in enumerate(sorted(ranks.values())):
        if rank != expected:
            raise TokenizerError(
                f"the ranks have a gap or a duplicate at {expected}.",
                where,
                "number the tokens 0, 1, 2 ...",
            )


def _check_bytes(ranks: Mapping[bytes, int], where: str) -> None:
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise TokenizerError(
            f"single bytes without a token: {len(missing)}; the first is {missing[0]:#04x}.",
            where,
            "use a vocabulary with all 256 bytes; without them some text cannot be encoded.",
        )
