"""What a client of a store provides, and how an object is described."""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Protocol

ABSENT = ""  # as a precondition: the object does not exist


@dataclasses.dataclass(frozen=True)
class Info:
    """An object, without its contents."""

    key: str
    bytes: int
    generation: str  # changes with every write
    modified: float  # seconds since the epoch, on the store's clock


class Client(Protocol):
    """What each kind of store provides. Raises only the classes of failures.py."""

    def get(self, key: str, start: int, stop: int | None) -> bytes: ...

    def put(self, key: str, content: bytes, expect: str | None) -> str: ...

    def put_file(self, key: str, file: pathlib.Path) -> None: ...

    def get_file(self, key: str, file: pathlib.Path) -> None: ...

    def head(self, key: str) -> Info: ...

    def list(self, prefix: str) -> Iterator[Info]: ...

    def remove(self, key: str) -> None: ...

    def copy(self, key: str, to: str) -> None: ...
