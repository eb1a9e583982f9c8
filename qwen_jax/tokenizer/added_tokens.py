"""Tokens that text contains as they are, outside of BPE: control tokens and others. Report: 2.2."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from qwen_jax.errors import TokenizerError


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A token that is not made by merges, as the `added_tokens` of released files.

    Args:
      special: whether it controls the model, such as <|im_end|>; <think> and <tool_call> do not.
      normalized: whether it is searched for in normalized text. Otherwise text is split at the
        token first, and what is between is normalized, so nothing composes with the token.
    """

    content: str
    id: int
    special: bool = True
    normalized: bool = False


class Splitter:
    """Splits text at added tokens: of two that start together, the longer one counts.

    Args:
      normalize: the normalization of text between tokens.
    """

    def __init__(self, tokens: Iterable[AddedToken], normalize: Callable[[str], str]):
        tokens = tuple(tokens)
        self._normalize = normalize
        self._raw = _Pattern({token.content: token.id for token in tokens if not token.normalized})
        self._later = _Pattern(
            {normalize(token.content): token.id for token in tokens if token.normalized}
        )

    def split(self, text: str) -> Iterator[str | int]:
        """Yields the ids of tokens, and the normalized text before, between and after them."""
        for part in self._raw.split(text):
            if isinstance(part, int):
                yield part
            else:
                yield from self._later.split(self._normalize(part))


class _Pattern:
    """One regular expression for many tokens."""

    def __init__(self, ids: Mapping[str, int]):
        self._ids = dict(ids)
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._regex = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def split(self, text: str) -> Iterator[str | int]:
        if not self._ids:
            yield text
            return
        for index, part in enumerate(self._regex.split(text)):  # text, token, text, ...
            if index % 2:
                yield self._ids[part]
            elif part:
                yield part


def number(
    tokens: Iterable[str | AddedToken] | Mapping[str, int], ranks: Mapping[bytes, int]
) -> tuple[AddedToken, ...]:
    """Returns the added tokens, in the order of their ids.

    Args:
      tokens: names, numbered after the ranks, or name -> id, both special; or tokens with ids.
      ranks: the other tokens, whose ids are taken.

    Raises:
      TokenizerError: a token is listed twice or empty, or two tokens share an id.
    """
    where = "Tokenizer(special_tokens)"
    start = max(ranks.values(), default=-1) + 1
    if isinstance(tokens, Mapping):
        found = [AddedToken(str(name), token) for name, token in tokens.items()]
    else:
        found = [
            AddedToken(token, start + index) if isinstance(token, str) else token
            for index, token in enumerate(tokens)
        ]
    if len({token.content for token in found}) < len(found):
        raise TokenizerError("a special token is listed twice.", where, "list each once.")
    ids = {token.id for token in found}
    if (
        any(not token.content or not 0 <= token.id < 1 << 31 for token in found)
        or len(ids) < len(found)
        or not ids.isdisjoint(ranks.values())
    ):
        shown = {token.content: token.id for token in found[:3]}
        raise TokenizerError(
            f"the special tokens {shown} ... need names, and unique ids that are not those of "
            "other tokens.",
            where,
            "pass only the names; they are numbered automatically.",
        )
    return tuple(sorted(found, key=lambda token: token.id))
