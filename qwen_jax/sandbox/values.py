"""Values of an untrusted process as JSON with types, so that a trusted one can compare them.

A value is a list [tag, content]. Only the built-in types themselves are encoded, and the usual
subclasses of dict in `collections`: a class of the program could answer every comparison with yes.
"""

import collections
import json
from typing import Any

from qwen_jax.utils import json_text

MAX_DEPTH = 20  # nested lists, tuples, sets and dicts
MAX_BYTES = 1 << 20  # of a value as text
MAX_ITEMS = 10_000  # of a set or dict: hashes that collide make larger ones slow
_DICTS = (dict, collections.OrderedDict, collections.Counter, collections.defaultdict)


class ValueRefused(ValueError):
    """A value that has no typed form: its type, depth or size."""


def encode(value: Any, depth: int = 0) -> list:
    """Returns the typed form of None, bool, int, float, complex, str, bytes and containers of them.

    Raises:
      ValueRefused: another type, also a subclass of these; nested deeper than MAX_DEPTH.
    """
    kind = type(value)
    if value is None or kind is bool:
        return ["b", value]
    if kind is int:
        return ["i", hex(value)]
    if kind is float:
        return ["f", value.hex()]
    if kind is complex:
        return ["c", value.real.hex(), value.imag.hex()]
    if kind is str:
        return (
            ["s", value] if value.isascii() else ["u", value.encode("utf-8", "surrogatepass").hex()]
        )
    if kind in (bytes, bytearray):
        return ["y" if kind is bytes else "Y", bytes(value).hex()]
    if depth >= MAX_DEPTH:
        raise ValueRefused(f"a value is nested deeper than {MAX_DEPTH} levels")
    if kind in _DICTS:
        items = list(dict.items(value))
        return ["d", [[encode(key, depth + 1), encode(each, depth + 1)] for key, each in items]]
    tag = {list: "l", tuple: "t", set: "S", frozenset: "F"}.get(kind)
    if tag is None:
        raise ValueRefused(f"a value of type {kind.__name__[:100]}")
    return [tag, [encode(each, depth + 1) for each in value]]


def decode(form: Any, depth: int = 0) -> Any:
    """Returns the value of a typed form. Safe for any JSON, from any source.

    Raises:
      ValueRefused: it is not a typed form.
    """
    try:
        return _decode(form, depth)
    except (ValueError, TypeError, IndexError, OverflowError, RecursionError) as error:
        raise ValueRefused(f"not a typed value: {error}") from None


def _decode(form: Any, depth: int) -> Any:
    if not isinstance(form, list) or len(form) < 2 or depth > MAX_DEPTH:
        raise ValueRefused("not a typed value")
    tag, content = form[0], form[1]
    if tag == "b" and (content is None or isinstance(content, bool)):
        return content
    if tag == "c":
        return complex(float.fromhex(content), float.fromhex(form[2]))
    if tag in ("i", "f", "s", "u", "y", "Y") and isinstance(content, str):
        return {
            "i": lambda: int(content, 16),
            "f": lambda: float.fromhex(content),
            "s": lambda: content,
            "u": lambda: bytes.fromhex(content).decode("utf-8", "surrogatepass"),
            "y": lambda: bytes.fromhex(content),
            "Y": lambda: bytearray.fromhex(content),
        }[tag]()
    if tag not in ("l", "t", "S", "F", "d") or not isinstance(content, list):
        raise ValueRefused("not a typed value")
    if tag in ("S", "F", "d") and len(content) > MAX_ITEMS:
        raise ValueRefused(f"a set or dict has more than {MAX_ITEMS} items")
    if tag == "d":
        return {_decode(key, depth + 1): _decode(each, depth + 1) for key, each in content}
    made = [_decode(each, depth + 1) for each in content]
    return {"l": list, "t": tuple, "S": set, "F": frozenset}[tag](made)


def to_bytes(form: Any) -> bytes:
    """Returns JSON text on one line, in ASCII."""
    return json.dumps(form, separators=(",", ":")).encode()


def from_bytes(raw: bytes) -> Any:
    """Parses one line of an untrusted process.

    Raises:
      ValueRefused: it is not JSON, is too long or is nested too deep.
    """
    if len(raw) > MAX_BYTES:
        raise ValueRefused(f"a value has more than {MAX_BYTES:,} bytes")
    try:
        return json_text.parse(raw)
    except json_text.JSONError as error:
        raise ValueRefused(str(error)) from None
