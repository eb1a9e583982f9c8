"""What can go wrong with an object store, in the words of this package.

Clients raise `Missing`, `Conflict`, `Denied` and `Transient`. `Store` tries transient failures
again, and raises errors that a user can act on.
"""

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from qwen_jax.errors import ConfigError, QwenJaxError, UnreadableError

T = TypeVar("T")


class Missing(FileNotFoundError):
    """The object does not exist."""


class Conflict(Exception):
    """A precondition did not hold: another process has written the object."""


class Denied(Exception):
    """Another attempt would fail as well: permissions, credentials, or a missing bucket.

    Attributes:
      fix: what helps.
    """

    def __init__(self, reason: str, fix: str):
        super().__init__(reason)
        self.fix = fix


class Transient(Exception):
    """Another attempt may succeed: 5xx, 429, a timeout, a connection that was reset."""


class Retries:
    """Tries a call again after a Transient failure, at most `attempts` times in all.

    The n-th wait is random between 0 and base * 2^n seconds, at most `longest`, so processes that
    failed together do not come back together.
    """

    def __init__(
        self,
        attempts: int = 8,
        *,
        base: float = 0.5,
        longest: float = 30.0,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.attempts, self._base, self._longest, self._sleep = attempts, base, longest, sleep

    def call(self, act: Callable[[bool], T], what: str, where: str) -> T:
        """Returns `act(again)`, where `again` says whether an earlier attempt may have acted.

        Raises:
          UnreadableError: every attempt failed; names their number and the last reason.
        """
        started = time.monotonic()
        for attempt in range(1, self.attempts + 1):
            try:
                return act(attempt > 1)
            except Transient as error:
                if attempt == self.attempts:
                    raise UnreadableError(
                        f"cannot {what}: {attempt} attempts in {time.monotonic() - started:.0f} s "
                        f"failed, the last with: {str(error)[:300]}",
                        where,
                        "check the network and the store's status page, then run the same command "
                        "again.",
                    ) from error
                self._sleep(random.uniform(0, min(self._longest, self._base * 2**attempt)))
        raise AssertionError("unreachable")


@contextlib.contextmanager
def stated(what: str, where: str) -> Iterator[None]:
    """Turns Denied into an error that a user can act on."""
    try:
        yield
    except Denied as error:
        raise ConfigError(f"cannot {what}: {str(error)[:300]}", where, error.fix) from error


def missing_library(package: str, extra: str, where: str) -> QwenJaxError:
    return ConfigError(
        f"{where} needs the package {package}.", where, f'pip install "qwen_jax[{extra}]".'
    )
