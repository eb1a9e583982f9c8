"""Files of a source: of this computer by the operating system,
of object stores by the data engine."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import pathlib
from typing import BinaryIO

from qwen_jax.corpus.arrow import pa, pq
from qwen_jax.corpus.engine import daft
from qwen_jax.errors import DataError

REMOTE = ("s3://", "gs://", "az://", "http://", "https://")


@dataclasses.dataclass(frozen=True)
class File:
    name: str  # its path in the source; "" where the source is the file
    size: int  # bytes
    mtime_ns: int = 0  # when, in nanoseconds; 0 where that is not known
    unreadable: str = ""  # why it is no file to read, such as "broken link"


def listing(path: str) -> list[File]:
    """The files of a file or folder in the order of their names, hidden ones left out.

    Raises:
      DataError: there are none, or the place does not answer.
    """
    if path.startswith(REMOTE):
        return _remote_listing(path)
    root = pathlib.Path(path)
    if not root.exists():
        raise DataError(
            "this source does not exist.",
            path,
            "check the name; a source is a file or a folder of files.",
        )
    found = (
        [root]
        if not root.is_dir()
        else [
            file
            for file in root.rglob("*")
            if (file.is_symlink() or not file.is_dir())
            and not any(part.startswith(".") for part in file.relative_to(root).parts)
        ]
    )
    if not found:
        raise DataError("this source is an empty folder.", path, "put files there.")
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
        return "link to a folder"  # not followed: links can go round
    return "special file" if file.exists() else "broken link"


def _remote_listing(path: str) -> list[File]:
    engine, problem = daft(), None
    for pattern in (f"{path}/**", path):
        try:
            rows = engine.from_glob_path(pattern).to_pydict()
        except Exception as error:  # whatever its clients raise; of no match as well
            problem = error
            continue
        prefix = len(path) + 1 if pattern != path else len(rows["path"][0])
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
        f"there are no files that can be listed{why}.",
        path,
        "check the address and the credentials in the environment.",
    ) from problem


def open_binary(path: str) -> BinaryIO:
    """The file, to read; it can be told to go to any place."""
    if path.startswith(REMOTE):
        return io.BufferedReader(_Remote(path), 1 << 20)
    return open(path, "rb", 1 << 20)


class _Remote(io.RawIOBase):
    """A file of an object store. Whatever its client raises comes as an OSError with an errno."""

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
    """What pyarrow raises for damaged data; for a disk that does not answer OSError, with errno."""
    return pa.ArrowException, OSError


def damage(error: Exception) -> str:
    """The first line of one of arrow_errors; one that is not about the data is raised."""
    if getattr(error, "errno", None) is not None:
        raise error
    return str(error).splitlines()[0]


def row_groups(path: str, size: int) -> list[int]:
    """Rows of a Parquet file at which to cut it into parts of about `size` bytes: from 0 to all.
    One that is damaged is not cut: reading it will say so."""
    cuts, total = [0], 0
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
            cuts.append(rows)
            total = 0
        rows += group.num_rows
        total += group.total_byte_size
    return [*cuts, rows or -1]


def digest(text: str) -> str:
    """32 hex digits that stand for a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
