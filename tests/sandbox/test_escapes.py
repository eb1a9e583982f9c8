"""Every attempt of escapes.py: both profiles, as root and nobody, with and without namespaces."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.helpers.nobody import NOBODY, copy_sandbox, python_of_nobody
from tests.sandbox import escapes

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUN = "tests/sandbox/escape_run.py"
SAMPLE = [
    "read a file outside",
    "write through a symbolic link",
    "connect by TCP",
    "send by UDP",
    "fork",
    "signal the parent",
    "a pipe that signals another process",
    "list mounts",
    "a 32-bit call",
    "new user namespace",
    "endless stdout",
    "secrets in the environment and in memory",
]
# What a run without a sandbox can do, with this file's user or with root's rights.
CONTROL = [
    *("read a file outside", "create a file next to it", "list /tmp", "inherited descriptors"),
    *("connect by TCP", "send by UDP", "Unix socket by path", "abstract Unix socket"),
    *("fork bomb", "subprocess", "execve", "signal the parent", "memfd", "become dumpable"),
]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the layers are Linux's")


def run(python: str, folder: pathlib.Path, user: int | None, **settings) -> list[dict]:
    """Runs attempts in a process of their own; returns their lines."""
    command = [python, "-B", RUN, str(folder), json.dumps({"names": None} | settings)]
    given = {} if user is None else {"user": user, "group": user, "extra_groups": []}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, **given)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(lines: list[dict], expected: int) -> None:
    layers, attempts = lines[0], lines[1:]
    if not layers["isolated"]:
        pytest.skip(f"this kernel isolates neither files nor network: {layers['layers']}")
    assert [line for line in attempts if line["escaped"]] == []
    assert len(attempts) >= expected


def test_a_sample_of_attempts_fails():
    check(run(sys.executable, ROOT, None, profile="python", deny_unshare=False, names=SAMPLE), 8)


def test_attempts_succeed_without_a_sandbox():
    names = [name for name in CONTROL if name != "fork bomb"]
    lines = run(sys.executable, ROOT, None, profile="none", deny_unshare=False, names=names)
    held = {line["name"] for line in lines[1:] if not line["escaped"]}
    assert held <= {"inherited descriptors"}
    assert len(lines) > 8


def test_names_of_attempts_are_unique():
    names = [attempt.name for group in escapes.ATTEMPTS.values() for attempt in group]
    assert len(set(names)) == len(names) >= 60
    assert set(SAMPLE) <= set(names) and set(CONTROL) <= set(names)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The package where another user can read it."""
    folder = pathlib.Path("/tmp") / f"qwen-jax-escapes-{os.getpid()}"
    copy_sandbox(folder)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("deny_unshare", [False, True], ids=["namespaces", "unshare denied"])
@pytest.mark.parametrize("profile", ["python", "build"])
@pytest.mark.parametrize("user", ["root", "nobody"])
def test_all_attempts_fail(user, profile, deny_unshare, copy):
    python = sys.executable
    if os.geteuid():
        if user == "root":
            pytest.skip("not root")
        number = None
    elif user == "nobody":
        number, python = NOBODY, python_of_nobody()
        if python is None:
            pytest.skip("no Python 3.11 or later that nobody can start")
    else:
        number = None
    check(run(python, copy, number, profile=profile, deny_unshare=deny_unshare), 120)
