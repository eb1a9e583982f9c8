"""Runs every attempt to escape of tests/sandbox/escapes.py and says which layer stopped it.

    python -m benchmarks.sandbox.escape_table

Both profiles, with namespaces and with unshare denied, as root and as nobody: start it as root.
Writes benchmarks/results/sandbox_escapes.md. The layer is read from the error that the attempt met.
"""

import datetime
import itertools
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys

from tests.helpers.nobody import NOBODY, copy_sandbox, python_of_nobody

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "sandbox_escapes.md"
USERS = ("root", "nobody")
MODES = [(profile, denied) for profile in ("python", "build") for denied in (False, True)]
_BY_REASON = {
    "output": "supervisor: output",
    "time": "time limit",
    "disk": "supervisor: disk",
    "memory": "memory limit",
    "processes": "monitor: processes",
    "signal 31": "seccomp",
}
_BY_ERROR = {
    "PermissionError 1": "seccomp",
    "OSError 38": "seccomp",
    "PermissionError 13": "Landlock",
    "FileNotFoundError 2": "mount namespace",
    "OSError 30": "mount namespace",
    "OSError 18": "another file system",
    "OSError 26": "the kernel: file in use",
    "ProcessLookupError 3": "pid namespace",
    "BlockingIOError 11": "rlimits",
    "RuntimeError": "rlimits",
    "24": "rlimits",
    "27": "rlimits",
    "28": "size of the box",
    "own tree": "killed with its tree",
    "ValueError None": "rlimits",
    "ZeroDivisionError None": "has no capability",
    "gaierror -3": "seccomp",
    "none []": "closed",
    "none": "cleared",
    "ModuleNotFoundError": "not installed",
    "all": "signals stay inside",
    "race": "Landlock",
}


def layer(line: dict, denied: bool) -> str:
    """Returns what stopped an attempt."""
    if line["escaped"]:
        return f"**escaped**: {line['escaped'].splitlines()[0][:100]}"
    for start, name in _BY_REASON.items():
        if line["reason"].startswith(start):
            return name
    first = next((each for each in line["stdout"].splitlines() if each.startswith("stopped")), "")
    error = first.removeprefix("stopped: ").removeprefix("stopped:").strip()
    if error == "FileNotFoundError 2" and denied:
        return "not there"
    if not error:
        return "own processes only" if "ESCAPED" in line["stdout"] else "Landlock or its own error"
    return _BY_ERROR.get(error, error)


def attempts(user: str, mode: tuple[str, bool], folder: pathlib.Path) -> tuple[str, list[dict]]:
    """Returns the layers of a mode, and the lines of its attempts."""
    python: str | None = sys.executable
    given: dict = {}
    if user == "nobody":
        python, given = python_of_nobody(), {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        if python is None:
            raise SystemExit("no Python 3.11 or later that nobody can start")
    settings = json.dumps({"profile": mode[0], "deny_unshare": mode[1], "names": None})
    done = subprocess.run(
        [str(python), "-B", "tests/sandbox/escape_run.py", str(folder), settings],
        cwd=folder, capture_output=True, text=True, **given,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    first, *lines = map(json.loads, done.stdout.splitlines())
    return first["layers"], lines


def cell(layers: dict[str, str]) -> str:
    """Returns the layer that stopped an attempt; those of both users where they differ."""
    root, nobody = (layers.get(user, "-") for user in USERS)
    return root if root == nobody else f"{root}; nobody: {nobody}"


def main() -> None:
    if os.geteuid():
        raise SystemExit("start it as root: it runs the attempts as root and as nobody")
    groups: dict[str, str] = {}
    found: dict[tuple[str, tuple[str, bool]], dict[str, str]] = {}
    layers: list[str] = []
    folder = pathlib.Path("/tmp") / f"qwen-jax-escapes-{os.getpid()}"
    copy_sandbox(folder)
    try:
        for user, mode in itertools.product(USERS, MODES):
            title = f"{user}, {mode[0]}{', unshare denied' if mode[1] else ''}"
            text, lines = attempts(user, mode, folder)
            layers.append(f"- {title}: {text}")
            for line in lines:
                groups.setdefault(line["name"], line["group"])
                found.setdefault((line["name"], mode), {})[user] = layer(line, mode[1])
            print(f"{title}: {len(lines)} attempts", flush=True)
    finally:
        shutil.rmtree(folder)
    escaped = [name for each in found.values() for name in each.values() if "**escaped" in name]
    rows = [
        f"| {group} | {name} | " + " | ".join(cell(found.get((name, m), {})) for m in MODES) + " |"
        for name, group in groups.items()
    ]
    RESULTS.write_text("\n".join([*_head(len(groups), len(escaped), layers), *rows]) + "\n")


def _head(attempted: int, escaped: int, layers: list[str]) -> list[str]:
    return [
        "# Attempts to escape from the sandbox",
        "",
        f"`python -m benchmarks.sandbox.escape_table`, {datetime.date.today().isoformat()}, Linux "
        f"{platform.release()}, Python {platform.python_version()}: {attempted} attempts in "
        f"{len(layers)} modes, {escaped} escaped.",
        "",
        *layers,
        "",
        "The layer that stopped an attempt first, read from the error that it met; most would meet "
        "another one behind it. `seccomp` is EPERM or ENOSYS of a system call, `Landlock` EACCES. "
        "One layer in a cell stopped root and nobody alike.",
        "",
        "| group | attempt | python | python, unshare denied | build | build, unshare denied |",
        "|---|---|---|---|---|---|",
    ]


if __name__ == "__main__":
    main()
