"""An append-only file as objects: FILE.segments/NUMBER-START, each whole when it is written.

A segment holds the bytes of the file from START on. Segments apply in the order of their numbers,
and one that starts before the end of the others replaces what follows. So a file that was truncated
(a resumed run drops later records) takes one new object, and nothing is lost by a kill in between.
"""

import concurrent.futures
import re

from qwen_jax.errors import DataError
from qwen_jax.utils.storage.client import ABSENT
from qwen_jax.utils.storage.store import Store

SUFFIX = ".segments"
_NAME = re.compile(r"(\d{8})-(\d{12})")
_MANY = 256  # then one segment replaces all
_READERS = 16


class Segments:
    """The segments of one file, written by one process at a time.

    Attributes:
      content: the bytes of the file in the store, as of the last `read` or `write`.
    """

    def __init__(self, store: Store, name: str):
        self._store, self._name = store.at(name + SUFFIX), name
        self._keys: list[str] = []
        self.content = b""

    def read(self) -> bytes:
        """Reads the file from the store; b"" if it has no segments.

        Raises:
          DataError: a segment is missing.
        """
        found = [each.key for each in self._store.list() if _NAME.fullmatch(each.key)]
        with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
            parts = list(pool.map(self._store.read, found))
        content = bytearray()
        for key, part in zip(found, parts, strict=True):
            start = int(key.partition("-")[2])
            if start > len(content):
                raise DataError(
                    f"a segment of {self._name} before {key} is missing.",
                    str(self._store.root),
                    "restore it from a backup, or delete the later segments.",
                )
            content[start:] = part
        self._keys, self.content = found, bytes(content)
        return self.content

    def write(self, content: bytes) -> None:
        """Makes `content` the bytes of the file, with one new segment for what is new."""
        if content == self.content:
            return
        start = len(self.content)
        if content[:start] != self.content:
            start = _common(content, self.content)
        if len(self._keys) >= _MANY:
            start = 0
        number = int(self._keys[-1].partition("-")[0]) + 1 if self._keys else 0
        key = f"{number:08}-{start:012}"
        self._store.write(key, content[start:], expect=ABSENT)
        replaced = self._keys if start == 0 else []
        self._keys, self.content = [*self._keys, key], content
        for old in replaced:
            self._store.delete(old)
            self._keys.remove(old)


def _common(a: bytes, b: bytes) -> int:
    """Returns the length of the longest common beginning."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle - 1)
    return low
