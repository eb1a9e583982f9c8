"""Sessions: cells share variables and a folder, and whatever a cell does, the host goes on."""

import os
import sys
import tempfile
import threading

import pytest

from qwen_jax import sandbox
from qwen_jax.errors import ConfigError
from qwen_jax.sandbox import programs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the layers are Linux's")


@pytest.fixture(scope="module")
def isolated():
    try:
        programs.python(unsafe=False)
    except sandbox.SandboxError as error:
        pytest.skip(f"untrusted code cannot be isolated here: {error.where}")


@pytest.fixture
def session(isolated):
    with sandbox.Session() as session:
        yield session


def test_session_keeps_variables_and_shows_the_last_value(session):
    assert session.run("x = 20", seconds=20).value is None
    cell = session.run("print('out'); x + 1", seconds=20)
    assert (cell.stdout, cell.value, cell.error) == ("out\n", "21", "")
    assert session.run("_ * 2", seconds=20).value == "42"
    assert session.run("x;", seconds=20).value is None


def test_session_shows_a_traceback_with_lines_of_earlier_cells(session):
    session.run("def f():\n    return 1 / 0", seconds=20)
    cell = session.run("f()", seconds=20)
    assert cell.error == "exception" and cell.alive
    assert 'File "<cell 1>", line 2, in f\n    return 1 / 0' in cell.stderr
    assert "cells.py" not in cell.stderr


def test_session_hands_files_in_and_out(session):
    content = bytes(range(256)) * 20_000  # more than a pipe and a socket hold
    session.put("folder/in.bin", content)
    cell = session.run(
        "x = open('folder/in.bin', 'rb').read(); open('out', 'wb').write(x[::-1])", seconds=20
    )
    assert cell.files == (("out", len(content)),)  # not the one that was put
    assert session.get("out") == content[::-1]
    assert session.run("1", seconds=20).files == ()
    for name in ("../x", "/etc/passwd", ""):
        with pytest.raises(ConfigError):
            session.get(name)
    with pytest.raises(OSError, match="FileNotFoundError"):
        session.get("missing")


def test_session_saves_figures(session):
    pytest.importorskip("matplotlib")
    code = (
        "import matplotlib.pyplot as plt\nfor y in (1, 2):\n    plt.figure(); plt.plot([0, y])\n0"
    )
    cell = session.run(code, seconds=60)
    assert cell.figures == ("figure-001.png", "figure-002.png"), cell
    assert session.get("figure-002.png").startswith(b"\x89PNG")


def test_session_stops_a_slow_cell_and_keeps_variables(session):
    session.run("x = 5", seconds=20)
    cell = session.run("print('begun')\nwhile True: pass", seconds=0.3)
    assert (cell.error, cell.alive, cell.stdout) == ("time", True, "begun\n")
    assert session.run("x", seconds=20).value == "5"


@pytest.mark.parametrize(
    "code, reason",
    [
        ("import os; print('last'); os._exit(3)", "exit status 3"),
        ("import ctypes; ctypes.string_at(0)", "signal 11"),
        ("import signal; signal.signal(14, signal.SIG_IGN)\nwhile True: pass", "time"),
        ("print('x' * (2 << 20))", "output"),
        ("import os; os.close(3)", ""),
        ("import os; os.write(3, bytes([255]) * 64)", "its replies cannot be read"),
        ("import os; os.write(3, bytes([2, 0, 0, 0, 0, 0, 0, 0]) + b'[]')", "its replies cannot"),
    ],
    ids=["exit", "crash", "hang", "flood", "close", "junk", "forged"],
)
def test_session_ends_with_a_reason(isolated, code, reason):
    with sandbox.Session() as session:
        cell = session.run(code, seconds=0.3)
        assert not cell.alive and cell.error.startswith(reason), cell.error
        if reason.startswith("exit"):
            assert cell.stdout == "last\n"
        with pytest.raises(sandbox.SessionEnded):
            session.run("1", seconds=20)


def test_session_does_not_believe_a_forged_reply(session):
    forged = (
        "import os, struct, json\n"
        "h = json.dumps({'files': [['../../x', 1], ['ok', 1], 5], 'figures': ['../../x', 7],\n"
        "                'value': 3, 'error': ['?'], 'files_left_out': 'many'}).encode()\n"
        "os.write(3, struct.pack('=II', len(h), 0) + h)\n"
        "import time; time.sleep(60)"
    )
    cell = session.run(forged, seconds=20)
    assert (cell.files, cell.figures, cell.value) == ((("ok", 1),), (), None)


def test_session_cannot_start_processes(session):
    cell = session.run("import os\nos.fork()", seconds=20)
    assert "PermissionError" in cell.stderr and cell.alive
    assert session.run("1 + 1", seconds=20).value == "2"


def test_session_is_cancelled(session):
    pressed = threading.Event()
    threading.Timer(0.2, pressed.set).start()
    cell = session.run("import time; time.sleep(60)", seconds=50, cancelled=pressed.is_set)
    assert not cell.alive and cell.error == "cancelled" and cell.seconds < 30


def test_session_works_where_namespaces_are_denied(isolated, monkeypatch):
    supervisor = programs.Supervisor(namespaces=False)
    if not supervisor.layers.isolated:
        pytest.skip("without namespaces, nothing is isolated here")
    monkeypatch.setattr(programs, "python", lambda unsafe: supervisor)
    before = set(os.listdir(tempfile.gettempdir()))
    with sandbox.Session(disk_mb=2) as session:
        assert session.run("open('a', 'w').write('b')", seconds=20).files == (("a", 1),)
        flood = (
            "for i in range(40): open(str(i), 'wb').write(bytes(100_000))\n"
            "import time; time.sleep(9)"
        )
        cell = session.run(flood, seconds=20)
        assert cell.error.startswith("disk")
    supervisor.close()
    after = set(os.listdir(tempfile.gettempdir()))
    assert not [name for name in after - before if name.startswith("qwen-jax-box")]
