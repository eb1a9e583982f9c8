"""Parses the text of small JSON files strictly: what it returns is safe to print, copy and write.

Python's parser accepts more: NaN, repeated keys, integers of any size, text that UTF-8 cannot
encode, and nesting that overflows the stack of whoever walks the result.
"""

import json
import math
import re
from typing import Any

MAX_DEPTH = 64  # nested lists and objects
_MAX_DIGITS = 20  # of an integer; 64 bits have at most 20
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class JSONError(ValueError):
    """Text that is not JSON, with the reason and where possible line and column."""


def parse(raw: bytes, *, finite: bool = True) -> Any:
    """Parses UTF-8 text, with or without a byte order mark, as JSON.

    Args:
      finite: whether NaN and infinities are refused.

    Raises:
      JSONError: the text is not JSON, repeats a key, has an integer of more than 64 bits, an
        unpaired surrogate or more than MAX_DEPTH levels.
    """
    if not raw.strip(b" \t\r\n\0"):
        raise JSONError(f"it has only {len(raw):,} blank bytes" if raw else "it is empty")
    try:
        content = json.loads(
            raw.decode("utf-8-sig"),
            parse_int=_integer,
            parse_float=_finite if finite else None,
            parse_constant=_refuse if finite else None,
            object_pairs_hook=without_repeated_keys,
        )
    except RecursionError:
        raise JSONError(f"it has more than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise JSONError(str(error)) from None
    check_depth(content, raw)
    if _SURROGATE.search(raw):
        try:
            json.dumps(content, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise JSONError("a text has an unpaired surrogate, which is not a character") from None
    return content


def check_depth(content: Any, raw: bytes) -> None:
    """Raises JSONError if `content`, parsed from `raw`, has more than MAX_DEPTH levels."""
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return
    level = [content]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for each in level
            if isinstance(each, (dict, list))
            for item in (each.values() if isinstance(each, dict) else each)
        ]
    if any(isinstance(each, (dict, list)) for each in level):
        raise JSONError(f"it has more than {MAX_DEPTH} levels")


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"an integer has {len(text.lstrip('-'))} digits")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a number in JSON")


def without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns an object; raises ValueError if a key is repeated, of which Python takes the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice[:60]!r} is repeated")
    return found
