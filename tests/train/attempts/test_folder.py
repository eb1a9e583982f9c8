"""How an attempt begins: nothing that was saved is lost, or trained again, by itself."""

import dataclasses
import json
import os
import pathlib
import shutil

import pytest

from qwen_jax.errors import CheckpointError, ConfigError, TrainingError
from qwen_jax.train.attempts import folder as contents
from qwen_jax.train.attempts.folder import beginning
from qwen_jax.utils.folder_lock import hold
from tests.helpers.adding_run import Adding, noise


def make(folder, steps=(), *, saved=False, config=None):
    (folder / "checkpoints").mkdir(parents=True)
    for name in steps:
        (folder / "checkpoints" / name).mkdir()
    (folder / "events.jsonl").write_text(
        '{"event": "saved"}\n' if saved else '{"event": "start"}\n'
    )
    (folder / "config.json").write_text(json.dumps(config or {}))
    return folder


def files(folder):
    """The contents of every file of a run, without the log of events, which only grows."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(pathlib.Path(folder).rglob("*"))
        if path.is_file() and path.name != "events.jsonl"
    }


ASKED = {"restart_from_scratch": True}


@pytest.mark.parametrize(
    "steps, saved, config, plain, restart",
    [
        ([], False, {}, "new", "new"),
        (["5.saving"], False, {}, "new", "new"),
        (["0"], False, {}, "resume", "restart"),
        (["5"], True, {}, "resume", "restart"),
        (["5", "10.corrupt"], True, {}, "resume", "restart"),
        (["5.replaced"], True, {}, "resume", "restart"),
        ([], True, {}, "error", "restart"),
        (["5.corrupt"], False, {}, "error", "restart"),
        (["5.corrupt-2"], True, {}, "error", "restart"),
        (["5.deleting"], True, {}, "error", "restart"),
        # A requeued job: the flag has acted.
        (["5"], True, ASKED, "resume", "resume"),
        ([], True, ASKED, "error", "error"),
        (["5.corrupt"], True, ASKED, "error", "restart"),
        ([], False, ASKED, "new", "new"),
    ],
)
def test_beginning_of_an_attempt(tmp_path, steps, saved, config, plain, restart):
    run_dir = make(tmp_path / "run", steps, saved=saved, config=config)
    for flag, expected in ((False, plain), (True, restart)):
        if expected == "error":
            with pytest.raises(CheckpointError, match="--restart_from_scratch"):
                beginning(run_dir, restart=flag)
        else:
            assert beginning(run_dir, restart=flag) == expected


def test_beginning_stops_if_it_cannot_read(tmp_path, monkeypatch):
    assert beginning(tmp_path / "missing", restart=False) == "new"
    run_dir = make(tmp_path / "run", ["5"])
    listdir = os.listdir

    def fails(path="."):
        if pathlib.Path(path).name == "checkpoints":
            raise error
        return listdir(path)

    monkeypatch.setattr(os, "listdir", fails)
    for error in (PermissionError(13, "denied"), OSError(5, "input/output error")):
        with pytest.raises(CheckpointError, match="cannot tell whether") as caught:
            beginning(run_dir, restart=False)
        assert error.strerror in caught.value.what
    monkeypatch.undo()
    shutil.rmtree(run_dir / "checkpoints")
    (run_dir / "events.jsonl").unlink()
    (run_dir / "events.jsonl").mkdir()
    with pytest.raises(CheckpointError, match="cannot tell whether"):
        beginning(run_dir, restart=False)


def damage(folder):
    for path in (folder / "checkpoints").glob("*/manifest.json"):
        path.write_text("{}")


def unmount(folder):
    (folder / "checkpoints").rename(folder.parent / "elsewhere")


def empty(folder):
    unmount(folder)
    (folder / "checkpoints").mkdir()


def dangle(folder):
    unmount(folder)
    (folder / "checkpoints").symlink_to(folder.parent / "not mounted")


def lose_the_log(folder):
    empty(folder)
    (folder / "events.jsonl").unlink()


def empty_the_log(folder):
    unmount(folder)
    (folder / "events.jsonl").write_text("")


@pytest.mark.parametrize("later", contents._LATER_FILES)
@pytest.mark.parametrize("fault", [lose_the_log, empty_the_log])
def test_run_without_a_log_never_begins_again_by_itself(tmp_path, fault, later):
    a = Adding(tmp_path / "run", noise(), num_steps=12, save_every=6)
    a.run()
    fault(a.folder)
    (a.folder / "report.html").write_text("a page")
    for name in set(contents._LATER_FILES) - {later}:
        (a.folder / name).unlink()
    before = files(a.folder)
    with pytest.raises(CheckpointError, match=f"events.jsonl has no event, although {later} of"):
        a.run()
    assert files(a.folder) == before
    a.config = dataclasses.replace(a.config, **ASKED)
    assert int(a.run().step) == 12 and (a.folder / "before-1" / later).exists()


@pytest.mark.parametrize("fault", [damage, unmount, empty, dangle])
def test_run_that_has_saved_never_begins_again_by_itself(tmp_path, fault):
    a = Adding(tmp_path / "run", noise(), num_steps=12, save_every=6)
    a.run()
    fault(a.folder)
    before, shown = files(a.folder), (a.folder / "events.jsonl").read_bytes()
    for _ in range(3):  # the first attempt may set steps aside
        with pytest.raises(CheckpointError):
            a.run()
        assert (a.folder / "events.jsonl").read_bytes().startswith(shown)
        assert a.names().count("start") == 1
        after = files(a.folder)
        assert {k: v for k, v in after.items() if "/" not in k} == {
            k: v for k, v in before.items() if "/" not in k
        }
    a.config = dataclasses.replace(a.config, **ASKED)
    state = a.run()
    assert int(state.step) == 12 and a.names() == [
        "start",
        "restarted_from_scratch",
        "saved",
        "saved",
        "end",
    ]
    old = a.folder / "before-1"
    assert (old / "events.jsonl").read_bytes().startswith(shown)
    assert (old / "metrics.jsonl").read_bytes() == before["metrics.jsonl"]
    assert (old / "config.json").read_bytes() == before["config.json"]
    a.run()  # a requeued job, with the same flag
    assert a.names()[-2:] == ["resume", "end"] and not (a.folder / "before-2").exists()
    assert any("--restart_from_scratch has no effect" in line for line in a.shown)


def test_restart_of_a_run_that_could_resume_keeps_its_files(tmp_path):
    a = Adding(tmp_path, noise(), num_steps=12, save_every=6)
    a.run()
    (tmp_path / "shards").mkdir()  # data may be in the folder of the run
    (tmp_path / "tokenizer.tiktoken").write_text("ranks")
    plain = a.config
    a.config = dataclasses.replace(plain, **ASKED)
    a.run()
    assert a.names()[1] == "restarted_from_scratch" and a.read == [*range(12), *range(12)]
    assert (tmp_path / "before-1/checkpoints/12").is_dir() and (tmp_path / "shards").is_dir()
    assert (tmp_path / "before-1/tokenizer.tiktoken").exists()
    assert (tmp_path / "tokenizer.tiktoken").exists()
    a.run()
    assert not (tmp_path / "before-2").exists()
    a.config = plain
    a.run()  # without the flag, so it is new when it comes again
    a.config = dataclasses.replace(plain, **ASKED)
    a.run()
    assert (tmp_path / "before-2/checkpoints/12").is_dir()


def test_restart_without_a_run_says_so(tmp_path):
    a = Adding(tmp_path / "run", noise(), num_steps=12, save_every=12)
    a.config = dataclasses.replace(a.config, **ASKED)
    a.run()
    assert "--restart_from_scratch has no effect: there is nothing to restart" in a.shown
    assert a.names() == ["start", "saved", "end"]


@pytest.mark.parametrize("killed_at", range(1, 7))
def test_move_aside_is_completed_after_a_kill(tmp_path, monkeypatch, killed_at):
    folder = make(tmp_path / "run", ["5"], saved=True)
    for name in ("5/arrays", "../metrics.jsonl", "../versions.json", "../tokenizer.tiktoken"):
        (folder / "checkpoints" / name).write_text(name)
    before = files(folder)
    rename, calls = os.rename, []

    def killed(source, target):
        calls.append(source)
        if len(calls) == killed_at:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        contents.move_aside(folder)
    monkeypatch.undo()
    # The next attempt, with or without the flag, completes the move.
    assert contents.unfinished_move(folder) and contents.move_aside(folder) == "before-1"
    assert files(folder / "before-1") == before
    assert files(folder).keys() - {f"before-1/{name}" for name in before} == {"tokenizer.tiktoken"}


def test_move_aside_that_fails_moves_nothing(tmp_path, monkeypatch):
    make(tmp_path / "run", ["5"])
    before = files(tmp_path)

    def busy(source, target):
        raise OSError(16, "device or resource busy")  # checkpoints is a mount point

    monkeypatch.setattr(os, "rename", busy)
    with pytest.raises(TrainingError, match="cannot be moved"):
        contents.move_aside(tmp_path / "run")
    assert files(tmp_path) == before and not list(tmp_path.glob("*/before*"))


def test_run_is_refused_while_another_process_writes(tmp_path):
    a = Adding(tmp_path, noise(), num_steps=12, save_every=12)
    a.run()
    before = files(tmp_path)
    with hold(tmp_path):
        with pytest.raises(ConfigError, match=f"process {os.getpid()} on"):
            a.run()
    assert files(tmp_path) == before and a.names()[-1] == "end"


def test_run_stops_before_a_save_if_another_process_took_over(tmp_path):
    a = Adding(tmp_path, noise(), num_steps=12, save_every=6)
    inner = a.job.batches

    def taken(start_step):
        record = json.loads((tmp_path / "lock.json").read_text())
        (tmp_path / "lock.json").write_text(json.dumps(record | {"token": "other", "pid": 7}))
        return inner(start_step)

    a.job = dataclasses.replace(a.job, batches=taken)
    with pytest.raises(TrainingError, match="taken over the folder: process 7"):
        a.run()
    assert not list((tmp_path / "checkpoints").iterdir())


def test_run_does_not_save_its_start_again(tmp_path):
    a = Adding(tmp_path, [float("nan")] + noise(), num_steps=12, save_every=6)
    with pytest.raises(TrainingError, match="step 1 is not finite"):
        a.run()
    assert "saved" not in a.names()
    a.values = noise(6) + [float("nan")] * 20
    for saves in (1, 1):
        with pytest.raises(TrainingError, match="the state after step 6 was saved"):
            a.run()
        assert a.names().count("saved") == saves
