"""`run`: a program in any language, through supervisors that this process shares."""

import atexit
import numbers
import os
import threading
from collections.abc import Mapping

from qwen_jax.errors import ConfigError
from qwen_jax.sandbox import languages, wall_clock
from qwen_jax.sandbox.result import Result
from qwen_jax.sandbox.supervisor import ENVIRONMENT, Limits, Supervisor

_COMPILE_SECONDS = 120.0  # of CPU time
_lock = threading.Lock()
_shared: dict[tuple, Supervisor] = {}


def run(
    code: str,
    *,
    seconds: float,
    memory_mb: int,
    language: str = "python",
    files: Mapping[str, str] | None = None,
    wall_seconds: float | None = None,
    unsafe: bool = False,
) -> Result:
    """Runs a program that nobody has read.

    Python programs are forked from a warm interpreter and can start threads but no process. Other
    languages are compiled and run by their toolchains. A program sees the system's libraries, the
    installed packages and an empty folder, which disappears; no network, no other file.

    Args:
      code: of the main file.
      seconds: limit of CPU time, and of wall clock. Compilers have two minutes of CPU of their own.
      memory_mb: limit of memory; for Python of address space.
      language: "python", "js", "java", "cpp", "rust" or "go".
      files: more files, by relative name.
      wall_seconds: limit of wall clock, if another one. CPU time is a fairer limit on a machine
        that is shared.
      unsafe: run even where the kernel isolates neither files nor network.

    Returns:
      The end of the run; `ok` is no verdict on the code (see call and check).

    Raises:
      SandboxError: code cannot be isolated here, or the toolchain is missing.
      ConfigError: an argument is out of range, or of another type.
    """
    check_text("code", code)
    limits = limits_of(seconds, memory_mb, wall_seconds)
    named = check_files(files or {})
    if language == "python":
        return python(unsafe).run({"files": named, "code": code}, limits)
    made = languages.language(language)
    named = {made.file: code, **languages.more_files(language), **named}
    return build(named, languages.steps(language, named, memory_mb=memory_mb), limits, unsafe)


def layers() -> str:
    """Returns one line: the layers of isolation that this machine enforces."""
    return str(_supervisor().layers)


def close() -> None:
    """Ends the warm interpreters of this process; the next run starts others."""
    with _lock:
        for supervisor in _shared.values():
            supervisor.close()
        _shared.clear()


atexit.register(close)


def python(unsafe: bool) -> Supervisor:
    """Returns the supervisor of Python programs. Raises SandboxError as `run`."""
    supervisor = _supervisor()
    supervisor.layers.require(unsafe=unsafe)
    return supervisor


def build(files: dict[str, str], steps: list[dict], limits: Limits, unsafe: bool) -> Result:
    """Runs the steps of languages.steps. Raises SandboxError as `run`."""
    supervisor = _supervisor(toolchains=languages.toolchains())
    supervisor.layers.require(unsafe=unsafe)
    total, patience = 0.0, _COMPILE_SECONDS * wall_clock.factor()
    for step in steps:
        compiles = step.pop("compile")
        step["seconds"] = patience if compiles else limits.wall_seconds
        step["cpu_seconds"] = _COMPILE_SECONDS if compiles else limits.seconds
        step["memory"] = step.pop("memory_mb") << 20
        step["environment"] = {**ENVIRONMENT, "HOME": "{box}", "TMPDIR": "{box}"} | step[
            "environment"
        ]
        total += step["seconds"]
    return supervisor.run({"files": files, "steps": steps}, limits, build_seconds=total)


def limits_of(
    seconds: float, memory_mb: int, wall_seconds: float | None, *, wall_factor: float = 1.0
) -> Limits:
    """Returns checked limits. Raises ConfigError.

    Args:
      wall_factor: wall clock in units of `seconds`, if wall_seconds is None.
    """
    wall = seconds if wall_seconds is None else wall_seconds
    for name, value in (("seconds", seconds), ("memory_mb", memory_mb), ("wall_seconds", wall)):
        if not isinstance(value, numbers.Real):
            kind = type(value).__name__
            raise ConfigError(f"{name} is of type {kind}, not a number.", name, "pass a number.")
        if not 0 < value < 1e6:
            raise ConfigError(f"{name}={value} is out of range.", name, "pass a positive number.")
    wall *= wall_factor if wall_seconds is None else 1.0
    return Limits(seconds, int(memory_mb) << 20, wall)


def check_text(name: str, value: object) -> None:
    """Raises ConfigError if an argument is not text."""
    if not isinstance(value, str):
        fix = "decode it: code.decode()." if isinstance(value, bytes) else "pass a string."
        raise ConfigError(f"{name} is of type {type(value).__name__}, not str.", name, fix)


def check_files(files: Mapping[str, str]) -> dict[str, str]:
    """Returns files with relative names without "..". Raises ConfigError."""
    if not isinstance(files, Mapping):
        raise ConfigError(
            f"files are of type {type(files).__name__}, not a mapping.",
            "files",
            "pass a dictionary from relative names to texts.",
        )
    for name, content in files.items():
        check_text("the name of a file", name)
        check_text(f"files[{name[:100]!r}]", content)
        if os.path.isabs(name) or ".." in name.split("/") or not name or "\0" in name:
            raise ConfigError(
                f"the file name {name[:100]!r} leaves the folder of the run.",
                "files",
                "use relative names without '..'.",
            )
    return dict(files)


def _supervisor(toolchains: tuple[str, ...] = ()) -> Supervisor:
    # After a fork, the socket belongs to the other process.
    with _lock:
        key = (os.getpid(), toolchains)
        if key not in _shared:
            _shared[key] = Supervisor(toolchains=toolchains)
        return _shared[key]
