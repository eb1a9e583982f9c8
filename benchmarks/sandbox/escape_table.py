"""Runs every attempt to escape of tests/sandbox/escapes.py and says which layer stopped it.

    python -m benchmarks.sandbox.escape_table

Both profiles, with namespaces and with unshare denied, as the user that starts it. Writes
benchmarks/results/sandbox_escapes.md. The layer is read from the error that the attempt met.
"""

import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "sandbox_escapes.md"
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


def main() -> None:
    found: dict[str, dict] = {}
    layers: list[str] = []
    for mode in MODES:
        settings = {"profile": mode[0], "deny_unshare": mode[1], "names": None}
        command = [sys.executable, "-B", "tests/sandbox/escape_run.py", str(ROOT)]
        done = subprocess.run(
            [*command, json.dumps(settings)], cwd=ROOT, capture_output=True, text=True, check=True
        )
        first, *lines = map(json.loads, done.stdout.splitlines())
        layers.append(f"- {mode[0]}{', unshare denied' if mode[1] else ''}: {first['layers']}")
        for line in lines:
            row = found.setdefault(line["name"], {"group": line["group"]})
            row[mode] = layer(line, mode[1])
    user = "root" if os.geteuid() == 0 else f"user {os.geteuid()}"
    escaped = sum("**escaped**" in str(row.get(mode)) for row in found.values() for mode in MODES)
    text = [
        "# Attempts to escape from the sandbox",
        "",
        f"`python -m benchmarks.sandbox.escape_table`, {datetime.date.today().isoformat()}, Linux "
        f"{platform.release()}, Python {platform.python_version()}, as {user}: {len(found)} "
        f"attempts in {len(MODES)} modes, {escaped} escaped.",
        "",
        *layers,
        "",
        "The layer that stopped an attempt first, read from the error that it met; most would meet "
        "another one behind it. `seccomp` is EPERM or ENOSYS of a system call, `Landlock` EACCES.",
        "",
        "| group | attempt | python | python, unshare denied | build | build, unshare denied |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        cells = [row.get(mode, "-") for mode in MODES]
        text.append(f"| {row['group']} | {name} | " + " | ".join(cells) + " |")
    RESULTS.write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
