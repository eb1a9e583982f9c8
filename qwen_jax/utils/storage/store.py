"""One interface to object stores: whole objects, ranges, lists, and writes with a precondition.

A write is atomic: readers see the old object or the new one. The generation of an object changes
with every write of it, so `write(..., expect=generation)` fails if another process was faster, and
`expect=ABSENT` creates an object only once.
"""

import dataclasses
import functools
import pathlib
import secrets

from qwen_jax.errors import ConfigError
from qwen_jax.utils.storage.client import ABSENT, Client, Info
from qwen_jax.utils.storage.failures import Conflict, Missing, Retries, stated
from qwen_jax.utils.storage.path import AnyPath, StoragePath, parse


class Store:
    """The objects under an address. Keys are relative to it; safe to use from several threads.

    Every method tries again after 5xx, 429, timeouts and lost connections, and raises then

    Raises:
      UnreadableError: each of a bounded number of attempts failed (launchers restart the run).
      ConfigError: permissions, credentials or the bucket are missing; says what to change.
      Missing: the object does not exist.
    """

    def __init__(self, root: StoragePath, client: Client, retries: Retries | None = None):
        self.root, self._client = root, client
        self._retries = retries or Retries()

    def at(self, key: str) -> "Store":
        """Returns the store of the objects under `key`."""
        return Store(self.root / key, self._client, self._retries)

    def read(self, key: str) -> bytes:
        return self.read_range(key, 0, None)

    def read_range(self, key: str, start: int, stop: int | None) -> bytes:
        """Returns bytes start .. stop of an object; None: to its end. Beyond the end, fewer."""
        if stop is not None and stop <= start:
            return b""
        return self._call("read", key, lambda name, again: self._client.get(name, start, stop))

    def write(self, key: str, content: bytes, *, expect: str | None = None) -> str:
        """Writes an object and returns its generation.

        Args:
          expect: generation that the object must have; ABSENT: it must not exist; None: any.

        Raises:
          Conflict: it has another generation. Never raised for this call's own earlier attempt,
            whose response was lost.
        """

        def put(name: str, again: bool) -> str:
            try:
                return self._client.put(name, content, expect)
            except Conflict:
                if again:  # an attempt whose response was lost has written it
                    found = self._client.head(name)
                    if self._client.get(name, 0, None) == content:
                        return found.generation
                raise

        return self._call("write", key, put)

    def upload(self, file: pathlib.Path, key: str) -> None:
        """Writes an object from a local file, in parts if it is large."""
        self._call("write", key, lambda name, again: self._client.put_file(name, file))

    def download(self, key: str, file: pathlib.Path) -> None:
        """Writes an object to a local file, whose folder must exist."""
        self._call("read", key, lambda name, again: self._client.get_file(name, file))

    def stat(self, key: str) -> Info | None:
        """Returns what describes an object; None if it does not exist."""
        try:
            found = self._call("read", key, lambda name, again: self._client.head(name))
        except Missing:
            return None
        return dataclasses.replace(found, key=key)

    def list(self, prefix: str = "") -> list[Info]:
        """Returns the objects whose keys begin with `prefix`, in the order of their keys."""
        skip = len(self.root.key) + 1 if self.root.key else 0
        found = self._call("list", prefix, lambda name, again: list(self._client.list(name)))
        entries = [dataclasses.replace(each, key=each.key[skip:]) for each in found]
        return sorted(entries, key=lambda each: each.key)

    def delete(self, key: str) -> None:
        """Deletes an object; one that does not exist is no error."""
        try:
            self._call("delete", key, lambda name, again: self._client.remove(name))
        except Missing:
            pass

    def copy(self, key: str, to: str) -> None:
        """Copies an object within the store, without reading it here."""
        target = self._name(to)
        self._call("copy", key, lambda name, again: self._client.copy(name, target))

    def check_writable(self, flag: str = "--run_dir") -> float:
        """Writes and deletes a probe object, and returns the time on the store's clock.

        Raises:
          ConfigError: objects cannot be written here, or the store ignores preconditions.
        """
        key = f".probe-{secrets.token_hex(8)}"
        try:
            self.write(key, b"probe", expect=ABSENT)
            found = self.stat(key)
            self.delete(key)
        except ConfigError as error:
            raise ConfigError(error.what, f"{flag}={self.root}", error.fix) from error
        return 0.0 if found is None else found.modified

    def _name(self, key: str) -> str:
        return f"{self.root.key}/{key}" if self.root.key else key

    def _call(self, what: str, key: str, act):
        what, where = f"{what} {key or 'the folder'}", str(self.root)
        with stated(what, where):
            return self._retries.call(functools.partial(act, self._name(key)), what, where)


def open_store(path: AnyPath, *, where: str = "the path", retries: Retries | None = None) -> Store:
    """Opens the store at an address. Connects at the first access.

    Args:
      where: the flag, for errors.

    Raises:
      ConfigError: the address is not one of a store, or its client is not installed.
    """
    root = parse(path, where)
    if not isinstance(root, StoragePath):
        raise ConfigError(f"{str(path)[:80]!r} is a local path.", where, "use gs:// or s3://.")
    if root.scheme == "gs":
        from qwen_jax.utils.storage.gcs import GCSClient as client
    elif root.scheme == "s3":
        from qwen_jax.utils.storage.s3 import S3Client as client
    else:
        from qwen_jax.utils.storage.flat import FlatClient as client
    return Store(root, client(root), retries)
