"""Lists and opens the files of a source: local files directly, object stores through Daft."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import pathlib
import re
from typing import BinaryIO

from qwen_jax.corpus.arrow import pa, pq
from qwen_jax.corpus.engine import daft
from qwen_jax.errors import DataError
from qwen_jax.utils.compressed import damage
from qwen_jax.utils.files import files_in

REMOTE = ("s3://", "gs://", "az://", "http://", "https://")


@dataclasses.dataclass(frozen=True)
class File:
    name: str  # path within the source; "" if the source is this file
    size: int  # bytes
    mtime_ns: int = 0  # modification time; 0 if unknown
    unreadable: str = ""  # the reason it cannot be read, such as "broken link"; else ""


def listing(path: str) -> list[File]:
    """Returns the non-hidden files of a source (a file or folder), sorted by name.

    Raises:
      DataError: there are no files, or the object store cannot be listed.
      OSError: a folder of the source cannot be listed.
    """
    if path.startswith(REMOTE):
        return _remote_listing(path)
    root = pathlib.Path(path)
    if not root.exists():
        raise DataError(
            "this source does not exist.",
            path,
            "check the path; a source is a file or a folder of files.",
        )
    found = files_in(root, hidden=False) if root.is_dir() else [root]
    if not found:
        raise DataError("this source is an empty folder.", path, "add files to it.")
    files = []
    for file in found:
        name = "" if file == root else file.relative_to(root).as_posix()
        if unreadable := _unreadable(file):
            files.append(File(name, 0, unreadable=unreadable))
        else:
            status = file.stat()
            files.append(File(name, status.st_size, status.st_mtime_ns))
    return sorted(files, key=lambda file: file.name)


def _unreadable(file: pathlib.Path) -> str:
    if file.is_file():
        return ""
    if file.is_dir():
        return "link to a folder"  # not followed: links can form a cycle
    return "special file" if file.exists() else "broken link"


def _remote_listing(path: str) -> list[File]:
    engine, problem = daft(), None
    # `?` begins the query of an address; object stores have it in names, as they have brackets.
    literal = path if path.startswith("http") else re.sub(r"([\\\[\]*?{}])", r"\\\1", path)
    for pattern in (f"{literal}/**", literal):
        try:
            rows = engine.from_glob_path(pattern).to_pydict()
        except Exception as error:  # clients raise many types, even if nothing matches
            problem = error
            continue
        prefix = len(path) + 1 if pattern != literal else len(rows["path"][0])
        files = [
            File(full[prefix:], size) for full, size in zip(rows["path"], rows["size"], strict=True)
        ]
        files = [
            file for file in files if not any(part.startswith(".") for part in file.name.split("/"))
        ]
        if files:
            return sorted(files, key=lambda file: file.name)
    why = f": {str(problem).splitlines()[0].rstrip('.')}" if problem else ""
    raise DataError(
        f"cannot list files{why}.",
        path,
        "check the URL and the credentials in the environment.",
    ) from problem


def open_binary(path: str) -> BinaryIO:
    """Opens a local or remote file for binary reading; the result is seekable."""
    if path.startswith(REMOTE):
        return io.BufferedReader(_Remote(path), 1 << 20)
    return open(path, "rb", 1 << 20)


class _Remote(io.RawIOBase):
    """A file in an object store. Errors of the client become an OSError with an errno."""

    def __init__(self, path: str):
        self._path = path
        self._file = self._call(daft().open_file, path, "rb")

    def _call(self, call, *arguments):
        try:
            return call(*arguments)
        except Exception as error:
            why = " ".join(str(error).split())[:300]
            raise OSError(errno.EIO, why, self._path) from error

    def readinto(self, buffer) -> int:
        data = self._call(self._file.read, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._call(self._file.seek, offset, whence)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def arrow_errors() -> tuple[type[Exception], ...]:
    """Returns pyarrow's exceptions for corrupted data; an OSError with errno is an I/O error."""
    return pa.ArrowException, OSError


def row_groups(path: str, size: int) -> list[int]:
    """Returns row indices that split a Parquet file into ranges of about `size` bytes.

    A corrupted file is not split; the error is reported when it is read.
    """
    edges, total = [0], 0
    try:
        with open_binary(path) as file:
            metadata = pq.ParquetFile(file).metadata
    except arrow_errors() as error:
        damage(error)
        return [0, -1]
    rows = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if total and total + group.total_byte_size > size:
            edges.append(rows)
            total = 0
        rows += group.num_rows
        total += group.total_byte_size
    return [*edges, rows or -1]


def digest(text: str) -> str:
    """Returns a hash of a text, as 32 hex digits."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
