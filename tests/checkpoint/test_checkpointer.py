"""Checkpoints: round trips, detection of damage, and kills during a save."""

import errno
import json
import pathlib
import random
import shutil
import subprocess
import sys
import time

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qwen_jax.checkpoint import checkpointer as checkpoint
from qwen_jax.checkpoint.checkpointer import Checkpointer
from qwen_jax.checkpoint.parameters import open_params
from qwen_jax.errors import CheckpointError
from tests.helpers.checkpoints import abstract, assert_params, assert_same, make_state


def test_checkpointer_restores_what_it_saved_and_deletes_old_steps(tmp_path):
    checkpoints = Checkpointer(tmp_path, keep=2)
    assert checkpoints.restore(abstract(make_state(0))) is None
    for step in (1, 2, 3):
        checkpoints.save(step, make_state(step), {"seed": 5, "note": "ä"})
    checkpoints.wait()
    assert checkpoints.steps() == [2, 3]
    step, state, meta = checkpoints.restore(abstract(make_state(0)))
    assert (step, meta) == (3, {"seed": 5, "note": "ä"})
    assert_same(state, make_state(3))
    assert_same(checkpoints.restore(abstract(make_state(0)), step=2)[1], make_state(2))
    step, chunks = open_params(tmp_path, abstract(make_state(0).params))
    assert step == 3
    assert_params(chunks, make_state(3).params)
    checkpoints.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]


def test_save_survives_donation(tmp_path):
    """The arrays are overwritten by the next step as soon as save() returns."""
    overwrite = jax.jit(lambda x: jnp.full_like(x, -1.0), donate_argnums=0)
    values = jnp.arange(1 << 20, dtype=jnp.float32)
    expected = np.array(values)
    checkpoints = Checkpointer(tmp_path)
    checkpoints.save(1, {"x": values}, {})
    values = overwrite(values)
    values.block_until_ready()
    restored = checkpoints.restore({"x": jax.ShapeDtypeStruct(expected.shape, "float32")})
    checkpoints.close()
    np.testing.assert_array_equal(restored[1]["x"], expected)


def test_restore_detects_every_flipped_bit_and_uses_the_older_step(tmp_path):
    original = tmp_path / "original"
    checkpoints = Checkpointer(original)
    for step in (1, 2):
        checkpoints.save(step, make_state(step), {"seed": 0})
    checkpoints.close()
    rng = random.Random(0)
    for trial in range(40):
        folder = tmp_path / f"trial{trial}"
        shutil.copytree(original, folder)
        files = sorted(
            path for path in (folder / "2").rglob("*") if path.is_file() and path.stat().st_size
        )
        file = rng.choice(files)
        data = bytearray(file.read_bytes())
        bit = rng.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        found = Checkpointer(folder)
        step, state, _ = found.restore(abstract(make_state(0)))
        assert step == 1, f"the flip of bit {bit} of {file} was not detected"
        assert_same(state, make_state(1))
        assert (folder / "2.corrupt").exists()
        found.close()
        shutil.rmtree(folder)


def test_restore_names_the_damaged_files_if_no_step_is_good(tmp_path):
    checkpoints = Checkpointer(tmp_path)
    checkpoints.save(1, make_state(1), {})
    checkpoints.wait()
    (tmp_path / "1" / "meta.json").write_text("{}")
    with pytest.raises(CheckpointError, match="meta.json"):
        checkpoints.restore(abstract(make_state(0)))


def test_restore_ignores_an_empty_folder_with_a_number(tmp_path):
    checkpoints = Checkpointer(tmp_path)
    checkpoints.save(1, make_state(1), {})
    checkpoints.wait()
    (tmp_path / "9").mkdir()
    assert checkpoints.restore(abstract(make_state(0)))[0] == 1


def test_check_leaves_lists_every_difference(tmp_path):
    checkpoints = Checkpointer(tmp_path)
    checkpoints.save(1, make_state(1), {})
    other = abstract(make_state(0, rows=8)).replace(
        params={"w": jax.ShapeDtypeStruct((64, 32), "bfloat16"), "c": jnp.zeros(3)}
    )
    with pytest.raises(CheckpointError) as caught:
        checkpoints.restore(other)
    for text in (
        "params.w: float32 [64, 32] in the checkpoint, bfloat16 [64, 32] expected",
        "params.c: not in the checkpoint",
        "params.b: only in the checkpoint",
        "opt_state.0: float32 [64, 32] in the checkpoint, float32 [8, 32] expected",
    ):
        assert text in str(caught.value)


def test_restore_onto_another_mesh(tmp_path):
    devices = np.array(jax.devices())
    wide = NamedSharding(Mesh(devices, "x"), PartitionSpec("x"))
    narrow = NamedSharding(Mesh(devices[:4].reshape(2, 2), ("a", "b")), PartitionSpec("b", "a"))
    state = {"w": jax.device_put(make_state(3).params["w"], wide)}
    checkpoints = Checkpointer(tmp_path)
    checkpoints.save(1, state, {})
    restored = checkpoints.restore(abstract(state, narrow))[1]
    assert restored["w"].sharding == narrow
    assert_same(restored, state)


def test_check_space_refuses_a_disk_without_space(tmp_path):
    huge = {"w": jax.ShapeDtypeStruct((1 << 40,), "float32")}
    with pytest.raises(CheckpointError, match="free"):
        Checkpointer(tmp_path).check_space(huge)


def test_save_on_a_full_disk_keeps_the_older_step(tmp_path, monkeypatch):
    checkpoints = Checkpointer(tmp_path)
    checkpoints.save(1, make_state(1), {})
    checkpoints.wait()

    def full(folder, together=None):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.manifest, "write", full)
    checkpoints.check()
    checkpoints.save(2, make_state(2), {})
    with pytest.raises(CheckpointError, match="disk is full"):
        for _ in range(1000):  # without waiting for it
            checkpoints.check()
            time.sleep(0.05)
    assert checkpoints.steps() == [1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1"]


def test_errors_of_orbax_threads_are_logged_once(tmp_path, caplog):
    """They log a traceback of what the checkpointer raises."""
    Checkpointer(tmp_path)
    logger = absl.logging.get_absl_logger()
    for path in ("/site-packages/orbax/checkpoint/futures.py", "/elsewhere/run.py"):
        raised = (OSError, OSError(28, "No space left on device"), None)
        logger.handle(logger.makeRecord("absl", 40, path, 1, path, (), raised))
    assert [record.pathname for record in caplog.records] == ["/elsewhere/run.py"]


KILLED = """
import sys, numpy as np, jax.numpy as jnp
from qwen_jax.checkpoint.checkpointer import Checkpointer
checkpoints = Checkpointer(sys.argv[1], keep=2)
last = checkpoints.restore({"x": jnp.zeros(1 << 20)})
for step in range(last[0] + 1 if last else 1, 1000):
    checkpoints.save(step, {"x": jnp.full(1 << 20, step, jnp.float32)}, {})
    print(step, flush=True)
"""


@pytest.mark.parametrize("kills", [2, pytest.param(6, marks=pytest.mark.slow)])
def test_save_killed_at_random_leaves_no_partial_checkpoint(tmp_path, kills):
    """A process that only saves is killed at random moments, several times."""
    root = pathlib.Path(__file__).resolve().parents[2]
    rng, newest = random.Random(1), 0
    for _ in range(kills):
        run = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)],
            cwd=root,
            stdout=subprocess.PIPE,
            text=True,
        )
        for line in run.stdout:
            if int(line) >= newest + 3:
                break
        time.sleep(rng.random() * 0.3)
        run.kill()
        run.wait()
        checkpoints = Checkpointer(tmp_path, keep=2)
        step, state, _ = checkpoints.restore({"x": jax.ShapeDtypeStruct((1 << 20,), "float32")})
        assert step >= newest + 2
        assert (np.asarray(state["x"]) == step).all()
        newest = step
        checkpoints.close()


def test_manifest_detects_its_own_damage(tmp_path):
    checkpoints = Checkpointer(tmp_path)
    checkpoints.save(1, make_state(1), {})
    checkpoints.close()
    path = tmp_path / "1" / "manifest.json"
    record = json.loads(path.read_text())
    next(iter(record["files"].values()))["bytes"] += 1
    path.write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="manifest"):
        open_params(tmp_path, abstract(make_state(0).params))


def test_open_params_reads_part_of_a_sharded_array_in_small_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("qwen_jax.checkpoint.arrays._CHUNK_BYTES", 512)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x"))
    state = make_state(4)
    w = jax.device_put(state.params["w"], sharding)
    state = state.replace(params=state.params | {"w": w})
    checkpoints = Checkpointer(tmp_path)
    checkpoints.save(1, state, {})
    checkpoints.close()
    _, chunks = open_params(tmp_path, abstract(state.params))
    assert_params(chunks, state.params)
    read = [chunk.nbytes for _, chunk in chunks("w", (slice(0, 64), slice(0, 32)))]
    assert sum(read) == 64 * 32 * 4 and max(read) <= 512


def test_checkpointer_refuses_a_folder_without_renames(tmp_path, monkeypatch):
    rename = pathlib.Path.rename

    def refuse(self, target):
        if self.is_dir():
            raise OSError(errno.ENOTSUP, "Operation not supported", str(self))
        return rename(self, target)

    monkeypatch.setattr(pathlib.Path, "rename", refuse)
    with pytest.raises(CheckpointError, match=f"(?s)cannot be renamed.*flat://{tmp_path}/run"):
        Checkpointer(tmp_path / "run/checkpoints")
    assert list((tmp_path / "run/checkpoints").iterdir()) == []
