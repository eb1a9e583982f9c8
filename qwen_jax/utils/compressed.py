"""Opens files that may be compressed with gzip, bzip2, xz or Zstandard.

The first bytes of a file decide, not its name: some programs decompress a file without renaming it.
"""

import bz2
import gzip
import io
import lzma
import re
import zlib
from typing import Any, BinaryIO

from qwen_jax.errors import DataError

SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
# What reading a damaged file raises; `damage` separates these errors from those of a disk.
ERRORS = (EOFError, OSError, zlib.error, lzma.LZMAError)
_MAGIC = re.compile(
    rb"(?P<gzip>\x1f\x8b)|(?P<bzip2>BZh[1-9])|(?P<xz>\xfd7zXZ\x00)|"
    rb"(?P<zstd>\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18)"  # a frame, or one that is skipped
)


def compression(file: BinaryIO) -> str:
    """Returns "gzip", "bzip2", "xz", "zstd" or "" for a seekable file, and rewinds it."""
    file.seek(0)
    found = _MAGIC.match(file.read(6))
    file.seek(0)
    return found.lastgroup or "" if found else ""


def decompressed(file: BinaryIO) -> BinaryIO:
    """Returns a stream of the file's content from its start; several members are joined.

    Args:
      file: a seekable file, compressed or not. It must stay open.

    Raises:
      DataError: the file needs Zstandard, and pyarrow is not installed.
      one of ERRORS (a damaged file: on reading): it is truncated, damaged, or compressed twice.
    """
    kind = compression(file)
    opener: Any = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open, "zstd": _zstd}.get(kind)
    if opener is None:
        return file
    if inner := _within(opener(file)):
        raise OSError(f"compressed twice ({inner} in {kind}): decompress it once")
    file.seek(0)
    return opener(file)


def _within(stream: Any) -> str | None:
    """Returns the compression of what a stream decompresses to."""
    try:
        found = _MAGIC.match(stream.peek(6)[:6])
    except (*ERRORS, ValueError):  # the reader reports the damage
        return None
    return found.lastgroup if found else None


def damage(error: Exception) -> str:
    """Returns the first line of one of ERRORS; re-raises it if reading the disk failed."""
    if getattr(error, "errno", None) is not None:
        raise error
    return next(iter(str(error).splitlines()), type(error).__name__)


def _zstd(file: BinaryIO) -> BinaryIO:
    try:
        import pyarrow as pa  # an optional dependency; the standard library has no Zstandard yet
    except ImportError as error:
        raise DataError(
            "reading .zst files needs pyarrow, which is not installed.",
            str(getattr(file, "name", "a .zst file")),
            "pip install 'qwen_jax[data]', or decompress the file with `zstd -d`.",
        ) from error
    stream = pa.CompressedInputStream(pa.PythonFile(_Unclosed(file), "r"), "zstd")
    return io.BufferedReader(stream, 1 << 20)


class _Unclosed:
    """What pyarrow reads from; it would close the file itself with its stream."""

    closed = False

    def __init__(self, file: BinaryIO):
        self.read = file.read

    def close(self) -> None:
        pass
