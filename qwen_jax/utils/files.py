"""Atomic file writes, and reading and writing of small JSON files.

All code in the package that writes files uses `atomic_write`, or its two halves (`temporary_path`,
`put_in_place`) where a library needs a path instead of a file object.
"""

import contextlib
import errno
import json
import os
import pathlib
import secrets
import shutil
import stat
from collections.abc import Iterator
from typing import IO, Any, BinaryIO

from qwen_jax import exit_codes
from qwen_jax.errors import ConfigError, DataError, DiskFullError, QwenJaxError, UnreadableError
from qwen_jax.utils.format import format_gb
from qwen_jax.utils.json_text import JSONError, parse

WRITING = ".writing"  # suffix of temporary files; a killed process may leave one behind


@contextlib.contextmanager
def atomic_write(
    path: str | os.PathLike, mode: str = "wb", *, encoding: str | None = None, buffering: int = -1
) -> Iterator[IO[Any]]:
    """Yields a file to write to, which replaces `path` at the end of the block.

    If the block raises, the old file is unchanged and the temporary file is deleted. After the
    block, the contents survive a power failure. The new file keeps the permission bits of the old
    one. If `path` is a symbolic link, the file that it points to is replaced. The folder must
    exist.

    Args:
      mode: "wb", or "w" for text.
      encoding: text encoding; None: UTF-8.

    Raises:
      OSError: the file cannot be written; or `path` exists and is not a regular file, such as
        /dev/null, and nothing is written.
    """
    temporary = temporary_path(path)
    encoding = None if "b" in mode else encoding or "utf-8"
    try:
        with naming_file(path):
            with open(temporary, mode, buffering, encoding=encoding) as file:
                yield file
            put_in_place(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_path(path: str | os.PathLike) -> pathlib.Path:
    """Returns a new path in the same folder as `path`, unique across processes."""
    final = pathlib.Path(os.path.realpath(path))
    if final.exists() and not final.is_file():
        code = errno.EISDIR if final.is_dir() else errno.EINVAL
        raise OSError(code, "not a regular file", str(path))
    return final.with_name(f"{final.name}.{secrets.token_hex(4)}{WRITING}")


def put_in_place(temporary: pathlib.Path, path: str | os.PathLike) -> None:
    """Renames a complete temporary file to `path`, with the guarantees of `atomic_write`."""
    final = os.path.realpath(path)
    with open(temporary, "rb") as file:
        with contextlib.suppress(FileNotFoundError):
            os.fchmod(file.fileno(), stat.S_IMODE(os.stat(final).st_mode))
        os.fsync(file.fileno())
    os.replace(temporary, final)
    sync_folder(os.path.dirname(final))


@contextlib.contextmanager
def naming_file(path: str | os.PathLike) -> Iterator[None]:
    """Adds the path to a system error in the block: the error of a write has none."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def disk_full(error: BaseException, *, needed: int | None = None) -> DiskFullError:
    """Returns the error that a user sees for a full disk, quota or file-size limit.

    Args:
      error: the system error; see exit_codes.full_disk.
      needed: bytes that the file needs; None: not known.
    """
    path = getattr(error, "filename", None)
    reason = getattr(error, "strerror", None) or str(error)[:500]
    sizes = [] if needed is None else [f"{format_gb(needed)} are needed"]
    if path is not None:
        folder = pathlib.Path(os.path.abspath(path))
        while not folder.is_dir() and folder != folder.parent:
            folder = folder.parent
        with contextlib.suppress(OSError):
            sizes.append(f"{format_gb(shutil.disk_usage(folder).free)} are free")
    return DiskFullError(
        f"the file could not be written: {'; '.join([reason, *sizes])}.",
        str(path or "the output of this program"),
        f"{more_space(exit_codes.full_disk_number(error))}, then run the same command again.",
    )


def more_space(number: int | None) -> str:
    """Returns what helps against a full disk, quota or file-size limit, by its system error."""
    if number == errno.EFBIG:
        return "raise the limit on file sizes (ulimit -f; a file system may have its own)"
    return "free some disk space"


def out_of_reach(error: OSError) -> QwenJaxError:
    """Returns the error that a user sees for a file whose disk or permissions fail.

    Args:
      error: as exit_codes.file_error returns it.
    """
    if exit_codes.full_disk(error) is not None:
        return disk_full(error)
    code = errno.errorcode.get(error.errno or 0, "unknown")
    what = f"the file could not be read or written: {error.strerror or error} ({code})."
    if exit_codes.of(error) == exit_codes.UNREADABLE:
        fix = "check the disk or the network file system (dmesg), then run the same command again."
        return UnreadableError(what, str(error.filename), fix)
    fix = "make the path writable (mount options, permissions), or choose another one."
    return ConfigError(what, str(error.filename), fix)


def sync_folder(folder: str | os.PathLike) -> None:
    """Syncs a folder's entries to disk, so a rename survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems do not support syncing a folder.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def files_in(folder: str | os.PathLike, *, hidden: bool = True) -> list[pathlib.Path]:
    """Returns everything in a folder and its subfolders but folders, sorted; links stay links.

    Args:
      hidden: whether to include what has a name with a leading dot.

    Raises:
      OSError: a folder cannot be read. (pathlib's `rglob` would skip it silently.)
    """

    def stop(error: OSError) -> None:
        raise error

    found = []
    for parent, folders, files in os.walk(folder, onerror=stop):
        if not hidden:
            folders[:] = [name for name in folders if not name.startswith(".")]
            files = [name for name in files if not name.startswith(".")]
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        found += [pathlib.Path(parent, name) for name in files + links]
    return sorted(found)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic_write(path, "w") as file:
        file.write(text)


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Writes bytes atomically."""
    with atomic_write(path) as file:
        file.write(content)


def write_json(path: str | os.PathLike, content: Any, *, indent: int = 1) -> None:
    """Writes indented JSON with a final newline, atomically."""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Opens a file for reading; unlike open(), never waits for a FIFO and never reads a device.

    Raises:
      OSError: the file cannot be opened, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(code, "not a regular file", str(path))
    return open(path, "rb", opener=lambda *_: descriptor)


def read_bytes(
    path: str | os.PathLike,
    *,
    error: type[QwenJaxError] = DataError,
    fix: str = "fix the file, or create it again.",
    max_bytes: int = 64 << 20,
) -> bytes:
    """Reads a small file.

    Args:
      error, fix: class and fix of the raised error.
      max_bytes: a larger file is refused before it is read.

    Raises:
      QwenJaxError: an `error`: the file is missing, cannot be read, is too large, or is a pointer
        of Git LFS.
    """
    path = pathlib.Path(path)
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise error(
                    f"{path.name} has {size:,} bytes, more than {max_bytes:,}.", str(path), fix
                )
            data = file.read(max_bytes)
    except FileNotFoundError:
        raise error(
            f"{path.name} not found.", str(path.parent), "pass the folder that contains it."
        ) from None
    except OSError as reason:
        raise error(
            f"cannot read {path.name}: {reason.strerror or reason}.",
            str(path),
            "check the path and its permissions.",
        ) from reason
    if is_lfs_pointer(data):
        raise error(f"{path.name} {LFS_WHAT}.", str(path), LFS_FIX)
    return data


LFS_WHAT = "is a pointer of Git LFS, not the file that it stands for"
LFS_FIX = "run git lfs pull in the repository, or download the model with `hf download`."


def is_lfs_pointer(start: bytes) -> bool:
    """Returns whether a file that starts so is what `git clone` writes without Git LFS."""
    return start.startswith(b"version https://git-lfs.github.com/spec/")


def read_json(
    path: str | os.PathLike,
    *,
    kind: type = dict,
    error: type[QwenJaxError] = DataError,
    fix: str = "fix the file, or create it again.",
    max_bytes: int = 64 << 20,
    finite: bool = True,
) -> Any:
    """Reads a small JSON file, which may be damaged or hostile.

    Args:
      kind: expected Python type: dict, list, or `object` for any type.
      error: class of the raised error.
      fix: how to fix an invalid file, for the error message.
      max_bytes: as in read_bytes.
      finite: whether NaN and infinities are refused.

    Raises:
      QwenJaxError: an `error`: as in read_bytes; or the file is not JSON (utils/json_text.py) or
        not of type `kind`.
    """
    path = pathlib.Path(path)
    raw = read_bytes(path, error=error, fix=fix, max_bytes=max_bytes)
    try:
        content = parse(raw, finite=finite)
    except JSONError as reason:
        raise error(f"{path.name} is not valid JSON: {reason}.", str(path), fix) from None
    if not isinstance(content, kind):
        names = {dict: "object", list: "list"}
        raise error(f"{path.name} is not a JSON {names[kind]}.", str(path), fix)
    return content
