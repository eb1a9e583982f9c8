"""Records on a disk that fills, and prints without a reader."""

import errno
import os
import sys
import threading

import pytest
from tqdm import tqdm

from qwen_jax.utils import best_effort
from qwen_jax.utils.best_effort import Losses, RecordFile, keep_going
from tests.helpers.failing_output import FullDisk


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("room", [12, 13, 15, 18])
@pytest.mark.parametrize("truncates", [True, False])
def test_record_file_holds_only_whole_lines(tmp_path, monkeypatch, capsys, code, room, truncates):
    disk = FullDisk(room, code, truncates=truncates)
    monkeypatch.setattr(best_effort, "os", disk)
    losses = Losses()
    file = RecordFile(tmp_path / "a.jsonl", losses)
    written = [file.append(b"row 1\n"), file.append(b"row 2\n"), file.append(b"row 3\n")]
    assert written == [True, True, room == 18]
    file.append(b"row 4\n")
    disk.room, disk.truncates = 1000, True  # somebody frees the disk
    assert file.append(b"row 5\n")
    file.close()
    losses.report()
    lines = (tmp_path / "a.jsonl").read_bytes().splitlines(keepends=True)
    whole = [line for line in lines if line in (b"row 1\n", b"row 2\n", b"row 3\n", b"row 5\n")]
    lost = 1 if room == 18 else 2
    assert len(whole) == 5 - lost and whole[-1] == b"row 5\n"
    assert lines == whole or not truncates  # an incomplete line that stays has a line of its own
    warned, counted = capsys.readouterr().err.splitlines()
    assert "going on" in warned and os.strerror(code) in warned
    assert counted == (
        f"warning: {lost} records of a.jsonl could not be written: {os.strerror(code)}"
    )


def test_record_file_begins_a_line_after_an_incomplete_one(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{"b"')
    file = RecordFile(tmp_path / "a.jsonl", Losses())
    assert file.append(b'{"c": 1}\n') and file.append(b'{"d": 1}\n')
    assert (tmp_path / "a.jsonl").read_bytes() == b'{"a": 1}\n{"b"\n{"c": 1}\n{"d": 1}\n'


def test_record_file_that_cannot_be_opened_is_counted(tmp_path, capsys):
    losses = Losses()
    file = RecordFile(tmp_path / "missing" / "a.jsonl", losses)
    assert not file.append(b"1\n") and not file.append(b"2\n")
    (tmp_path / "missing").mkdir()
    assert file.append(b"3\n")
    losses.report()
    assert "2 records of a.jsonl could not be written" in capsys.readouterr().err
    assert (tmp_path / "missing" / "a.jsonl").read_bytes() == b"3\n"


def test_record_file_keeps_records_of_threads_apart(tmp_path):
    file = RecordFile(tmp_path / "a", Losses())
    threads = [
        threading.Thread(
            target=lambda n=n: [file.append(b"%d" % n * 50 + b"\n") for _ in range(50)]
        )
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = (tmp_path / "a").read_bytes().splitlines()
    assert sorted(lines) == sorted(b"%d" % n * 50 for n in range(4) for _ in range(50))


def test_losses_warn_once_for_all_files(tmp_path, capsys):
    losses = Losses()
    for name in ("metrics", "events"):
        losses.add(f"records of {name}", OSError(errno.ENOSPC, "full"))
        losses.add(f"records of {name}", OSError(errno.ENOSPC, "full"))
    assert len(capsys.readouterr().err.splitlines()) == 1
    losses.report()
    losses.report()  # nothing new
    assert capsys.readouterr().err.splitlines() == [
        "warning: 2 records of metrics could not be written: full",
        "warning: 2 records of events could not be written: full",
    ]


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_keep_going_without_a_reader(name, monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    stream = open(writer, "w")
    monkeypatch.setattr(sys, name, stream)
    with keep_going():
        for number in range(3):
            print(number, file=getattr(sys, name), flush=True)
        for _ in tqdm(range(3), mininterval=0):
            pass
        getattr(sys, name).writelines(["a\n", "b\n"])
    assert getattr(sys, name) is stream
    print("later", file=stream, flush=True)  # goes nowhere, and Python can exit
    stream.close()
    shown = capsys.readouterr().err
    if name == "stdout":
        assert "warning: 5 lines of standard output could not be written: Broken pipe" in shown


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_keep_going_on_a_full_disk(monkeypatch, capsys):
    stream = open("/dev/full", "w")
    monkeypatch.setattr(sys, "stdout", stream)
    with keep_going():
        for number in range(3):
            print(number, flush=True)
    stream.close()
    warned, counted = capsys.readouterr().err.splitlines()
    assert "No space left on device; going on" in warned
    assert counted.startswith("warning: 3 lines of standard output")


def test_keep_going_with_streams_that_were_closed_at_the_start(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with keep_going():
        print("a", flush=True)
        print("b", file=sys.stderr, flush=True)
        list(tqdm(range(3), mininterval=0))
    assert sys.stdout is None


def test_keep_going_decorates_a_program_each_time(capsys):
    @keep_going()
    def main():
        print("shown")
        return 3

    assert main() == main() == 3 and capsys.readouterr().out == "shown\nshown\n"
