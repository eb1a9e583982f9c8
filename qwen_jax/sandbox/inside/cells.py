"""Serves the cells of a session in a locked process: runs them and hands files in and out.

A message is 8 bytes (lengths of header and data), a header of JSON, and data. The code of a cell
can write messages of its own, or end this process: the other side believes nothing that it reads.
"""

import ast
import contextlib
import json
import linecache
import os
import signal
import struct
import sys
import traceback
import types
from typing import Any

LENGTHS = struct.Struct("=II")
MAX_LISTED = 500  # files of one reply
MAX_VALUE = 100_000  # characters
FIGURE = "figure-{:03}.png"
_KEPT_SOURCES = 200  # cells whose lines a traceback can show


class TimeLimit(BaseException):
    """Raised in a cell that has run for too long. No `except Exception` catches it."""


def serve(descriptor: int) -> None:
    """Answers messages until the other side closes its end; exits."""
    session = _Session()
    while (message := _read(descriptor)) is not None:
        header, data = message
        try:
            reply, sent = session.answer(header, data)
        except BaseException as error:  # also an exit, or a limit, in code that a cell left behind
            reply, sent = {"error": _one_line(error)}, b""
        _write(descriptor, reply, sent)
    os._exit(0)


class _Session:
    """The variables of a session."""

    def __init__(self):
        module = types.ModuleType("__main__")
        module.__dict__["__builtins__"] = __builtins__
        sys.modules["__main__"] = module
        sys.argv = ["session"]
        for stream in (sys.stdout, sys.stderr):  # what a killed cell has printed is not lost
            stream.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue]
        os.environ["MPLCONFIGDIR"] = os.path.join(os.getcwd(), ".matplotlib")
        self._variables = module.__dict__
        self._cells = self._figures = 0
        self._running = False
        self._stamps: dict[str, tuple] = {}
        self._sources: list[str] = []

    def answer(self, header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        """Returns the reply to a message, and its data."""
        if "cell" in header:
            return self._cell(header["cell"], header["seconds"]), b""
        if "put" in header:
            name = header["put"]
            os.makedirs(os.path.dirname(os.path.abspath(name)), exist_ok=True)
            with open(name, "wb") as file:
                file.write(data)
            self._stamps[name] = _stamp(name)
            return {}, b""
        with open(header["get"], "rb") as file:
            return {}, file.read()

    def _cell(self, code: str, seconds: float) -> dict[str, Any]:
        self._cells += 1
        reply: dict[str, Any] = {"value": None, "error": ""}
        signal.signal(signal.SIGALRM, self._alarm)  # a cell may have changed it
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            self._running = True
            found = self._execute(code)
            if found is not None:
                self._variables["_"] = found
                reply["value"] = repr(found)[:MAX_VALUE]
        except TimeLimit:
            reply["error"] = "time"
        except BaseException as error:
            reply["error"] = "exception"
            self._running = False
            _print_error(error)
        finally:
            self._running = False
            signal.setitimer(signal.ITIMER_REAL, 0)
        reply["figures"] = self._save_figures()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BaseException):
                stream.flush()
        return {**reply, **self._changed()}

    def _execute(self, code: str) -> Any:
        """Runs a cell; returns the value of its last line, if that is an expression."""
        name = f"<cell {self._cells}>"
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        self._sources.append(name)
        if len(self._sources) > _KEPT_SOURCES:
            linecache.cache.pop(self._sources.pop(0), None)
        tree = ast.parse(code, name)
        last = tree.body[-1] if tree.body else None
        shown = None
        if isinstance(last, ast.Expr) and not code.rstrip().endswith(";"):
            shown = ast.Expression(tree.body.pop().value)  # pyright: ignore[reportAttributeAccessIssue]
        exec(compile(tree, name, "exec"), self._variables)
        return None if shown is None else eval(compile(shown, name, "eval"), self._variables)

    def _alarm(self, *_) -> None:
        if self._running:
            raise TimeLimit

    def _save_figures(self) -> list[str]:
        """Saves the open figures of matplotlib, as notebooks do after a cell, and closes them."""
        pyplot, names = sys.modules.get("matplotlib.pyplot"), []
        if pyplot is None:
            return names
        try:
            for number in pyplot.get_fignums():
                self._figures += 1
                while os.path.exists(name := FIGURE.format(self._figures)):
                    self._figures += 1
                pyplot.figure(number).savefig(name)
                names.append(name)
            pyplot.close("all")
        except BaseException as error:
            _print_error(error)
        return names

    def _changed(self) -> dict[str, Any]:
        """Returns the files that are new or have changed since the last cell."""
        found, left_out = [], 0
        for folder, folders, files in os.walk("."):
            folders[:] = sorted(name for name in folders if name[0] not in "._")
            for name in sorted(files):
                path = os.path.normpath(os.path.join(folder, name))
                if name[0] == "." or os.path.islink(path):
                    continue
                with contextlib.suppress(OSError):
                    stamp = _stamp(path)
                    if self._stamps.get(path) == stamp:
                        continue
                    if len(found) == MAX_LISTED:
                        left_out += 1
                        continue
                    self._stamps[path] = stamp
                    found.append([path, stamp[0]])
        return {"files": found, "files_left_out": left_out}


def _stamp(path: str) -> tuple[int, int, int]:
    found = os.stat(path, follow_symlinks=False)
    return found.st_size, found.st_mtime_ns, found.st_ino


def _print_error(error: BaseException) -> None:
    """Prints an exception as Python does, without the frames of this file."""
    try:
        trace = error.__traceback__
        while trace is not None and not trace.tb_frame.f_code.co_filename.startswith("<cell"):
            trace = trace.tb_next
        traceback.print_exception(type(error), error, trace)
    except BaseException:
        with contextlib.suppress(BaseException):
            print(_one_line(error), file=sys.stderr)


def _one_line(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:500]
    except BaseException:
        return "an error without a message"


def _read(descriptor: int) -> tuple[dict[str, Any], bytes] | None:
    lengths = _exactly(descriptor, LENGTHS.size)
    if lengths is None:
        return None
    header, data = (_exactly(descriptor, size) for size in LENGTHS.unpack(lengths))
    return None if header is None or data is None else (json.loads(header), data)


def _exactly(descriptor: int, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        new = os.read(descriptor, min(size - len(data), 1 << 20))
        if not new:
            return None
        data += new
    return bytes(data)


def _write(descriptor: int, header: dict[str, Any], data: bytes) -> None:
    packed = json.dumps(header).encode()
    view = memoryview(LENGTHS.pack(len(packed), len(data)) + packed + data)
    while view:
        view = view[os.write(descriptor, view) :]
