"""The code interpreter: Python cells in the sandbox, and one folder that both sides see.

Report: 3.4. The folder is copied in when a session starts, and what a cell writes is copied out, so
code never touches this machine's files: what it can write is what it may hand over.
"""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

from qwen_jax import sandbox
from qwen_jax.agent.tool import Limits, Result, Run, Tool
from qwen_jax.errors import ConfigError
from qwen_jax.sandbox import Cell
from qwen_jax.tokenizer.dialects.react import REACT
from qwen_jax.utils.files import write_bytes

_DESCRIPTION = (
    "Runs Python code in a session that keeps its variables, like the cells of a notebook, and "
    "returns what it prints and the value of the last line. Files are in the current folder; "
    "figures of matplotlib are saved. There is no network and no other process."
)
_DESCRIPTION_ZH = (
    "在会话中执行 Python 代码,变量像笔记本的单元格一样保留,返回打印的内容和最后一行的值。"
    "文件在当前目录;matplotlib 的图会被保存。没有网络,也不能启动其他进程。"
)
_MAX_FILE = 32 << 20
_SKIPPED = ("__pycache__",)


class Interpreter:
    """A session in the sandbox that starts again when a cell has ended it.

    Args:
      folder: files for the cells, and where theirs appear; None: a temporary one. Files that a cell
        deletes stay in it, and hidden files and symbolic links are not copied in.
      cell_seconds: limit of wall clock of a cell.
      memory_mb, disk_mb: limits of the session.
      unsafe: run even where the kernel isolates neither files nor network.

    Raises:
      SandboxError: code cannot be isolated here.
      ConfigError: the files of the folder are larger than `disk_mb`, or a setting is out of range.
    """

    def __init__(
        self,
        folder: str | os.PathLike | None = None,
        *,
        cell_seconds: float = 30.0,
        memory_mb: int = 1024,
        disk_mb: int = 64,
        unsafe: bool = False,
    ):
        self._temporary = None
        if folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="qwen-jax-agent-")
            folder = self._temporary.name
        self.folder = pathlib.Path(folder)
        self._cell_seconds = cell_seconds
        self._settings = {"memory_mb": memory_mb, "disk_mb": disk_mb, "unsafe": unsafe}
        self._session: sandbox.Session | None = None
        self._notes: list[str] = []  # for the text of the next cell
        self._known: dict[str, tuple[int, int]] = {}  # name -> size and time, as it is in both
        self._start()

    def run(self, code: str, limits: Limits | None = None) -> Result:
        """Runs a cell; returns what the model reads.

        The text has parts as in the report's format: `stdout:`, `stderr:`, `execute_result:` and
        `error:`, each in triple backticks, then figures as ![fig-001](NAME), then what was written.
        If the cell ends the session, the text says why, and that the next one has no variables.
        """
        limits = limits or Limits()
        seconds = limits.seconds(self._cell_seconds)
        if seconds <= 0:
            return Result("Error: no time is left to run the code.", is_error=True)
        try:
            self._start()
            assert self._session is not None
            self._put_changed()
            cell = self._session.run(code, seconds=seconds, cancelled=limits.cancelled)
            written, notes = self._get_written(cell)
        except (sandbox.SessionEnded, OSError) as error:
            self._stop()
            return Result(f"error:\n\n```\n{error}\n```\n\n{_FRESH}", is_error=True)
        if not cell.alive:
            self._stop()
        text = _text(cell, seconds, [*self._notes, *notes], [name for name, _ in written])
        self._notes = []
        paths = tuple(str(self.folder / name) for name, _ in written)
        return Result(text, bool(cell.error), paths)

    def close(self) -> None:
        """Ends the session, and removes a temporary folder."""
        self._stop()
        if self._temporary is not None:
            self._temporary.cleanup()

    def tool(self, name: str = "python") -> Tool:
        """Returns the tool, whose input is code."""
        return _tool(
            name, lambda arguments, limits: self.run(arguments["code"], limits), self.close
        )

    def _start(self) -> None:
        """Starts a session, if there is none, with the files of the folder."""
        if self._session is not None:
            return
        files = self._files()
        total = sum(size for size, _ in files.values())
        if total > self._settings["disk_mb"] << 20:
            raise ConfigError(
                f"the files of the folder have {total >> 20} MB.",
                str(self.folder),
                f"remove some, or raise disk_mb, which is {self._settings['disk_mb']}.",
            )
        self._session = sandbox.Session(**self._settings)
        self._known = {}
        self._put_changed()

    def _stop(self) -> None:
        if self._session is not None:
            self._session.close()
        self._session = None

    def _files(self) -> dict[str, tuple[int, int]]:
        """Returns the size and the time of each file of the folder."""
        found = {}
        for folder, folders, names in os.walk(self.folder):
            folders[:] = [each for each in folders if each[0] != "." and each not in _SKIPPED]
            for each in names:
                path = os.path.join(folder, each)
                if each[0] != "." and os.path.isfile(path) and not os.path.islink(path):
                    status = os.stat(path)
                    found[os.path.relpath(path, self.folder)] = status.st_size, status.st_mtime_ns
        return found

    def _put_changed(self) -> None:
        """Copies files in that are new or have changed; the next cell's text says which are not."""
        assert self._session is not None
        for name, stamp in self._files().items():
            if self._known.get(name) == stamp:
                continue
            self._known[name] = stamp
            if stamp[0] > _MAX_FILE:
                self._notes.append(f"{name} has more than {_MAX_FILE >> 20} MB: not copied in")
                continue
            try:
                self._session.put(name, (self.folder / name).read_bytes())
            except OSError as error:
                self._notes.append(f"{name} was not copied in: {error}")

    def _get_written(self, cell: Cell) -> tuple[list[tuple[str, int]], list[str]]:
        """Copies files out that the cell has written; returns them, and notes about others."""
        written, notes = [], []
        for name, size in cell.files if cell.alive else ():
            path = self.folder / name
            if size > _MAX_FILE:
                notes.append(f"{name} has more than {_MAX_FILE >> 20} MB and was not copied out")
                continue
            assert self._session is not None
            if not self._is_inside(path):
                notes.append(f"{name} is a link here and was not copied out")
                continue
            try:
                content = self._session.get(name)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(path, content)
            except OSError as error:
                notes.append(f"{name} was not copied out: {error}")
                continue
            status = os.stat(path)
            self._known[name] = status.st_size, status.st_mtime_ns
            written.append((name, size))
        if cell.files_left_out:
            notes.append(f"{cell.files_left_out} more files were not copied out: too many at once")
        return written, notes

    def _is_inside(self, path: pathlib.Path) -> bool:
        """Returns whether writing a path stays in the folder: a link here may lead elsewhere."""
        if path.is_symlink():
            return False
        with contextlib.suppress(OSError):
            return path.resolve().is_relative_to(self.folder.resolve())
        return False


def definition(name: str, language: str = "en") -> dict[str, Any]:
    """Returns the tool as a ReAct prompt describes it, without starting a session."""
    return _tool(name, lambda arguments, limits: "").definition(REACT, language)


def _tool(name: str, run: Run, close: Callable[[], None] = lambda: None) -> Tool:
    return Tool(
        name,
        _DESCRIPTION,
        run,
        {
            "type": "object",
            "properties": {"code": {"type": "string", "description": "Python code"}},
            "required": ["code"],
            "additionalProperties": False,
        },
        _DESCRIPTION_ZH,
        text_parameter="code",
        close=close,
    )


_FRESH = (
    "The session has ended: its variables are lost, and files of earlier cells are still there. "
    "The next code runs in a fresh session."
)


def _text(cell: Cell, seconds: float, notes: list[str], written: list[str]) -> str:
    """Returns a cell's end in the report's format."""
    parts = []
    for title, text in (("stdout", cell.stdout), ("execute_result", cell.value)):
        if text:
            parts.append(f"{title}:\n\n{_fenced(text)}")
    if cell.stderr:
        parts.append(f"{'error' if cell.error else 'stderr'}:\n\n{_fenced(cell.stderr)}")
    if cell.error == "time":
        stopped = f"the code was stopped after {seconds:.3g} s; variables are kept"
        parts.append(f"error:\n\n{_fenced(stopped)}")
    elif not cell.alive:
        parts.append(f"error:\n\n{_fenced(cell.error)}\n\n{_FRESH}")
    parts += [f"![fig-{i + 1:03}]({name})" for i, name in enumerate(cell.figures)]
    others = [name for name in written if name not in cell.figures]
    if others:
        parts.append(f"files written: {', '.join(others[:50])}")
    if len(others) > 50:
        parts.append(f"and {len(others) - 50} more files")
    parts += [f"note: {note}" for note in notes]
    return "\n\n".join(parts) or "Finished execution."


def _fenced(text: str) -> str:
    return f"```\n{text.rstrip()}\n```"
