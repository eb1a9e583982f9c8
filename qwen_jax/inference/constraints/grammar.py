"""Grammars that completions follow: JSON schemas and Lark, compiled by llguidance.

A grammar is compiled once per vocabulary and kept; a completion has a matcher of its own, which
says what the next token may be. Keywords of JSON schemas that are not implemented are refused, not
ignored, so what a completion says is valid.
"""

import collections
import functools
import json
import re
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from qwen_jax.errors import ConfigError
from qwen_jax.inference.stream import token_bytes
from qwen_jax.tokenizer.bpe import Tokenizer

MAX_SCHEMA_BYTES = 64 * 1024
_KEPT = 128  # compiled grammars per vocabulary
# A blank, or a line end and its indentation. With more, a model that is not sure of the next key
# may write white space until its last token.
_WHITE_SPACE = r"(\n {0,64}| )?"
_FUEL = {"initial_lexer_fuel": 1_000_000, "step_lexer_fuel": 200_000, "max_grammar_size": 100_000}


class Matcher:
    """Where a completion is in its grammar."""

    def __init__(self, matcher: Any, num_words: int):
        self._matcher, self.num_words = matcher, num_words

    def fill(self, words_W: np.ndarray) -> None:
        """Writes which tokens may come next: a bit per id, into int32 words of ceil(V / 32)."""
        self._matcher.unsafe_compute_mask_ptr(words_W.ctypes.data, words_W.nbytes)

    def consume(self, token: int) -> None:
        """Adds a token to the completion."""
        self._matcher.consume_token(token)

    @property
    def stopped(self) -> bool:
        """Whether only the end may follow, also because of an error."""
        return self._matcher.is_stopped()

    @property
    def error(self) -> str:
        """Why the grammar cannot go on, such as a limit of its size; "": there is no error."""
        return self._matcher.get_error()


class Grammar:
    """A compiled grammar, which many completions may follow at a time."""

    def __init__(self, matcher: Any, num_words: int):
        self._matcher, self._num_words = matcher, num_words

    def start(self) -> Matcher:
        """Returns the matcher of a new completion."""
        return Matcher(self._matcher.deep_copy(), self._num_words)


class Compiler:
    """Compiles grammars for a tokenizer, and keeps them.

    Args:
      stop_ids: the ids that end a completion; a grammar allows them at its end.

    Raises:
      ConfigError: llguidance is not installed.
    """

    def __init__(self, tokenizer: Tokenizer, stop_ids: Sequence[int]):
        self._library = _llguidance()
        self._vocabulary = self._library.LLTokenizer(
            self._library.TokenizerWrapper(_Vocabulary(tokenizer, stop_ids[0])),
            eos_token=list(stop_ids),
        )
        self._limits = self._library.LLParserLimits(verbose_errors=False, **_FUEL)
        self._kept: collections.OrderedDict[str, Grammar | str] = collections.OrderedDict()
        self._lock = threading.Lock()

    def compile(self, lark: str, where: str) -> Grammar:
        """Returns a grammar in llguidance's Lark; those that were compiled before are kept.

        Args:
          where: what the grammar is from, for errors.

        Raises:
          ConfigError: the grammar is malformed or too large, or has a keyword that is not
            implemented; the error has its name.
        """
        with self._lock:  # one compiles at a time: it takes a core
            found = self._kept.pop(lark, None)
            if found is None:
                found = self._compile(lark)
            self._kept[lark] = found
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        if isinstance(found, str):
            raise ConfigError(
                f"the schema is not supported: {found}.", where, "omit it, or change the schema."
            )
        return found

    def _compile(self, lark: str) -> Grammar | str:
        text = self._library.LLMatcher.grammar_from_lark(lark)
        matcher = self._library.LLMatcher(self._vocabulary, text, log_level=0, limits=self._limits)
        if matcher.is_error():
            return _short(matcher.get_error())
        return Grammar(matcher, -(-self._vocabulary.vocab_size // 32))


@functools.lru_cache(maxsize=4)
def compiler(tokenizer: Tokenizer, stop_ids: tuple[int, ...]) -> Compiler:
    """Returns the compiler of a tokenizer, which is made once: it reads the whole vocabulary."""
    return Compiler(tokenizer, stop_ids)


def json_rule(schema: Any, where: str) -> str:
    """Returns what stands for JSON of a schema in a rule of Lark.

    Raises:
      ConfigError: the schema is not an object, or is too large.
    """
    schema = {} if schema is True else schema
    if not isinstance(schema, dict):
        raise ConfigError(
            f"the schema {str(schema)[:60]} is not an object.", where, "pass a JSON schema."
        )
    try:
        text = json.dumps(schema)
    except RecursionError:
        text = " " * (MAX_SCHEMA_BYTES + 1)
    if len(text) > MAX_SCHEMA_BYTES:
        raise ConfigError(
            f"the schema has more than {MAX_SCHEMA_BYTES:,} bytes.", where, "send a smaller one."
        )
    if '"x-guidance"' in text:  # it would turn our settings off
        raise ConfigError("the keyword x-guidance is not supported.", where, "omit it.")
    options = {"whitespace_flexible": True, "whitespace_pattern": _WHITE_SPACE}
    return "%json " + json.dumps(schema | {"x-guidance": options})


def _short(error: str) -> str:
    """Returns the reason of an error, without the grammar that llguidance quotes after it."""
    text = re.split(r"\s\d+ \| |<state>", " ".join(error.split()))[0]
    text = re.sub(r"^(at )?\d+\(\d+\): ", "", text).strip().rstrip(".")
    text = text.removeprefix("failed to compile JSON schema: ")
    return text if len(text) <= 300 else f"{text[:297]}..."


class _Vocabulary:
    """A tokenizer as llguidance takes it."""

    def __init__(self, tokenizer: Tokenizer, eos: int):
        table = token_bytes(tokenizer)
        self.tokens = [table.get(token, b"") for token in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.special_tokens.values())
        self.eos_token_id, self.bos_token_id = eos, None
        self._tokenizer = tokenizer

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenizer.encode(text if isinstance(text, str) else text.decode("utf-8"))


def _llguidance() -> Any:
    try:
        import llguidance  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            "llguidance, which constrains what a model may say, is not installed.",
            "grammar",
            "pip install 'qwen_jax[grammar]'.",
        ) from None
    return llguidance
