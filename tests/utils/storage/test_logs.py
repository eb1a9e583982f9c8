"""Append-only files as segments, and the local copy of a run folder."""

import pytest

from qwen_jax.errors import DataError
from qwen_jax.utils.storage import segments
from qwen_jax.utils.storage.mirror import Mirror
from qwen_jax.utils.storage.segments import Segments
from qwen_jax.utils.storage.store import open_store


@pytest.fixture
def store(tmp_path):
    return open_store(f"flat://{tmp_path}/store")


def test_segments_append(store):
    log = Segments(store, "a.jsonl")
    assert log.read() == b""
    for content in (b"1\n", b"1\n2\n", b"1\n2\n", b"1\n2\n3\n"):
        log.write(content)
    assert Segments(store, "a.jsonl").read() == b"1\n2\n3\n"
    assert [each.bytes for each in store.list("a.jsonl.segments/")] == [2, 2, 2]


def test_segments_truncate_by_a_new_one(store):
    log = Segments(store, "a.jsonl")
    log.write(b"1\n2\n3\n")
    again = Segments(store, "a.jsonl")
    again.read()
    again.write(b"1\n")
    assert Segments(store, "a.jsonl").read() == b"1\n"
    again.write(b"1\n4\n")
    assert Segments(store, "a.jsonl").read() == b"1\n4\n"


def test_segments_are_merged_when_there_are_many(store, monkeypatch):
    monkeypatch.setattr(segments, "_MANY", 4)
    log, content = Segments(store, "a"), b""
    for number in range(11):
        content += b"%d\n" % number
        log.write(content)
        assert Segments(store, "a").read() == content
    assert len(store.list("a.segments/")) <= 5


def test_segments_notice_a_missing_one(store):
    log = Segments(store, "a")
    for content in (b"1\n", b"1\n2\n", b"1\n2\n3\n"):
        log.write(content)
    store.delete("a.segments/00000001-000000000002")
    with pytest.raises(DataError, match="a segment of a before 00000002"):
        Segments(store, "a").read()


def test_mirror_brings_a_folder_to_another_computer(store, tmp_path):
    here, there = Mirror(store, tmp_path / "here"), Mirror(store, tmp_path / "there")
    here.pull()
    (tmp_path / "here/plots").mkdir()
    (tmp_path / "here/config.json").write_text("{}")
    (tmp_path / "here/plots/loss.png").write_bytes(b"png")
    (tmp_path / "here/metrics.jsonl").write_text('{"step": 1}\n{"step"')  # half a line
    (tmp_path / "here/config.json.1234.writing").write_text("half")
    here.push()
    there.pull()
    assert (tmp_path / "there/config.json").read_text() == "{}"
    assert (tmp_path / "there/plots/loss.png").read_bytes() == b"png"
    assert (tmp_path / "there/metrics.jsonl").read_text() == '{"step": 1}\n'
    assert not (tmp_path / "there/config.json.1234.writing").exists()
    (tmp_path / "there/metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    (tmp_path / "there/config.json").unlink()
    there.push()
    (tmp_path / "here/only_here").write_text("never pushed")
    here.pull()
    assert (tmp_path / "here/metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
    assert not (tmp_path / "here/config.json").exists()
    assert not (tmp_path / "here/only_here").exists()


def test_mirror_pushes_only_what_has_changed(store, tmp_path):
    mirror = Mirror(store, tmp_path / "here")
    mirror.pull()
    (tmp_path / "here/a").write_text("1")
    (tmp_path / "here/b").write_text("1")
    mirror.push()
    before = {each.key: each.generation for each in store.list()}
    (tmp_path / "here/a").write_text("22")
    mirror.push()
    changed = {each.key for each in store.list() if before[each.key] != each.generation}
    assert changed == {"a"}


def test_mirror_moves_a_run_aside(store, tmp_path):
    mirror = Mirror(store, tmp_path / "here")
    mirror.pull()
    (tmp_path / "here/config.json").write_text("{}")
    (tmp_path / "here/events.jsonl").write_text("{}\n")
    mirror.push()
    store.write("checkpoints/5/manifest.json", b"m")
    store.write("lock.json", b"held")
    mirror.move_aside("before-1")
    mirror.pull()
    mirror.push()  # leaves before-1 as it is
    assert {each.key for each in store.list()} == {
        "lock.json",
        "before-1/config.json",
        "before-1/checkpoints/5/manifest.json",
        "before-1/events.jsonl.segments/00000000-000000000000",
    }
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["before-1"]


def test_mirror_push_is_a_warning_while_the_store_is_away(store, tmp_path, monkeypatch):
    mirror, lines = Mirror(store, tmp_path / "here"), []
    mirror.pull()
    (tmp_path / "here/a").write_text("1")
    with monkeypatch.context() as patch:
        patch.setattr(store, "upload", _no_space)
        mirror.try_push(lines.append)
        mirror.try_push(lines.append)
    assert len(lines) == 1 and "not up to date" in lines[0]
    mirror.try_push(lines.append)
    assert len(lines) == 1 and store.read("a") == b"1"


def _no_space(*_):
    raise OSError(28, "no space")
