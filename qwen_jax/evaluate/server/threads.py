"""Runs a function in several threads. They do not keep a program from ending."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def completed(
    function: Callable[[A], B], inputs: Sequence[A], *, threads: int
) -> Iterator[tuple[int, B]]:
    """Yields (index, function(input)) in the order in which the calls end.

    No call begins after one has raised, or after the iteration was left.

    Args:
      threads: calls at once, at least one.

    Raises:
      BaseException: what a call raised.
    """
    waiting = iter(enumerate(inputs))
    lock, stopped = threading.Lock(), threading.Event()
    # (index, what the call returned, what it raised)
    done: queue.Queue[tuple[int, B | None, BaseException | None]] = queue.Queue()

    def work() -> None:
        while not stopped.is_set():
            with lock:
                following = next(waiting, None)
            if following is None:
                return
            index, one = following
            try:
                done.put((index, function(one), None))
            except BaseException as error:
                stopped.set()
                done.put((index, None, error))

    for _ in range(min(threads, len(inputs))):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in inputs:
            index, found, error = done.get()
            if error is not None:
                raise error
            yield index, found  # type: ignore[misc]
    finally:
        stopped.set()
