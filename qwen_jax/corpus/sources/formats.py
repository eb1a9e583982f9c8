"""Recognizes what a file holds from its content; its name only decides where content cannot.

C4 is shipped as JSON lines named .json.gz, and Spark names its files part-00000. A name says only
which text is HTML or source code, and whether a single JSON object is a document or a row.
"""

import codecs
import io
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal

from qwen_jax.utils import compressed

Layout = Literal["parquet", "warc", "html", "lines", "values", "text"]
HTML = (".html", ".htm", ".xhtml")
LINES = (".jsonl", ".ndjson")
ARCHIVES = (".warc", ".wet")
PROSE = (".txt", ".text", "")  # "": no suffix, or an unknown one
_FIRST_LINE = 1 << 20  # bytes; a longer first line is parsed as a part of `values`
HEAD = 1 << 12  # bytes from which a format is recognized
# What reading a damaged file raises.
DAMAGED = (*compressed.ERRORS, UnicodeDecodeError)
_LIST = re.compile(rb"\s*\[\s*(?:[{\"]|\]\s*$)")  # of objects or texts, or empty
_MARKS = (  # the UTF-32 mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_BETWEEN = re.compile(r"[\s,\[\]\ufeff]*")  # what may stand between the values of a file


def detect(file: BinaryIO, suffix: str, field: str | None) -> Layout:
    """Returns the layout of a file that is not empty.

    Args:
      file: a seekable binary file.
      suffix: the suffix of its name, in lowercase and without `.gz` and the like.
      field: name of the text field; None: unknown, and no text or single object is taken for rows.

    Returns:
      "lines" (a JSON object per line), "values" (a JSON list, or objects over several lines),
      "parquet", "warc", "html" or "text".
    """
    try:
        head = compressed.decompressed(file).read(HEAD)
    except DAMAGED as error:
        damage(error)
        head = b""
    if head.startswith(b"PAR1") or suffix == ".parquet":
        return "parquet"
    if head.startswith(b"WARC/1.") or suffix in ARCHIVES:
        return "warc"
    if suffix in HTML:
        return "html"
    if suffix not in (".json", *LINES, *PROSE):
        return "text"
    try:
        return _json(file, suffix, field)
    except DAMAGED as error:  # the reader reports the damage
        damage(error)
        return "lines" if suffix in LINES else "text"


def _json(file: BinaryIO, suffix: str, field: str | None) -> Layout:
    stream = open_utf8(file)
    lines = (line for line in iter(lambda: stream.readline(_FIRST_LINE), b"") if line.strip())
    first, second = next(lines, b"").removeprefix(codecs.BOM_UTF8), next(lines, b"")
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        row = None
    has_field = isinstance(row, dict) and field in row
    if suffix in PROSE:
        return "lines" if has_field else "text"
    if isinstance(row, dict):
        rows = suffix in LINES or second or has_field or _holds_rows(row, field)
        return "lines" if rows else "text"
    if _LIST.match(first + second):
        return "values"
    if not first.lstrip().startswith(b"{"):
        return "lines" if suffix in LINES else "text"
    if suffix in LINES:  # indented, or the first line is damaged
        return "values" if first.strip() == b"{" or second[:1] in (b" ", b"\t", b'"') else "lines"
    found = list(itertools.islice(values(open_utf8(file)), 2))
    rows = isinstance(found[0], dict) and (len(found) > 1 or field in found[0])
    return "values" if rows or _holds_rows(found[0], field) else "text"


def _holds_rows(value: Any, field: str | None) -> bool:
    """Whether an object is a table within a key such as "data": it is rejected, and named."""
    inner = value.values() if isinstance(value, dict) else ()
    firsts = (each[0] for each in inner if isinstance(each, list) and each)
    return any(isinstance(first, dict) and field in first for first in firsts)


def is_text(file: BinaryIO) -> bool:
    """Returns whether a file of an unknown type is text, or in a format that its content names."""
    try:
        head = compressed.decompressed(file).read(HEAD)
    except DAMAGED as error:
        damage(error)
        return False
    if head.startswith((b"PAR1", b"WARC/1.")) or encoding(head) != "utf-8":
        return True
    try:  # the last character may be incomplete
        codecs.getincrementaldecoder("utf-8")().decode(head, len(head) < HEAD)
    except UnicodeDecodeError:
        return False
    return b"\0" not in head


def damage(error: Exception) -> str:
    """Returns the first line of one of DAMAGED; re-raises it if reading the disk failed."""
    return compressed.damage(error)


def encoding(head: bytes) -> str:
    """Returns "utf-8", or the wider encoding that the first bytes of a text show."""
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    even, odd = head[::2].count(0), head[1::2].count(0)
    if len(head) > 3 and max(even, odd) * 5 > len(head) and not min(even, odd):
        return "utf-16-le" if odd else "utf-16-be"  # no mark: half of Latin text is NUL bytes
    return "utf-8"


def open_utf8(file: BinaryIO) -> BinaryIO:
    """Returns the decompressed content of a seekable file, in UTF-8 if it is in UTF-16 or UTF-32.

    The result is the file itself, at its start, if it is in plain UTF-8.
    """
    head = compressed.decompressed(file).read(HEAD)
    return utf8(compressed.decompressed(file), head)


def utf8(stream: BinaryIO, head: bytes) -> BinaryIO:
    """Returns the stream in UTF-8, if its first bytes, `head`, are in UTF-16 or UTF-32."""
    name = encoding(head)
    return stream if name == "utf-8" else io.BufferedReader(_Recoded(stream, name))


class _Recoded(io.RawIOBase):
    """A text stream of another encoding, as bytes in UTF-8."""

    def __init__(self, stream: BinaryIO, name: str):
        self._stream, self._left = stream, b""
        self._decode = codecs.getincrementaldecoder(name)().decode

    def readinto(self, buffer) -> int:
        while not self._left:
            raw = self._stream.read(1 << 16)
            self._left = self._decode(raw, not raw).encode("utf-8", "surrogatepass")
            if not raw:
                break
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size

    def readable(self) -> bool:
        return True


def values(stream: BinaryIO, limit: int = 1 << 28) -> Iterator[Any]:
    """Yields the JSON values of a stream: of a list, or one after the other.

    The last item is an exception if the rest cannot be parsed or a value has over `limit` bytes.
    """
    decoder, decode = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8")().decode
    text, position = "", 0
    while True:
        position = _BETWEEN.match(text, position).end()  # pyright: ignore (matches anything)
        try:
            value, end = decoder.raw_decode(text, position)
            if end == len(text) and not isinstance(value, dict | list):
                raise ValueError("a number may continue")
        except (ValueError, RecursionError) as error:
            text, position = text[position:], 0
            more = stream.read(max(1 << 16, len(text)))  # doubles, so that parsing stays linear
            if not more or len(text) > limit:
                if text:
                    yield error
                return
            try:
                text += decode(more)
            except UnicodeDecodeError as problem:
                yield problem
                return
            continue
        yield value
        position = end
