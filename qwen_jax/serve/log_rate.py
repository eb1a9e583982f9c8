"""Limits how often a log message is repeated."""

import logging
import time
from collections.abc import Callable


class LogRate(logging.Filter):
    """Passes one record of each place in the code per interval, and counts the others.

    The next record that passes says how many were left out.

    Args:
      seconds: the interval.
      clock: returns the time in seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic):
        super().__init__()
        self._seconds, self._clock = seconds, clock
        self._last: dict[tuple[str, int], float] = {}
        self._left_out: dict[tuple[str, int], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        place, now = (record.pathname, record.lineno), self._clock()
        if now - self._last.get(place, -float("inf")) < self._seconds:
            self._left_out[place] = self._left_out.get(place, 0) + 1
            return False
        self._last[place] = now
        if count := self._left_out.pop(place, 0):
            record.msg = f"{record.getMessage()} ({count} more like this were not logged)"
            record.args = None
        return True
