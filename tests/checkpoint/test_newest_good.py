"""Choosing a step: what is damaged, what cannot be read, and what a run deletes meanwhile."""

import builtins
import errno
import fcntl
import gc
import json
import os
import pathlib
import shutil

import numpy as np
import pytest

from qwen_jax.checkpoint import arrays, description, manifest, newest_good, step_folders, step_lock
from qwen_jax.checkpoint import checkpointer as checkpoint
from qwen_jax.checkpoint.checkpointer import Checkpointer
from qwen_jax.checkpoint.parameters import open_params
from qwen_jax.errors import CheckpointError
from tests.helpers.checkpoints import abstract, assert_params, assert_same, make_state

WANTED = abstract(make_state(0))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    save(folder, 1, 2, keep=2).close()
    return folder


@pytest.fixture
def two_steps(original, tmp_path):
    """A folder with the steps 1 and 2."""
    return pathlib.Path(shutil.copytree(original, tmp_path / "two_steps"))


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refuse(monkeypatch, function, ending: str, code: int) -> None:
    """Makes a function of `os` or `builtins` fail for paths with this ending."""
    module = builtins if hasattr(builtins, function) else os
    real = getattr(module, function)

    def failing(path, *arguments, **more):
        if not isinstance(path, int) and os.fspath(path).endswith(ending):
            raise OSError(code, os.strerror(code), os.fspath(path))
        return real(path, *arguments, **more)

    monkeypatch.setattr(module, function, failing)
    if function == "open":
        monkeypatch.setattr("io.open", failing)


@pytest.mark.parametrize(
    "function, ending",
    [
        ("open", "2/manifest.json"),
        ("open", "2/meta.json"),
        ("open", "arrays/state/manifest.ocdbt"),
        ("stat", "2/meta.json"),
        ("scandir", "2/arrays"),
        ("scandir", "2"),
    ],
)
@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_newest_good_stops_at_a_step_that_cannot_be_read(
    two_steps, monkeypatch, function, ending, code
):
    before = names(two_steps)
    with monkeypatch.context() as patch:
        refuse(patch, function, ending, code)
        for set_aside in (True, False):
            with pytest.raises(CheckpointError, match=errno.errorcode[code]) as caught:
                newest_good.choose(two_steps, None, set_aside=set_aside)
        assert os.strerror(code) in caught.value.what and caught.value.fix
    assert names(two_steps) == before
    assert newest_good.choose(two_steps, None, set_aside=True)[0] == 2


@pytest.mark.parametrize(
    "code",
    [errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT]
    + [errno.EMFILE, errno.ENXIO, errno.ELOOP],
)
def test_numbered_does_not_take_an_unreadable_folder_for_an_empty_one(two_steps, monkeypatch, code):
    refuse(monkeypatch, "scandir", two_steps.name, code)
    with pytest.raises(CheckpointError, match=errno.errorcode[code]):
        step_folders.numbered(two_steps)
    checkpoints = Checkpointer.__new__(Checkpointer)
    checkpoints.folder = two_steps
    with pytest.raises(CheckpointError, match=errno.errorcode[code]):
        checkpoints.steps()


def test_numbered_lists_only_the_folders_of_steps(tmp_path):
    for name in ("7", "10", "007", "٣", "0", "3.saving", "4.corrupt", "-1"):
        (tmp_path / name).mkdir()
    (tmp_path / "5").write_text("a file")
    assert step_folders.numbered(tmp_path) == [0, 7, 10]
    assert step_folders.numbered(tmp_path / "none") == []


def damage(step: pathlib.Path, how: str) -> None:
    data = next(path for path in sorted(step.rglob("d/*")) if path.stat().st_size > 1000)
    match how:
        case "no manifest":
            (step / "manifest.json").unlink()
        case "missing":
            data.unlink()
        case "shorter":
            data.write_bytes(data.read_bytes()[:-1])
        case "flipped":
            data.write_bytes(b"\x00" + data.read_bytes()[1:])
        case "extra":
            (step / "arrays/other").write_text("x")
        case "broken link":
            data.unlink()
            data.symlink_to("nowhere")
        case "pipe":
            (step / "meta.json").unlink()
            os.mkfifo(step / "meta.json")
        case "folder":
            (step / "meta.json").unlink()
            (step / "meta.json").mkdir()
        case "manifest is a folder":
            (step / "manifest.json").unlink()
            (step / "manifest.json").mkdir()
        case "empty":
            shutil.rmtree(step)
            step.mkdir()
        case "nested":
            (step / "manifest.json").write_text('{"files":' + "[" * 200_000)


DAMAGES = ["no manifest", "missing", "shorter", "flipped", "extra", "broken link", "folder", "pipe"]
DAMAGES += ["manifest is a folder", "empty", "nested"]


@pytest.mark.parametrize("how", DAMAGES)
def test_newest_good_sets_verified_damage_aside(two_steps, how):
    damage(two_steps / "2", how)
    assert newest_good.choose(two_steps, None, set_aside=False)[0] == 1
    assert names(two_steps) == ["1", "2"]
    assert newest_good.choose(two_steps, None, set_aside=True)[0] == 1
    assert names(two_steps) == ["1", "2.corrupt"]


def test_newest_good_changes_nothing_if_all_steps_are_damaged(two_steps):
    for step in ("1", "2"):
        damage(two_steps / step, "flipped")
    for _ in range(2):  # also at the next start
        with pytest.raises(CheckpointError, match="no valid checkpoint found"):
            newest_good.choose(two_steps, None, set_aside=True)
        assert names(two_steps) == ["1", "2"]


def test_newest_good_changes_nothing_if_an_older_step_cannot_be_read(two_steps, monkeypatch):
    damage(two_steps / "2", "flipped")
    refuse(monkeypatch, "open", "1/meta.json", errno.EIO)
    with pytest.raises(CheckpointError, match="EIO"):
        newest_good.choose(two_steps, None, set_aside=True)
    assert names(two_steps) == ["1", "2"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "\x00",
        '{"format": 1}',
        "[" * 200_000,
        '{"format": ' + "9" * 5000 + "}",
        '{"format": 1, "step": "2", "meta": {}, "leaves": {}, "scalars": {}}',
        '{"format": 1, "step": 2, "meta": [], "leaves": {}, "scalars": {}}',
        '{"format": 1, "step": 2, "meta": {}, "leaves": {"a": [[-1], "f"]}, "scalars": {}}',
        '{"format": 1, "step": 2, "meta": {}, "leaves": {"a": 3}, "scalars": {}}',
        '{"format": 1, "step": 2, "meta": {}, "leaves": {}, "scalars": {"a": []}}',
        '{"format": true, "step": 2, "meta": {}, "leaves": {}, "scalars": {}}',
    ],
)
def test_description_names_a_damaged_file(tmp_path, text):
    (tmp_path / "meta.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"meta\.json"):
        description.read(tmp_path)


def test_description_refuses_another_format(tmp_path):
    (tmp_path / "meta.json").write_text('{"format": 2}')
    with pytest.raises(CheckpointError, match="supports only 1"):
        description.read(tmp_path)


@pytest.mark.parametrize("entry", [{}, {"bytes": "1", "sha256": ""}, [], 3, {"bytes": 1}])
def test_manifest_with_wrong_entries_is_damaged(tmp_path, entry):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "names", lambda folder: ["a"])
        patch.setattr(manifest, "entry_of", lambda path, durable: entry)
        manifest.write(tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text())["files"] == {"a": entry}
    assert manifest.problems(tmp_path) == ["manifest.json itself is corrupted"]


def test_restore_reports_arrays_that_do_not_load(two_steps, monkeypatch):
    def unreadable(*arguments):
        raise ValueError("... [os_error_code='116'] Stale file handle")

    monkeypatch.setattr(checkpoint.arrays, "load", unreadable)
    with pytest.raises(CheckpointError, match="ESTALE"):
        Checkpointer(two_steps).restore(WANTED)


# A step is good only after it was read back.


def lose_arrays(folder):
    shutil.rmtree(folder / "arrays/state/d")


def lose_database(folder):
    (folder / "arrays/state/manifest.ocdbt").unlink()


@pytest.mark.parametrize("lose", [lose_arrays, lose_database])
def test_save_keeps_the_previous_step_if_the_arrays_do_not_open(two_steps, monkeypatch, lose):
    real = manifest.write

    def write(folder, together=None):
        lose(folder)
        real(folder, together)

    monkeypatch.setattr(checkpoint.manifest, "write", write)
    events = []
    checkpoints = Checkpointer(two_steps, keep=1, log=lambda event, **more: events.append(event))
    checkpoints.save(3, make_state(3), {})
    with pytest.raises(CheckpointError, match="cannot be opened"):
        checkpoints.wait()
    assert names(two_steps) == ["1", "2"] and events == []
    assert_same(checkpoints.restore(WANTED)[1], make_state(2))


def test_save_compares_shapes_and_dtypes_of_what_it_reads_back(two_steps, monkeypatch):
    real = description.describe

    def describe(step, state, meta):
        found, text = real(step, state, meta)
        return found, text.replace('"bfloat16"', '"float16"')

    monkeypatch.setattr(checkpoint.description, "describe", describe)
    checkpoints = Checkpointer(two_steps)
    checkpoints.save(3, make_state(3), {})
    with pytest.raises(CheckpointError, match="params.b: .*bfloat16.*, not .*float16"):
        checkpoints.wait()
    assert names(two_steps) == ["1", "2"]


@pytest.mark.parametrize("step", [2, 3])
def test_save_restores_the_replaced_step_if_the_new_one_is_not_found(two_steps, monkeypatch, step):
    real = manifest.problems
    monkeypatch.setattr(
        checkpoint.manifest,
        "problems",
        lambda folder, **more: ["lost"] if folder.name == str(step) else real(folder, **more),
    )
    checkpoints = Checkpointer(two_steps)
    checkpoints.save(step, make_state(9), {})
    with pytest.raises(CheckpointError, match="lost"):
        checkpoints.wait()
    monkeypatch.undo()
    assert names(two_steps) == ["1", "2"]
    assert_same(checkpoints.restore(WANTED)[1], make_state(2))


def test_check_stored_opens_scalars_and_all_dtypes(tmp_path):
    state = {
        name: np.ones((2, 3), name)
        for name in ("bool", "int8", "int32", "uint32", "float16", "float32", "int64", "uint8")
    }
    state |= {"zeros": np.zeros((4,)), "scalar": np.float32(3), "python": 3, "true": True}
    checkpoints = Checkpointer(tmp_path)
    checkpoints.save(1, state, {})
    checkpoints.close()
    record = description.read(tmp_path / "1")
    assert record["scalars"] == {"python": 3, "true": True}
    arrays.check_stored(tmp_path / "1", {"zeros": [[4], "float64"], "scalar": [[], "float32"]})
    with pytest.raises(CheckpointError, match="cannot be opened"):
        arrays.check_stored(tmp_path / "1", {"other": [[4], "float32"]})


# Readers while a run deletes steps.


def save(folder, *steps, keep=1, seed=None) -> Checkpointer:
    checkpoints = Checkpointer(folder, keep=keep)
    for step in steps:
        checkpoints.save(step, make_state(step if seed is None else seed), {})
    checkpoints.wait()
    return checkpoints


def test_save_deletes_a_step_only_after_its_readers(tmp_path):
    save(tmp_path, 1).close()
    step, chunks = open_params(tmp_path, WANTED.params)
    checkpoints = save(tmp_path, 2, 3)
    assert (step, names(tmp_path)) == (1, ["1", "3"])
    assert_params(chunks, make_state(1).params)
    del chunks
    gc.collect()
    checkpoints.save(4, make_state(4), {})
    checkpoints.wait()
    assert names(tmp_path) == ["4"]


def test_close_deletes_the_steps_that_were_being_read(tmp_path):
    save(tmp_path, 1).close()
    _, chunks = open_params(tmp_path, WANTED.params)
    checkpoints = save(tmp_path, 2)
    assert names(tmp_path) == ["1", "2"]
    del chunks
    gc.collect()
    checkpoints.close()
    assert names(tmp_path) == ["2"]


def without_locks(monkeypatch, code=errno.ENOLCK):
    def refuse(file, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(step_lock.fcntl, "flock", refuse)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_open_params_without_locks_says_that_its_step_was_deleted(tmp_path, monkeypatch, code):
    without_locks(monkeypatch, code)
    save(tmp_path, 1).close()
    _, chunks = open_params(tmp_path, WANTED.params)
    assert_params(chunks, make_state(1).params)
    save(tmp_path, 2).close()
    assert names(tmp_path) == ["2"]
    with pytest.raises(CheckpointError, match="deleted or replaced step 1 while"):
        list(chunks("w", (slice(0, 64), slice(0, 32))))


@pytest.mark.parametrize("locks", [True, False])
def test_open_params_says_that_its_step_was_replaced(tmp_path, monkeypatch, locks):
    if not locks:
        without_locks(monkeypatch)
    save(tmp_path, 1).close()
    _, chunks = open_params(tmp_path, WANTED.params)
    first = chunks("w", (slice(0, 64), slice(0, 32)))
    save(tmp_path, 1, seed=5).close()
    with pytest.raises(CheckpointError, match="replaced"):
        list(first)
    _, chunks = open_params(tmp_path, WANTED.params)
    assert_params(chunks, make_state(5).params)


@pytest.mark.parametrize("moment", ["lock", "hash", "describe"])
def test_newest_good_starts_again_if_a_run_deletes_its_step(tmp_path, monkeypatch, moment):
    """The run saves step 2 and deletes step 1 while a reader verifies step 1."""
    without_locks(monkeypatch)
    save(tmp_path, 1).close()
    module, name = {
        "lock": (newest_good, "ReadLock"),
        "hash": (newest_good.manifest, "problems"),
        "describe": (newest_good.description, "read"),
    }[moment]
    real = getattr(module, name)

    def while_saving(path, **more):
        monkeypatch.setattr(module, name, real)
        save(tmp_path, 2).close()
        return real(path, **more)

    monkeypatch.setattr(module, name, while_saving)
    step, chunks = open_params(tmp_path, WANTED.params)
    assert step == 2 and names(tmp_path) == ["2"]
    assert_params(chunks, make_state(2).params)


def test_newest_good_gives_up_on_a_run_that_deletes_every_step(tmp_path, monkeypatch):
    (tmp_path / "1").mkdir()
    monkeypatch.setattr(newest_good, "exists", lambda path: False)
    with pytest.raises(CheckpointError, match="keep_checkpoints"):
        newest_good.choose(tmp_path, None, set_aside=False)


def test_read_lock_holds_only_the_file_that_was_locked(tmp_path):
    (tmp_path / "manifest.json").write_text("a")
    lock = step_lock.ReadLock(tmp_path)
    with step_lock.unread(tmp_path) as unread:
        assert not unread
    assert lock.holds()
    (tmp_path / "new").write_text("a")
    os.replace(tmp_path / "new", tmp_path / "manifest.json")
    assert not lock.holds()
    with step_lock.unread(tmp_path) as unread:
        assert unread
        with open(tmp_path / "manifest.json", "rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
