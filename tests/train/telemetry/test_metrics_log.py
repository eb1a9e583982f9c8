"""metrics.jsonl and TensorBoard's event files: resuming, and a disk that fills."""

import errno
import json
import os
import struct

import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from qwen_jax.train.telemetry.metrics import MetricsLog, format_line
from qwen_jax.train.telemetry.tensorboard import EventFiles
from qwen_jax.utils import best_effort
from qwen_jax.utils.best_effort import Losses
from tests.helpers.failing_output import FullDisk


def events(folder) -> list[list]:
    """Returns the events of each file; fails on a record with a wrong checksum or a rest."""
    found = []
    for path in sorted(folder.iterdir()):
        data, file = path.read_bytes(), []
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            body = data[12 : 12 + length]
            assert struct.unpack("<I", data[8:12])[0] == masked_crc32c(data[:8])
            end = data[12 + length : 16 + length]
            assert len(body) == length and struct.unpack("<I", end)[0] == masked_crc32c(body)
            file.append(event_pb2.Event.FromString(body))
            data = data[16 + length :]
        found.append(file)
    return found


def scalars(folder) -> list[tuple[int, dict[str, float]]]:
    return [
        (event.step, {value.tag: value.simple_value for value in event.summary.value})
        for file in events(folder)
        for event in file
        if event.HasField("summary")
    ]


def test_event_files_hold_the_finite_values(tmp_path):
    board = EventFiles(tmp_path / "tensorboard", Losses(), purge_step=None)
    assert not (tmp_path / "tensorboard").exists()
    board.write(1, {"train/loss": 2.5, "bad": float("nan")})
    board.write(2, {"train/loss": 2.0})
    board.close()
    (file,) = events(tmp_path / "tensorboard")
    assert file[0].file_version == "brain.Event:2" and not file[0].HasField("session_log")
    assert scalars(tmp_path / "tensorboard") == [(1, {"train/loss": 2.5}), (2, {"train/loss": 2.0})]


def test_event_files_hide_the_steps_of_an_earlier_attempt(tmp_path):
    for purge in (0, 3):
        board = EventFiles(tmp_path, Losses(), purge_step=purge)
        board.write(purge + 1, {"a": 1.0})
        board.close()
    for purge, file in zip((0, 3), events(tmp_path), strict=True):
        session = file[1]
        assert session.step == purge
        assert session.session_log.status == event_pb2.SessionLog.START


def test_event_files_are_read_by_tensorboard(tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
    )
    board = EventFiles(tmp_path, Losses(), purge_step=None)
    for step in range(1, 6):
        board.write(step, {"a": float(step)})
    board.close()
    board = EventFiles(tmp_path, Losses(), purge_step=3)
    board.write(4, {"a": 40.0})
    board.close()
    found = accumulator.EventAccumulator(str(tmp_path))
    found.Reload()
    assert [(item.step, item.value) for item in found.Scalars("a")] == [(1, 1), (2, 2), (4, 40)]


@pytest.mark.parametrize("truncates", [True, False])
@pytest.mark.parametrize("room", [0, 10, 100, 200])
def test_event_files_stay_readable_on_a_full_disk(tmp_path, monkeypatch, room, truncates):
    disk = FullDisk(room, truncates=truncates)
    monkeypatch.setattr(best_effort, "os", disk)
    folder = tmp_path / "board"
    board = EventFiles(folder, Losses(), purge_step=7)
    for step in (8, 9, 10):
        board.write(step, {"train/loss": 1.0})
    disk.room, disk.truncates = 10_000, True
    board.write(11, {"train/loss": 1.0})
    board.close()
    if truncates:
        assert scalars(folder)[-1] == (11, {"train/loss": 1.0})
    else:  # a torn record ends its file for readers; the next record is in another one
        last = max(folder.iterdir())
        (tmp_path / "last").mkdir()
        os.replace(last, tmp_path / "last" / last.name)
        (last,) = events(tmp_path / "last")
        assert last[0].file_version and last[-1].step == 11


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def log(folder, resume_step=0) -> MetricsLog:
    return MetricsLog(folder, resume_step=resume_step, losses=Losses())


def test_metrics_log_drops_the_records_after_the_resumed_step(tmp_path):
    first = log(tmp_path)
    for step in (1, 2, 3, 4):
        first.write(step, {"train/loss": 1.0})
    first.write(2, {"eval/text/loss": 1.0})
    first.write(4, {"eval/text/loss": 1.0})
    first.close()
    assert first.evaluated == {2, 4}
    second = log(tmp_path, 3)
    assert second.evaluated == {2}
    second.write(4, {"train/loss": 3.0})
    second.close()
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 2, 4]


def test_metrics_log_does_not_rewrite_a_file_that_needs_no_change(tmp_path):
    first = log(tmp_path)
    first.write(1, {"train/loss": 1.0})
    first.close()
    before = (tmp_path / "metrics.jsonl").stat().st_ino
    log(tmp_path, 1).close()
    assert (tmp_path / "metrics.jsonl").stat().st_ino == before


def test_metrics_log_drops_a_line_of_a_killed_process(tmp_path):
    first = log(tmp_path)
    first.write(1, {"train/loss": 1.0})
    first.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "tra')
    second = log(tmp_path, 1)
    second.write(2, {"train/loss": 1.0})
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]


def test_metrics_log_goes_on_if_it_cannot_be_shortened(tmp_path, monkeypatch, capsys):
    first = log(tmp_path)
    for step in (1, 2):
        first.write(step, {"train/loss": 1.0})
    first.close()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("qwen_jax.train.telemetry.metrics.write_rows", full)
    second = log(tmp_path, 1)
    second.write(2, {"train/loss": 5.0})
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 2]
    assert "may keep records after step 1" in capsys.readouterr().err


def test_metrics_log_reads_rows_of_other_programs(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"a": 1}\n{"step": "x"}\n{"step": 9}\n')
    assert log(tmp_path, 1).evaluated == set()
    assert rows(tmp_path) == [{"a": 1}, {"step": "x"}]


def test_format_line_has_no_impossible_utilization():
    values = {"train/loss": 1.0, "train/grad_norm": 1.0, "train/learning_rate": 1e-3}
    values |= {"perf/tokens_per_second": 900.0, "perf/mfu": 0.5, "perf/mfu_noncausal": 0.75}
    shown = format_line("pretrain", 1, 2, values, 3.0)
    assert "MFU 50.0% (noncausal 75.0%)" in shown
    shown = format_line("pretrain", 1, 2, values | {"perf/mfu": 1.2}, 3.0)
    assert "120" not in shown and "MFU above 100% (the peak was measured too low)" in shown
