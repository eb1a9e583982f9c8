"""Splits a long plain text file, such as a book, into documents. Report: 2.1."""

from collections.abc import Iterator
from typing import BinaryIO

_ENDS = (b"\n\n", b"\r\n\r\n", b"\n", b" ")  # where to split, best first; all are one UTF-8 unit


def documents(stream: BinaryIO, size: int) -> Iterator[tuple[int, bytes]]:
    """Yields (byte offset, UTF-8 text); their concatenation is the content of the stream.

    A document has at most `size` bytes. It ends after the last blank line in its second half; if
    there is none, after the last line, or else the last space.
    """
    left, offset = b"", 0
    while True:
        while len(left) <= size and (more := stream.read(max(1 << 16, size))):
            left += more
        if len(left) <= size:
            break
        end = _end(left[:size])
        yield offset, left[:end]
        left, offset = left[end:], offset + end
    if left:
        yield offset, left


def _end(text: bytes) -> int:
    for end in _ENDS:
        found = text.rfind(end, len(text) // 2)
        if found >= 0:
            return found + len(end)
    end = len(text)
    while end > 1 and end > len(text) - 4 and text[end - 1] & 0xC0 == 0x80:
        end -= 1  # into the last character
    return end - 1 if text[end - 1] & 0xC0 == 0xC0 else len(text)
