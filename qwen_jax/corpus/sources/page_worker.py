"""Extracts text from pages in a subprocess: a hang or crash loses only one page.

The subprocess is `python -m qwen_jax.corpus.sources.page_worker EXTRACTOR MEGABYTES`. It reads
frames (4 bytes of length, then UTF-8) of HTML, and replies with frames of text. The first byte of a
reply is `+` before text, or `-` before an error.
"""

import os
import select
import struct
import subprocess
import sys
import time

from qwen_jax.corpus.sources import extract
from qwen_jax.errors import DataError

_MEGABYTES = 4096  # MiB; address-space limit of the subprocess


class PageWorker:
    """Extracts pages in a subprocess, which starts at the first page.

    Args:
      extractor: the name of a function in extract.py.
      seconds: time limit per page.
    """

    def __init__(self, extractor: str, seconds: float):
        self._extractor, self._seconds = extractor, seconds
        self._process: subprocess.Popen | None = None

    def extract(self, html: str) -> tuple[str, str | None]:
        """Returns (text, None), or ("", reason): timeout, crash, memory or error, with details."""
        page = html.encode("utf-8", "replace")
        try:
            process = self._start()
            assert process.stdin is not None
            process.stdin.write(struct.pack("<I", len(page)) + page)
            process.stdin.flush()
            reply = self._read(
                *struct.unpack("<I", self._read(4, deadline := self._deadline())), deadline
            )
        except TimeoutError:
            self.close()
            return "", "timeout"
        except (EOFError, BrokenPipeError):
            code = self._process.wait() if self._process else 0
            self.close()
            return "", f"crash: {'signal' if code < 0 else 'exit'} {abs(code)}"
        text = reply[1:].decode("utf-8")
        return (text, None) if reply[:1] == b"+" else ("", text)

    def _start(self) -> subprocess.Popen:
        if self._process is None:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "qwen_jax.corpus.sources.page_worker",
                    self._extractor,
                    str(_MEGABYTES),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            # Importing an extractor takes a second or two, outside the first page's time limit.
            try:
                self._read(5, time.monotonic() + 120)
            except (EOFError, TimeoutError) as error:
                self.close()
                raise DataError(
                    "the extractor process failed to start; its error is printed above.",
                    self._extractor,
                    "pip install 'qwen_jax[data]'.",
                ) from error
        return self._process

    def _deadline(self) -> float:
        return time.monotonic() + self._seconds

    def _read(self, size: int, deadline: float) -> bytes:
        assert self._process is not None and self._process.stdout is not None
        parts, file = [], self._process.stdout.fileno()
        while size:
            if not select.select([file], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError
            part = os.read(file, min(size, 1 << 16))
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Kills the subprocess; the next page starts another one."""
        if self._process is not None:
            self._process.kill()
            for pipe in (self._process.stdin, self._process.stdout):
                try:
                    if pipe is not None:
                        pipe.close()
                except BrokenPipeError:
                    pass
            self._process.wait()
            self._process = None

    def __enter__(self) -> "PageWorker":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def serve(extractor: str, megabytes: int) -> None:
    """Runs in the subprocess: replies to pages until stdin is closed."""
    import resource

    limit = megabytes << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    function = getattr(extract, extractor)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output of libraries must not mix with the frames
    function("<p>ready</p>")
    _reply(replies, b"+")
    pages = sys.stdin.buffer
    while head := pages.read(4):
        page = pages.read(*struct.unpack("<I", head))
        try:
            reply = b"+" + function(page.decode("utf-8")).encode("utf-8", "replace")
        except MemoryError:
            reply = b"-memory"
        except Exception as error:  # a page can make a parser raise anything; the reply reports it
            reply = f"-error: {type(error).__name__}".encode()
        _reply(replies, reply)


def _reply(file, reply: bytes) -> None:
    file.write(struct.pack("<I", len(reply)) + reply)
    file.flush()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
