"""Standard output and standard error of a program, which may be closed or on a full disk."""

import contextlib
import os
import select
import sys
from collections.abc import Iterator
from typing import Any

from qwen_jax import exit_codes


def reserve_descriptors() -> None:
    """Opens the null device as each of descriptors 0 to 2 that is closed.

    Otherwise the next file that is opened gets the number, and warnings of C++ libraries are
    written into it.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)


def discard(stream: Any) -> None:
    """Sends a stream that cannot be written to the null device, with what is left in its buffer."""
    try:
        descriptor = stream.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)
        stream.flush()
    except (OSError, ValueError, AttributeError):  # None, closed, or without a descriptor
        pass


def flush_output() -> None:
    """Flushes both streams. One that cannot be written is discarded."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except (OSError, ValueError):
                discard(stream)


def print_error(text: str) -> None:
    """Prints a line on standard error if it is open."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def exit_on_closed_pipe() -> Iterator[None]:
    """Ends the program quietly if the reader of its output is gone, as in `generate | head`.

    The exit code is exit_codes.CLOSED_PIPE, what a shell reports of a program that SIGPIPE ends.
    """
    try:
        try:
            yield
        except SystemExit as stop:
            if stop.code not in (None, 0):
                flush_output()
                raise
            if sys.stdout is not None:
                sys.stdout.flush()
            raise
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        if not is_closed():  # another pipe, such as one to a subprocess
            raise
        flush_output()
        raise SystemExit(exit_codes.CLOSED_PIPE) from None


def is_closed() -> bool:
    """Returns whether the reader of standard output or standard error is gone."""
    return any(map(_is_broken, (sys.stdout, sys.stderr)))


def _is_broken(stream: Any) -> bool:
    # Flushing tells nothing: a failed flush empties the buffer.
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError, AttributeError):  # closed, or without a descriptor
        return False
