"""Standard output without a reader, on a full disk, or closed."""

import os
import subprocess
import sys

import pytest

from qwen_jax import exit_codes
from qwen_jax.utils import output
from tests.helpers.failing_output import no_reader
from tests.helpers.tiny_checkpoint import ROOT


@pytest.mark.parametrize("length", [1, 100_000])
@pytest.mark.parametrize("flush", [True, False])
@pytest.mark.parametrize("leaves", [True, False])
def test_exit_on_closed_pipe_is_quiet(capsys, length, flush, leaves):
    with no_reader(), pytest.raises(SystemExit) as stop:
        with output.exit_on_closed_pipe():
            print("x" * length, flush=flush)
            if leaves:
                sys.exit(0)
    assert stop.value.code == exit_codes.CLOSED_PIPE and capsys.readouterr().err == ""


def test_exit_on_closed_pipe_keeps_the_code_of_an_error():
    with no_reader(), pytest.raises(SystemExit) as stop:
        with output.exit_on_closed_pipe():
            print("x")
            sys.exit(3)
    assert stop.value.code == 3


def test_exit_on_closed_pipe_leaves_other_pipes_alone():
    with pytest.raises(BrokenPipeError):
        with output.exit_on_closed_pipe():
            raise BrokenPipeError("of a subprocess")


def test_exit_on_closed_pipe_allows_no_output_at_all(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with output.exit_on_closed_pipe():
        print("nowhere")


CHECK = """
import os, sys
from qwen_jax.utils import output
output.reserve_descriptors()
with open(sys.argv[1], "wb") as file:
    assert file.fileno() > 2, file.fileno()
    for number in (1, 2):
        os.write(number, b"a warning of a C++ library")
assert not os.path.getsize(sys.argv[1])
"""


def test_reserve_descriptors_protects_files_from_warnings(tmp_path):
    command = [sys.executable, "-c", CHECK, str(tmp_path / "file")]
    shell = 'exec "$@" <&- >&- 2>&-'
    assert subprocess.run(["sh", "-c", shell, "sh", *command], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("program", [["launch.local", "--help"], ["launch.xpk", "--help"]])
def test_launchers_exit_quietly_without_a_reader(program):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", *program]
    done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert done.returncode in (0, exit_codes.CLOSED_PIPE) and done.stderr == b""
