"""The table of exit codes, the errors that have them, and the page that shows them."""

import errno
import pathlib

import pytest

from qwen_jax import errors, exit_codes
from qwen_jax.errors import CheckpointError, DataError

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_table_has_each_code_once_in_order():
    codes = [row.code for row in exit_codes.TABLE]
    assert codes == sorted(set(codes))


def test_restarts_all_but_what_a_restart_would_repeat():
    restarted = {code for code in range(-64, 256) if exit_codes.restarts(code)}
    assert set(range(-64, 256)) - restarted == {0, 1, 2, 73, 78, 130, 141}


def test_page_shows_the_table():
    text = (ROOT / "docs/guides/launching.md").read_text(encoding="utf-8")
    for row in exit_codes.TABLE:
        restart = "yes" if row.restart else "no"
        assert f"| {row.code} | {row.meaning} | {restart} |" in text


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "error, code",
    [
        (errors.ConfigError("a", "b", "c"), 1),
        (errors.DiskFullError("a", "b", "c"), 73),
        (errors.UnreadableError("a", "b", "c"), 74),
        (errors.FolderInUseError("a", "b", "c"), 78),
        (FULL, 73),
        (OSError(errno.EDQUOT, "quota"), 73),
        (OSError(errno.EFBIG, "too large"), 73),
        (caused(DataError("a", "b", "c"), FULL), 73),
        (caused(RuntimeError("x"), caused(DataError("a", "b", "c"), FULL)), 73),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 73),
        (RuntimeError("[os_error_code='28'] write"), 73),
        (caused(CheckpointError("a", "b", "c"), OSError(errno.EIO, "Input/output error")), 74),
        (OSError(errno.ESTALE, "stale"), 74),
        (caused(CheckpointError("a", "b", "c"), PermissionError(errno.EACCES, "denied")), 1),
        (PermissionError(errno.EACCES, "denied", "a file"), 1),
        (OSError(errno.EROFS, "Read-only file system", "a file"), 1),
        (PermissionError(errno.EACCES, "denied"), 70),
        (FileNotFoundError(errno.ENOENT, "missing", "a file"), 70),
        (RuntimeError("x"), 70),
        (MemoryError(), 70),
        # A host that was lost in a save, as Orbax reports it.
        (caused(CheckpointError("a", "b", "c"), RuntimeError("DEADLINE_EXCEEDED: Barrier")), 77),
        (caused(CheckpointError("a", "b", "c"), RuntimeError("UNAVAILABLE: connection")), 77),
        (caused(CheckpointError("a", "b", "c"), TimeoutError("60 s")), 77),
        (caused(CheckpointError("a", "b", "c"), ConnectionResetError(errno.ECONNRESET, "x")), 77),
        (RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:33"), 77),
        (caused(CheckpointError("a", "b", "c"), ValueError("not JSON")), 1),
        (
            caused(CheckpointError("UNAVAILABLE", "b", "c"), errors.ConfigError("ABORTED", "", "")),
            1,
        ),
        # A server that is not there is a wrong address.
        (caused(DataError("a", "b", "c"), ConnectionRefusedError(errno.ECONNREFUSED, "x")), 1),
    ],
)
def test_of_finds_the_cause(error, code):
    assert exit_codes.of(error) == code


def test_of_ends_for_errors_that_cause_each_other():
    first, second = RuntimeError("a"), RuntimeError("b")
    first.__cause__, second.__cause__ = second, first
    assert exit_codes.of(first) == 70


@pytest.mark.parametrize(
    "codes, first",
    [
        ([], 0),
        ([0, 0], 0),
        ([77, 1], 1),
        ([77, 134, 73], 73),
        ([-6, 75], 75),
        ([0, 70, 1], 70),
        ([-9, 77], 137),
        ([77, -6], 77),
        ([143, 0], 143),
    ],
)
def test_first_cause_is_not_a_consequence(codes, first):
    assert exit_codes.first_cause(codes) == first


def test_meaning_names_signals():
    assert exit_codes.meaning(1).startswith("wrong settings")
    assert exit_codes.meaning(137) == exit_codes.meaning(-9) == "killed by SIGKILL"
    assert exit_codes.meaning(99) == "not a code of this package"
