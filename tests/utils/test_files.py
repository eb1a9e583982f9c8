"""Atomic file writes; errors of reading small JSON files."""

import errno
import json
import os
import stat

import pytest

from qwen_jax.errors import CheckpointError, DataError
from qwen_jax.utils import files
from qwen_jax.utils.files import atomic_write, read_json, sync_folder, write_json, write_text
from tests.helpers.damage import odd_files


def test_atomic_write_replaces_the_file_when_the_block_ends(tmp_path):
    path = tmp_path / "a"
    for content in (b"old", b"new"):
        before = path.read_bytes() if path.exists() else None
        with atomic_write(path) as file:
            file.write(content)
            file.flush()
            assert (path.read_bytes() if path.exists() else None) == before
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_atomic_write_leaves_the_old_file_when_the_block_fails(tmp_path, error):
    write_text(tmp_path / "a", "old")
    with pytest.raises(error):
        with atomic_write(tmp_path / "a", "w") as file:
            file.write("new")
            raise error
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_atomic_write_leaves_the_old_file_when_the_rename_fails(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    write_text(tmp_path / "a", "old")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="full"):
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_atomic_write_syncs_the_file_before_the_rename_and_the_folder_after(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor):
        info = os.fstat(descriptor)
        calls.append("folder" if stat.S_ISDIR(info.st_mode) else f"file of {info.st_size} bytes")
        fsync(descriptor)

    def note_replace(*names):
        calls.append("rename")
        replace(*names)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    write_text(tmp_path / "a", "日本")
    assert calls == ["file of 6 bytes", "rename", "folder"]


def test_atomic_write_keeps_permission_bits(tmp_path):
    path = tmp_path / "a"
    write_text(path, "old")
    usual = stat.S_IMODE(path.stat().st_mode)
    (tmp_path / "plain").write_text("")
    assert usual == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    path.chmod(0o640)
    write_text(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_atomic_write_follows_a_symbolic_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a").symlink_to(tmp_path / "elsewhere" / "b")
    for text in ("old", "new"):
        write_text(tmp_path / "a", text)
        assert (tmp_path / "a").is_symlink()
        assert (tmp_path / "elsewhere" / "b").read_text() == text
    assert sorted(os.listdir(tmp_path)) == ["a", "elsewhere"]


def test_atomic_write_replaces_only_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # represents /dev/null, which only an administrator can replace
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match=f"not a regular file: .*{name}"):
            write_text(tmp_path / name, "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path / "folder", "x")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert sorted(os.listdir(tmp_path)) == ["folder", "link", "pipe"]


def test_atomic_write_does_not_make_folders(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "missing" / "a", "x")
    assert os.listdir(tmp_path) == []


def test_sync_folder_accepts_file_systems_without_it(tmp_path, monkeypatch):
    def refuse(code):
        def fsync(_):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", fsync)

    refuse(errno.EINVAL)
    sync_folder(tmp_path)
    refuse(errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        sync_folder(tmp_path)


def test_write_json_survives_a_round_trip(tmp_path):
    content = {"name": "日本", "numbers": [1, 2.5, None]}
    write_json(tmp_path / "a.json", content)
    assert (tmp_path / "a.json").read_text("utf-8") == (
        '{\n "name": "日本",\n "numbers": [\n  1,\n  2.5,\n  null\n ]\n}\n'
    )
    assert read_json(tmp_path / "a.json") == content
    write_json(tmp_path / "b.json", content, indent=2)
    assert (tmp_path / "b.json").read_text("utf-8") == (
        json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    )


def test_read_json_states_the_problem(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(CheckpointError, match="a.json not found"):
        read_json(path, error=CheckpointError)
    path.write_text("{")
    with pytest.raises(DataError, match="(?s)a.json is not valid JSON.*write it again"):
        read_json(path, fix="write it again.")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not valid JSON"):
        read_json(path)
    path.write_text("[3]")
    with pytest.raises(DataError, match="not a JSON object"):
        read_json(path)
    assert read_json(path, kind=list) == read_json(path, kind=object) == [3]
    path.write_text("{}")
    with pytest.raises(DataError, match="not a JSON list"):
        read_json(path, kind=list)


def test_read_json_refuses_what_is_not_a_small_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("{}")
    for kind in odd_files(path):
        with pytest.raises(DataError, match="cannot read a.json|a.json not found"):
            read_json(path)
        assert kind
    os.truncate(path, 10 << 30)  # has no blocks
    with pytest.raises(DataError, match="a.json has 10,737,418,240 bytes"):
        read_json(path)
    path.write_bytes(b"\xef\xbb\xbf{}")
    assert read_json(path) == {}


def test_read_json_keeps_the_reason_of_the_system(tmp_path, monkeypatch):
    def failing(path, *rest):
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    monkeypatch.setattr(files.os, "open", failing)
    with pytest.raises(DataError, match="Input/output error") as caught:
        read_json(tmp_path / "a.json")
    assert caught.value.__cause__.errno == errno.EIO


def test_files_in_lists_files_and_links_of_all_folders(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    for name in ("a/b/1", "a/2", ".3", ".hidden/4"):
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "broken").symlink_to("nowhere")
    shown = [str(path.relative_to(tmp_path)) for path in files.files_in(tmp_path, hidden=False)]
    assert shown == ["a/2", "a/b/1", "broken", "link"]
    assert len(files.files_in(tmp_path)) == 6


def test_files_in_names_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    scandir = os.scandir

    def failing(folder):
        if os.fspath(folder).endswith("a"):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(PermissionError) as refused:
        files.files_in(tmp_path)
    assert refused.value.filename == str(tmp_path / "a")


@pytest.mark.parametrize(
    "error, fix",
    [
        (OSError(errno.EFBIG, "File too large", "a"), "raise the limit on file sizes"),
        (RuntimeError("write failed (os error 27)"), "raise the limit on file sizes"),
        (OSError(errno.ENOSPC, "No space left on device", "a"), "free some disk space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "a"), "free some disk space"),
    ],
)
def test_disk_full_says_what_helps(error, fix):
    assert files.disk_full(error).fix.startswith(fix)
