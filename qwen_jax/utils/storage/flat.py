"""A local folder as an object store: files are written at their final names, folders never renamed.

It stands for mounted buckets (gcsfuse, Mountpoint), on which a folder cannot be renamed, and for
object stores in tests. Preconditions hold between the processes of one machine.
"""

import contextlib
import fcntl
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator

from qwen_jax.utils.storage.client import ABSENT, Info
from qwen_jax.utils.storage.failures import Conflict, Denied, Missing, Transient
from qwen_jax.utils.storage.path import StoragePath

_HIDDEN = ".writing-"  # prefix of files that are being written


class FlatClient:
    """Implements client.Client. A key is an absolute path without its first slash."""

    def __init__(self, root: StoragePath):
        self._root = root

    def get(self, key: str, start: int, stop: int | None) -> bytes:
        with self._failures(), open(f"/{key}", "rb") as file:
            file.seek(start)
            return file.read() if stop is None else file.read(stop - start)

    def put(self, key: str, content: bytes, expect: str | None) -> str:
        with self._failures(writing=True):
            return self._replace(key, lambda file: file.write_bytes(content), expect)

    def put_file(self, key: str, file: pathlib.Path) -> None:
        with self._failures(writing=True):
            self._replace(key, lambda temporary: shutil.copyfile(file, temporary), None)

    def get_file(self, key: str, file: pathlib.Path) -> None:
        with self._failures():
            shutil.copyfile(f"/{key}", file)

    def head(self, key: str) -> Info:
        with self._failures():
            return _info(key)

    def list(self, prefix: str) -> Iterator[Info]:
        with self._failures():
            top = f"/{prefix.rpartition('/')[0]}"
            for folder, _, names in os.walk(top):
                for name in names:
                    key = f"{folder.rstrip('/')}/{name}"[1:]
                    if key.startswith(prefix) and not name.startswith(_HIDDEN):
                        with contextlib.suppress(FileNotFoundError):
                            yield _info(key)

    def remove(self, key: str) -> None:
        with self._failures():
            os.unlink(f"/{key}")

    def copy(self, key: str, to: str) -> None:
        self.head(key)
        self.put_file(to, pathlib.Path(f"/{key}"))

    def _replace(self, key: str, write, expect: str | None) -> str:
        path = pathlib.Path(f"/{key}")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{_HIDDEN}{secrets.token_hex(6)}")
        try:
            write(temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            if expect is None:
                os.replace(temporary, path)
                return _info(key).generation
            with _locked(path.parent):
                found = _generation(path)
                if found != (None if expect == ABSENT else expect):
                    raise Conflict(f"{path} has generation {found}, not {expect or 'none'}")
                os.replace(temporary, path)
                return _info(key).generation
        finally:
            temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _failures(self, *, writing: bool = False) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, FileExistsError) as error:
            if writing:
                raise Denied(str(error), "use a path whose parents are folders.") from error
            raise Missing(*error.args[:2], error.filename) from error
        except PermissionError as error:
            raise Denied(str(error), "make the folder writable, or use another one.") from error
        except BlockingIOError as error:
            raise Transient(str(error)) from error


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    with open(folder / f"{_HIDDEN}lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _generation(path: pathlib.Path) -> str | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return f"{status.st_mtime_ns}-{status.st_ino}-{status.st_size}"


def _info(key: str) -> Info:
    status = os.stat(f"/{key}")
    if not os.path.isfile(f"/{key}"):
        raise FileNotFoundError(2, "not a file", f"/{key}")
    generation = f"{status.st_mtime_ns}-{status.st_ino}-{status.st_size}"
    return Info(key, status.st_size, generation, status.st_mtime)
