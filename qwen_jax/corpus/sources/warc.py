"""Reads WARC archives; reports and skips corrupted records.

WARC libraries fail at the first corrupted gzip member, or stop there silently. This reader reports
the corruption and resumes at the next readable record. It reads .warc and .warc.gz (one record per
gzip member, as Common Crawl writes them, or several), starting from any byte of the file.
"""

import abc
import collections
import dataclasses
import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO

_CHUNK = 1 << 16
_LINE = 1 << 13  # maximum bytes in a header line
_HEADER = 1 << 17  # maximum bytes in a header
_MAX_SKIPPED = 1 << 30  # maximum bytes decompressed only to reach a member's next record
_UNSUPPORTED = ("br", "zstd", "compress", "x-compress")  # content encodings that are not decoded
_BEGIN = re.compile(rb"WARC/1\.\d\r?\n")


@dataclasses.dataclass
class Record:
    """A record; if it has a `problem`, the part of it that could be read."""

    offset: int  # byte offset in the file, of the record or its gzip member
    headers: dict[str, str]  # names are lowercase
    content: bytes
    problem: str | None = None  # "truncated", "corrupt" or "too_large"
    detail: str = ""


class _Damaged(Exception):
    """Raised with the `problem` and `detail` of a Record."""


def records(
    file: BinaryIO, *, compressed: bool, begin: int = 0, end: int = -1, limit: int = 1 << 24
) -> Iterator[Record]:
    """Yields the records (or gzip members) that start at a byte in [begin, end).

    Args:
      file: a seekable file.
      compressed: whether the file consists of gzip members.
      begin: byte offset at which to start.
      end: byte offset at which to stop; -1 is the end of the file.
      limit: maximum bytes of content; the content of a larger record (too_large) is skipped.
    """
    end = end if end >= 0 else 1 << 62
    offset = begin
    if begin or compressed:
        offset = _find(file, begin, end, compressed)
        if begin == 0 < end and offset != 0 and file.seek(0, 2):
            yield Record(0, {}, b"", "corrupt", "the file does not start with a record")
    while offset is not None and offset < end:
        stream = _Member(file, offset) if compressed else _Plain(file, offset)
        at = offset
        try:
            while (started := stream.begin()) is not None:
                at = offset if compressed else started
                if at >= end:
                    return
                yield _record(stream, at, limit)
            offset = stream.next()
            if offset is not None and compressed and not _begins(file, offset):
                raise _Damaged("corrupt", "no record where the next one should start")
        except (_Damaged, zlib.error) as error:
            problem, detail = (
                error.args if isinstance(error, _Damaged) else ("corrupt", f"gzip: {error}")
            )
            yield Record(at, {}, b"", problem, detail)
            offset = _find(file, max(at, offset or 0) + 1, end, compressed)


def _record(stream, offset: int, limit: int) -> Record:
    headers, size = {}, 0
    while line := stream.line().rstrip(b"\r\n"):
        size += len(line)
        if size > _HEADER:
            raise _Damaged("corrupt", "unterminated header")
        name, colon, value = line.partition(b":")
        if colon:
            headers[name.decode("latin-1").lower()] = value.strip().decode("utf-8", "replace")
    try:
        length = int(headers["content-length"])
        if length < 0:
            raise ValueError
    except (KeyError, ValueError):
        raise _Damaged(
            "corrupt", "invalid content-length: " + headers.get("content-length", "none")
        ) from None
    if length > limit:
        stream.skip(length)
        return Record(offset, headers, b"", "too_large", str(length))
    content = stream.read(length)
    if len(content) < length:
        raise _Damaged("truncated", f"{len(content)} of {length} bytes")
    if stream.peek() not in (b"", b"\r", b"\n"):  # wrong length, or another record starts inside
        raise _Damaged("corrupt", f"continues after its {length} bytes")
    return Record(offset, headers, content)


class _Stream(abc.ABC):
    """A buffered byte stream with a position; subclasses read a plain file or a gzip member."""

    def __init__(self, file: BinaryIO, offset: int):
        self._file, self._offset, self._buffer = file, offset, bytearray()
        file.seek(offset)

    @abc.abstractmethod
    def _more(self) -> bytes:
        """Returns the next bytes; b"" at the end."""

    def _fill(self, size: int) -> bool:
        while len(self._buffer) < size:
            if not (more := self._more()):
                return False
            self._buffer += more
        return True

    def begin(self) -> int | None:
        """Skips the first line of the next record; returns its position, or None at the end."""
        while True:
            self._fill(_LINE)
            if not self._buffer:
                return None
            if blank := len(self._buffer) - len(self._buffer.lstrip(b"\r\n")):
                self._take(blank)
                continue
            match = _BEGIN.match(self._buffer)
            if not match:
                raise _Damaged("corrupt", "no record where the next one should start")
            position = self._offset
            self._take(match.end())
            return position

    def line(self) -> bytes:
        self._fill(_LINE)
        stop = self._buffer.find(b"\n", 0, _LINE) + 1
        if not stop:
            raise _Damaged(
                "truncated" if len(self._buffer) < _LINE else "corrupt", "unterminated header"
            )
        return self._take(stop)

    def peek(self) -> bytes:
        self._fill(1)
        return bytes(self._buffer[:1])

    def read(self, size: int) -> bytes:
        self._fill(size)
        return self._take(size)

    def skip(self, size: int) -> None:
        skipped = 0
        while size > len(self._buffer):
            size -= len(self._buffer)
            skipped += len(self._take(len(self._buffer)))
            if skipped > _MAX_SKIPPED:
                raise _Damaged("too_large", f"a record has more than {_MAX_SKIPPED} bytes")
            if not self._fill(1):
                raise _Damaged("truncated", f"{size} bytes are missing")
        self._take(size)

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        self._offset += len(taken)
        return taken


class _Plain(_Stream):
    def _more(self) -> bytes:
        return self._file.read(_CHUNK)

    def next(self) -> None:
        return None  # at the end of the file


class _Member(_Stream):
    """One gzip member, decompressed as it is read."""

    def __init__(self, file: BinaryIO, offset: int):
        super().__init__(file, offset)
        self._inflate, self._raw, self._begin, self._read = zlib.decompressobj(31), b"", offset, 0

    def _more(self) -> bytes:
        while not self._inflate.eof:
            if not self._raw:
                self._raw = self._file.read(_CHUNK)
                self._read += len(self._raw)
                if not self._raw:
                    raise _Damaged("truncated", "unterminated gzip member")
            # Bounded output: the member may be a decompression bomb.
            made = self._inflate.decompress(self._raw, 1 << 20)
            self._raw = self._inflate.unconsumed_tail
            if made:
                return made
        return b""

    def next(self) -> int | None:
        """Returns the position after this member, or None at the end of the file."""
        position = self._begin + self._read - len(self._inflate.unused_data)
        self._file.seek(position)
        return position if self._file.read(1) else None


def _find(file: BinaryIO, offset: int, end: int, compressed: bool) -> int | None:
    """Returns the first position in [offset, end) where a record or member starts, or None."""
    sign = b"\x1f\x8b\x08" if compressed else b"WARC/1."
    file.seek(offset)
    position, window = offset, b""
    while position < end:
        chunk = file.read(_CHUNK)
        window += chunk
        start = 0
        while (found := window.find(sign, start)) >= 0:
            if position + found >= end:
                return None
            if (
                _begins(file, position + found)
                if compressed
                else _is_record(file, position + found)
            ):
                return position + found
            start = found + 1
        if not chunk:
            return None
        keep = len(sign) - 1
        position, window = position + len(window) - keep, window[-keep:]
        file.seek(position + keep)
    return None


def _begins(file: BinaryIO, offset: int) -> bool:
    """Returns whether a gzip member with a record starts here.

    gzip's magic number may also occur by chance.
    """
    file.seek(offset)
    try:
        head = zlib.decompressobj(31).decompress(file.read(1 << 10), 64)
    except zlib.error:
        return False
    return _BEGIN.match(head.lstrip(b"\r\n")) is not None


def _is_record(file: BinaryIO, offset: int) -> bool:
    """Returns whether a record starts here; a page's text may also contain "WARC/1."."""
    file.seek(max(0, offset - 2))
    before = file.read(min(2, offset))
    head = file.read(1 << 12)
    return (
        before in (b"", b"\r\n", b"\n\n")
        and _BEGIN.match(head) is not None
        and (b"WARC-Type:" in head)
    )


def http_body(content: bytes, limit: int) -> tuple[int, dict[str, str], bytes, str | None]:
    """Parses an HTTP response and decodes its transfer and content encodings.

    Args:
      limit: maximum bytes of the decoded body; a larger one is too_large.

    Returns:
      (status, headers, body, problem). The problem is None, not_http, coding (an unsupported
      encoding), truncated, corrupt, trailing (bytes after the encoded body) or too_large.
    """
    head, blank, body = content.partition(b"\r\n\r\n")
    if not blank:
        head, blank, body = content.partition(b"\n\n")
    lines = head.splitlines()
    status = re.match(rb"HTTP/\S+ (\d{3})", lines[0] if lines else b"")
    if not status or not blank:
        return 0, {}, b"", "not_http"
    headers = {}
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        headers[name.strip().decode("latin-1").lower()] = value.strip().decode("latin-1")
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body = _unchunk(body)
    coding = headers.get("content-encoding", "").lower()
    if coding in _UNSUPPORTED and body.lstrip()[:1] != b"<":
        return int(status[1]), headers, b"", "coding"
    if coding in ("gzip", "x-gzip", "deflate") and body[:2] != b"<!":
        try:
            body, problem = _inflate(body, coding, limit)
        except zlib.error:  # many archives decode the body but keep the header
            problem = None if body.lstrip()[:1] == b"<" else "corrupt"
        if problem:
            return int(status[1]), headers, b"", problem
    return int(status[1]), headers, body, None


def _inflate(body: bytes, coding: str, limit: int) -> tuple[bytes, str | None]:
    kinds = collections.deque((47,) if coding != "deflate" else (15, -15))
    while kinds:
        inflate = zlib.decompressobj(kinds.popleft())
        try:
            made = inflate.decompress(body, limit + 1)
        except zlib.error:
            if not kinds:
                raise
            continue
        rest = inflate.unused_data
        while inflate.eof and rest[:2] == b"\x1f\x8b" and len(made) <= limit:  # RFC 1952, 2.2
            inflate = zlib.decompressobj(31)
            made += inflate.decompress(rest, limit + 1 - len(made))
            rest = inflate.unused_data
        if len(made) > limit:
            return b"", "too_large"
        if not inflate.eof:
            return b"", "truncated"
        return made, "trailing" if rest.strip(b"\0\r\n ") else None  # padding is harmless
    raise AssertionError("a way to inflate was tried")


def _unchunk(body: bytes) -> bytes:
    """Joins a chunked body; returns it unchanged if it has no chunks (archives often join them)."""
    parts, position = [], 0
    while match := re.compile(rb"([0-9a-fA-F]{1,8})[^\r\n]{0,256}\r?\n").match(body, position):
        size = int(match[1], 16)
        if not size:
            return b"".join(parts)
        parts.append(body[match.end() : match.end() + size])
        position = match.end() + size
        position += 2 if body[position : position + 2] == b"\r\n" else 1
    return b"".join(parts) if parts else body
