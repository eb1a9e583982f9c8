"""Exports are written to a folder that no other process writes to, and renamed."""

import fcntl
import os

import pytest

from qwen_jax.errors import ConfigError
from qwen_jax.pretrained.export.folder import atomic_folder


def test_atomic_folder_refuses_a_second_export_to_the_same_folder(tmp_path):
    folder = tmp_path / "hf"
    with atomic_folder(folder, needed_bytes=1) as partial:
        (partial / "config.json").write_text("first")
        with pytest.raises(ConfigError, match="another process exports") as caught:
            with atomic_folder(folder, needed_bytes=1):
                pass
        assert caught.value.where == str(folder)
        assert (partial / "config.json").read_text() == "first"
    with atomic_folder(folder, needed_bytes=1) as partial:
        (partial / "config.json").write_text("second")
    assert (folder / "config.json").read_text() == "second"
    assert os.listdir(tmp_path) == ["hf"]


def test_atomic_folder_empties_what_a_killed_export_left(tmp_path):
    left = tmp_path / ".hf.partial"
    (left / "additional_chat_templates").mkdir(parents=True)
    (left / "config.json").write_text("old")
    with atomic_folder(tmp_path / "hf", needed_bytes=1) as partial:
        assert partial == left and os.listdir(partial) == []
    assert os.listdir(tmp_path) == ["hf"]


def test_atomic_folder_waits_for_no_lock_that_ended_with_its_export(tmp_path, monkeypatch):
    """Another export may end between the opening of the folder and the lock."""
    partial, ended = tmp_path / ".hf.partial", []
    lock = fcntl.flock

    def flock(descriptor, kind):
        if not ended:
            ended.append(partial.rename(tmp_path / "hf"))
        lock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", flock)
    with atomic_folder(tmp_path / "hf", needed_bytes=1) as found:
        (found / "config.json").write_text("mine")
    assert ended and (tmp_path / "hf/config.json").read_text() == "mine"


def test_atomic_folder_keeps_the_earlier_export_if_a_rename_fails(tmp_path, monkeypatch):
    with atomic_folder(tmp_path / "hf", needed_bytes=1) as partial:
        (partial / "config.json").write_text("first")
    rename = os.rename

    def failing(source, target):
        if os.fspath(source).endswith(".partial"):
            raise OSError(5, "Input/output error", str(source))
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="Input/output"):
        with atomic_folder(tmp_path / "hf", needed_bytes=1):
            pass
    assert (tmp_path / "hf/config.json").read_text() == "first"
