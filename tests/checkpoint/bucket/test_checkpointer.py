"""Checkpoints in an object store, in one process."""

import json
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from qwen_jax.checkpoint.bucket import arrays
from qwen_jax.checkpoint.bucket.checkpointer import BucketCheckpointer
from qwen_jax.errors import CheckpointError
from qwen_jax.utils.storage.store import open_store

SPECS = {
    "matrix": PartitionSpec("a", "b"),
    "rows": PartitionSpec("b"),
    "copied": PartitionSpec(),
    "half": PartitionSpec(None, "a"),
    "scalar": PartitionSpec(),
    "flags": PartitionSpec(),
}


def values(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "matrix": rng.normal(size=(8, 16)).astype(np.float32),
        "rows": rng.integers(0, 2**31, (24, 3)).astype(np.int32),
        "copied": rng.normal(size=(6, 10)).astype(np.float32),
        "half": rng.normal(size=(4, 8)).astype(jnp.bfloat16),
        "scalar": np.array(seed, np.int32),
        "flags": rng.integers(0, 2, 7).astype(bool),
    }


def state(shape=(2, 4), seed: int = 0) -> dict:
    devices = np.array(jax.devices()[: shape[0] * shape[1]]).reshape(shape)
    mesh = jax.sharding.Mesh(devices, ("a", "b"))
    return {
        name: jax.device_put(value, NamedSharding(mesh, SPECS[name]))
        for name, value in values(seed).items()
    } | {"loss": 0.5}


def abstract(of: dict) -> dict:
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        if isinstance(leaf, jax.Array)
        else leaf
        for name, leaf in of.items()
    }


def same(found: dict, seed: int) -> None:
    for name, value in values(seed).items():
        np.testing.assert_array_equal(np.asarray(found[name]), value)
    assert found["loss"] == 0.5


@pytest.fixture
def store(tmp_path):
    return open_store(f"flat://{tmp_path}/run/checkpoints")


@pytest.fixture
def opened(store, tmp_path):
    events = []

    def make(host="host", **settings):
        return BucketCheckpointer(
            store, tmp_path / host, log=lambda *a, **k: events.append((*a, k)), **settings
        )

    make.events = events
    return make


def saved(checkpointer, *steps) -> None:
    for step in steps:
        checkpointer.save(step, state(seed=step), {"step": step})
    checkpointer.wait()


def test_bucket_checkpointer_restores_on_another_host_and_mesh(opened, monkeypatch):
    monkeypatch.setattr(arrays, "_FILE_BYTES", 64)  # several files per shard
    monkeypatch.setattr(arrays, "_READ_BYTES", 16)
    saved(opened(), 3)
    for number, shape in enumerate([(2, 4), (4, 2), (1, 1), (1, 8)]):
        step, found, meta = opened(f"other-{number}").restore(abstract(state(shape)))
        assert (step, meta) == (3, {"step": 3})
        same(found, 3)
        assert found["matrix"].sharding.shard_shape((8, 16)) == (8 // shape[0], 16 // shape[1])


def test_bucket_checkpointer_does_not_read_donated_memory(opened):
    checkpointer, before = opened(), state(seed=1)
    checkpointer.save(1, before, {})
    for leaf in jax.tree.leaves(before):
        if isinstance(leaf, jax.Array):
            leaf.delete()
    checkpointer.wait()
    same(opened("other").restore(abstract(state()))[1], 1)


def test_bucket_checkpointer_keeps_the_newest(opened, store):
    checkpointer = opened(keep=2)
    saved(checkpointer, 1, 2, 3, 4)
    assert checkpointer.steps() == [3, 4]
    assert {each.key.partition("/")[0] for each in store.list()} == {"3", "4"}
    assert [event for event, _ in opened.events] == ["saved"] * 4


def test_bucket_checkpointer_replaces_a_step_with_one_write(opened, store):
    checkpointer = opened()
    saved(checkpointer, 1)
    checkpointer.save(1, state(seed=9), {"skipped": 4})
    checkpointer.wait()
    step, found, meta = opened("other").restore(abstract(state()))
    assert (step, meta) == (1, {"skipped": 4})
    same(found, 9)
    tokens = {each.key.split("/")[1] for each in store.list("1/")} - {"manifest.json"}
    assert len(tokens) == 1


def test_bucket_checkpointer_ignores_and_deletes_what_a_killed_process_left(opened, store):
    saved(opened(), 1, 2)
    listed = {each.key for each in store.list()}
    store.write("3/0000-abc/arrays/matrix/c/0/0", b"half")
    store.write("2/0007-abc/arrays/matrix/c/0/0", b"of a save that replaced it")
    store.write("2/parts-0001/1.json", b"part")
    checkpointer = opened("other")
    assert {each.key for each in store.list()} == listed
    step, found, _ = checkpointer.restore(abstract(state()))
    assert step == 2
    same(found, 2)


def test_bucket_checkpointer_finds_every_flipped_bit(opened, store):
    saved(opened(), 1, 2)
    rng = random.Random(0)
    objects = [each for each in store.list("2/") if each.bytes]
    for number in range(12):
        each = rng.choice(objects)
        good = store.read(each.key)
        bad, bit = bytearray(good), rng.randrange(8 * len(good))
        bad[bit // 8] ^= 1 << bit % 8
        store.write(each.key, bytes(bad))
        step, found, _ = opened(f"other-{number}").restore(abstract(state()))
        assert step == 1, each.key
        same(found, 1)
        event, details = opened.events[-1]
        assert event == "damaged" and details["step"] == 2
        store.write(each.key, good)
        (moved,) = [each.key for each in store.list("2/corrupt-")]
        if not each.key.endswith("manifest.json"):
            store.copy(moved, "2/manifest.json")
        store.delete(moved)
    assert opened("last").restore(abstract(state()))[0] == 2


def test_bucket_checkpointer_finds_missing_objects(opened, store):
    saved(opened(), 1, 2)
    for number, each in enumerate(store.list("2/0")):
        content = store.read(each.key)
        store.delete(each.key)
        assert opened(f"other-{number}").restore(abstract(state()))[0] == 1, each.key
        store.write(each.key, content)
        (moved,) = [found.key for found in store.list("2/corrupt-")]
        store.copy(moved, "2/manifest.json")
        store.delete(moved)
        if number == 7:
            break
    assert opened("last").restore(abstract(state()))[0] == 2


def test_bucket_checkpointer_refuses_if_all_steps_are_damaged(opened, store):
    saved(opened(), 1)
    (key,) = [each.key for each in store.list("1/") if each.key.endswith("meta.json")]
    store.write(key, b"{}")
    with pytest.raises(CheckpointError, match="no valid checkpoint found. step 1: meta.json has 2"):
        opened("other").restore(abstract(state()))
    assert opened("another").steps() == [1]  # nothing was changed


def test_bucket_checkpointer_reads_its_own_disk_first(opened, store, monkeypatch):
    saved(opened(), 1)
    monkeypatch.setattr(store.__class__, "download", None)  # any download fails
    step, found, _ = opened().restore(abstract(state()))
    assert step == 1
    same(found, 1)


def test_bucket_checkpointer_does_not_trust_its_own_disk(opened, tmp_path):
    saved(opened(), 1)
    for path in (tmp_path / "host/1/arrays/matrix/c").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[::-1])
    same(opened().restore(abstract(state()))[1], 1)
    shutil.rmtree(tmp_path / "host/1/arrays/rows")
    same(opened().restore(abstract(state()))[1], 1)


def test_bucket_checkpointer_downloads_only_what_it_needs(opened, tmp_path):
    saved(opened(), 1)
    part = {"matrix": abstract(state())["matrix"], "loss": 0.5}
    with pytest.raises(CheckpointError, match="only in the checkpoint"):
        opened("other").restore(part)
    found = {path.parent.name for path in (tmp_path / "other/1/arrays").rglob("zarr.json")}
    assert found == set(SPECS)
    assert (tmp_path / "other/1/arrays/matrix/c/0/0").exists()
    assert not (tmp_path / "other/1/arrays/rows/c").exists()


def test_bucket_checkpointer_names_differences(opened):
    saved(opened(), 1)
    wrong = abstract(state()) | {"matrix": jax.ShapeDtypeStruct((8, 8), np.float32)}
    with pytest.raises(CheckpointError, match="matrix: .*8, 16.*in the checkpoint"):
        opened("other").restore(wrong)
    with pytest.raises(CheckpointError, match="choose one of these steps: 1"):
        opened("other").restore(abstract(state()), step=5)


def test_bucket_checkpointer_says_why_a_save_failed(opened, store, monkeypatch):
    checkpointer = opened()

    def upload(*_):
        raise OSError(28, "No space left on device", "/x")

    monkeypatch.setattr(store.__class__, "upload", upload)
    checkpointer.save(1, state(), {})
    with pytest.raises(CheckpointError, match="No space left"):
        checkpointer.wait()
    assert checkpointer.steps() == []


def test_bucket_checkpointer_manifest_is_json(opened, store):
    saved(opened(), 1)
    record = json.loads(store.read("1/manifest.json"))
    assert record["format"] == 2 and "meta.json" in record["files"]
    entry = record["files"]["arrays/scalar/c"]
    assert set(entry) == {"object", "bytes", "sha256"}
