"""The header of a results page for CPU measurements."""

import datetime
import importlib.metadata
import os
import platform
import shlex
import sys


def head(names: tuple[str, ...]) -> str:
    """Returns date, machine, versions and command as Markdown."""
    cpu = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            cpu = next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        pass
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    command = " ".join(map(shlex.quote, sys.argv[1:]))
    spec = sys.modules["__main__"].__spec__
    module = spec.name if spec else sys.argv[0]
    return (
        f"{datetime.date.today().isoformat()}, {os.cpu_count()} cores ({cpu}), Python "
        f"{platform.python_version()}, {versions}.\n\n    python -m {module} {command}\n"
    )
