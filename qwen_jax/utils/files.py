"""Atomic file writes, and small JSON files.

All code of the package that writes files uses `atomic_write`, or its two halves (`temporary_path`,
`put_in_place`) where a library needs a path instead of a file.
"""

import contextlib
import errno
import json
import os
import pathlib
import secrets
import stat
from collections.abc import Iterator
from typing import IO, Any

from qwen_jax.errors import DataError, QwenJaxError

WRITING = ".writing"  # suffix of temporary files; a killed process may leave one behind


@contextlib.contextmanager
def atomic_write(
    path: str | os.PathLike, mode: str = "wb", *, encoding: str | None = None, buffering: int = -1
) -> Iterator[IO[Any]]:
    """Yields a file to write, which replaces `path` when the block ends.

    If the block fails, the old file is unchanged and the temporary file is removed. Once this
    returns, the content survives a power failure. The new file keeps the permission bits of the
    old one. For a symbolic link, the file that it points to is replaced. The folder must exist.

    Args:
      mode: "wb", or "w" for text.
      encoding: of text; None: UTF-8.

    Raises:
      OSError: `path` exists and is not a regular file, such as /dev/null; nothing is written. Or
        the file cannot be written.
    """
    temporary = temporary_path(path)
    encoding = None if "b" in mode else encoding or "utf-8"
    try:
        with open(temporary, mode, buffering, encoding=encoding) as file:
            yield file
        put_in_place(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_path(path: str | os.PathLike) -> pathlib.Path:
    """Returns a new path in the folder of `path`, unique across processes."""
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


def sync_folder(folder: str | os.PathLike) -> None:
    """Syncs a folder's entries to disk, so that a rename survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems do not support it.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8 text with `atomic_write`."""
    with atomic_write(path, "w") as file:
        file.write(text)


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Writes bytes with `atomic_write`."""
    with atomic_write(path) as file:
        file.write(content)


def write_json(path: str | os.PathLike, content: Any, *, indent: int = 1) -> None:
    """Writes indented JSON with a final newline, with `atomic_write`."""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


def read_json(
    path: str | os.PathLike,
    *,
    kind: type = dict,
    error: type[QwenJaxError] = DataError,
    fix: str = "copy the file again.",
) -> Any:
    """Reads a JSON file.

    Args:
      kind: expected type: dict for an object, list, or `object` for anything.
      error: class of the raised error.
      fix: how to replace a damaged file, for the error message.

    Raises:
      QwenJaxError: of class `error`; the file is missing, not JSON, or of another kind.
    """
    path = pathlib.Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(
            f"there is no {path.name}.", str(path.parent), "pass the folder that contains it."
        ) from None
    except ValueError as reason:
        raise error(f"{path.name} is not JSON: {reason}.", str(path), fix) from None
    if not isinstance(content, kind):
        names = {dict: "object", list: "list"}
        raise error(f"{path.name} is not a JSON {names[kind]}.", str(path), fix)
    return content
