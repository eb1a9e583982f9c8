"""One writer per folder, on one machine and on several; time and other processes are injected."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import threading

import pytest

from qwen_jax.errors import ConfigError, TrainingError
from qwen_jax.utils import folder_lock
from qwen_jax.utils.folder_lock import Writer, hold


def never(seconds):
    raise AssertionError("waited")


def write(folder, writer, *, age=0.0):
    path = folder / folder_lock.NAME
    path.write_text(json.dumps(dataclasses.asdict(writer)))
    os.utime(path, (path.stat().st_mtime - age,) * 2)
    return path


def elsewhere(**changes):
    """A writer on another machine, with the host name and pid of this process."""
    return dataclasses.replace(Writer.this_process(), machine="other boot", **changes)


def dead(**changes):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return dataclasses.replace(Writer.this_process(), pid=process.pid, started="1", **changes)


def test_hold_refuses_a_second_writer_and_names_the_first(tmp_path):
    with hold(tmp_path / "run", sleep=never):
        record = json.loads((tmp_path / "run/lock.json").read_text())
        assert (record["host"], record["pid"]) == (socket.gethostname(), os.getpid())
        with pytest.raises(ConfigError) as caught, hold(tmp_path / "run", sleep=never):
            pass
        assert f"process {os.getpid()} on {socket.gethostname()}, since {record['since']}" in (
            caught.value.what
        )
        assert caught.value.where == f"--run_dir={tmp_path / 'run'}"
    assert list((tmp_path / "run").iterdir()) == []
    with pytest.raises(KeyError), hold(tmp_path / "run"):
        raise KeyError  # released after an error too
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize(
    "writer",
    [
        dead,
        lambda: dataclasses.replace(Writer.this_process(), started="another process's start"),
    ],
    ids=["dead", "reused pid"],
)
def test_hold_takes_over_a_dead_writer_of_this_machine_at_once(tmp_path, writer):
    write(tmp_path, writer())
    lines = []
    with hold(tmp_path, log=lines.append, sleep=never):
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    assert len(lines) == 1 and "took over the lock of process" in lines[0]


def test_hold_takes_over_a_zombie(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = folder_lock._started(process.pid)
    assert started is not None
    writer = dataclasses.replace(Writer.this_process(), pid=process.pid, started=started)
    assert writer.lives()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # leaves the zombie
    assert writer.lives() is False
    process.wait()


def test_hold_judges_a_writer_elsewhere_by_its_heartbeat(tmp_path):
    path, lines = write(tmp_path, elsewhere()), []

    def beats(seconds):
        os.utime(path, (path.stat().st_mtime + 1,) * 2)

    with pytest.raises(ConfigError, match="another process writes"):
        with hold(tmp_path, log=lines.append, sleep=beats):
            pass
    assert len(lines) == 1 and "waiting up to 120 s for a heartbeat" in lines[0]
    # An old heartbeat is not waited for.
    write(tmp_path, elsewhere(), age=121)
    lines.clear()
    with hold(tmp_path, log=lines.append, sleep=never):
        pass
    assert len(lines) == 1 and "took over" in lines[0]


def test_hold_waits_until_the_heartbeat_is_stale(tmp_path):
    write(tmp_path, elsewhere())
    waits, lines = [], []
    with hold(tmp_path, log=lines.append, sleep=waits.append, stale_seconds=3.0):
        assert waits == [1.0] * 4  # the injected sleep takes no time: bounded by its number
    assert ["waiting" in lines[0], "took over" in lines[1]] == [True, True]


def test_hold_takes_a_lock_that_is_released_while_it_waits(tmp_path):
    path = write(tmp_path, elsewhere())
    with hold(tmp_path, log=lambda line: None, sleep=lambda seconds: path.unlink()):
        assert json.loads(path.read_text())["machine"] == folder_lock._machine()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 1}', "[" * 100_000])
def test_hold_takes_over_a_damaged_file_when_it_is_old(tmp_path, text):
    path = tmp_path / "lock.json"
    path.write_text(text)
    os.utime(path, (1, 1))
    with hold(tmp_path, log=lambda line: None, sleep=never):
        assert json.loads(path.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("stale", [False, True])
def test_hold_lets_only_one_of_many_in(tmp_path, stale):
    if stale:
        write(tmp_path, dead())
    barrier, inside, refused = threading.Barrier(8), [], []

    def enter():
        barrier.wait()
        try:
            with hold(tmp_path, log=lambda line: None, sleep=never):
                inside.append(json.loads((tmp_path / "lock.json").read_text())["token"])
                both.wait(10)
        except ConfigError as error:
            refused.append(error)
            if len(refused) == 7:
                both.set()

    both = threading.Event()
    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(inside), len(refused)) == (1, 7)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["link", "flock"])
def test_hold_works_without_hard_links_or_flock(tmp_path, monkeypatch, missing):
    def unsupported(*arguments):
        raise OSError(95, "not supported")

    module = os if missing == "link" else folder_lock.fcntl
    monkeypatch.setattr(module, missing, unsupported)
    write(tmp_path, dead())
    for _ in range(2):
        with hold(tmp_path, log=lambda line: None, sleep=never):
            with pytest.raises(ConfigError), hold(tmp_path, sleep=never):
                pass
    assert list(tmp_path.iterdir()) == []


def test_check_finds_that_another_process_took_over(tmp_path):
    with hold(tmp_path) as lock:
        lock.check()
        (tmp_path / "lock.json").unlink()
        lock.check()  # a deleted file is written again
        assert (tmp_path / "lock.json").exists()
        other = elsewhere(token="other", pid=7)
        path = write(tmp_path, other, age=50)
        before = path.stat().st_mtime
        lock.beat()
        assert path.stat().st_mtime == before
        with pytest.raises(TrainingError, match="taken over the folder: process 7"):
            lock.check()
    assert path.exists()  # the other's lock is not released


def test_beat_moves_the_heartbeat(tmp_path):
    with hold(tmp_path) as lock:
        path = tmp_path / "lock.json"
        os.utime(path, (1, 1))
        lock.beat()
        assert path.stat().st_mtime > 1
