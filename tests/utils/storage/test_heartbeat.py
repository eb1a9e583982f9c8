"""The lock of a run folder in a store."""

import dataclasses
import json
import os
import subprocess
import sys
import time

import pytest

from qwen_jax.errors import FolderInUseError, TrainingError
from qwen_jax.utils.folder_lock import Writer
from qwen_jax.utils.storage import heartbeat
from qwen_jax.utils.storage.store import open_store


@pytest.fixture
def store(tmp_path):
    return open_store(f"flat://{tmp_path}/run")


def take(store, lines, **settings):
    settings = {"flag": "--run_dir", "stale_seconds": 60.0, "sleep": lambda _: None} | settings
    return heartbeat.take(store, log=lines.append, **settings)


def as_another(store, **changes):
    """Makes the lock that of another process."""
    record = dataclasses.asdict(Writer.this_process()) | {"token": "other"} | changes
    store.write("lock.json", json.dumps(record).encode())


def test_heartbeat_refuses_a_second_writer(store):
    with heartbeat.hold(store, log=print) as lock:
        lock.check()
        with pytest.raises(FolderInUseError) as error:
            take(store, [])
        assert f"process {os.getpid()}" in error.value.what
        assert str(store.root) in error.value.where
        lock.beat()
        lock.check()
    assert store.stat("lock.json") is None


def test_heartbeat_takes_over_a_dead_process_of_this_machine_at_once(store):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    as_another(store, pid=ended.pid)
    lines = []
    take(store, lines).check()
    assert len(lines) == 1 and f"process {ended.pid}" in lines[0]


def test_heartbeat_waits_for_a_silent_writer_of_another_machine(store):
    as_another(store, machine="another")
    lines, slept = [], []
    lock = take(store, lines, stale_seconds=0.3, sleep=lambda _: slept.append(time.sleep(0.1)))
    lock.check()
    assert "waiting" in lines[0] and "took over" in lines[1] and slept


def test_heartbeat_refuses_while_another_machine_beats(store):
    as_another(store, machine="another")
    beats = iter(range(9))
    with pytest.raises(FolderInUseError):
        take(store, [], sleep=lambda _: as_another(store, machine="another", beat=next(beats)))


def test_heartbeat_of_a_frozen_writer_is_lost(store):
    frozen = take(store, [])
    as_another(store)
    frozen.beat()
    assert json.loads(store.read("lock.json"))["token"] == "other"
    with pytest.raises(TrainingError, match="has taken over"):
        frozen.check()
    frozen.release()
    assert store.stat("lock.json") is not None


def test_heartbeat_comes_back_if_it_is_deleted_by_hand(store):
    lock = take(store, [])
    store.delete("lock.json")
    lock.check()
    lock.beat()
    assert store.stat("lock.json") is not None
