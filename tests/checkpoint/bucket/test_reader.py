"""Models in an object store are copied, verified and read like local ones."""

import jax
import numpy as np
import pytest

from qwen_jax.checkpoint.bucket.checkpointer import BucketCheckpointer
from qwen_jax.checkpoint.bucket.reader import local_folder
from qwen_jax.checkpoint.parameters import open_params
from qwen_jax.errors import CheckpointError
from qwen_jax.utils.storage.store import Store, open_store


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Returns the address of a run with steps 1 and 2."""
    monkeypatch.setenv("QWEN_JAX_STAGING", str(tmp_path / "staging"))
    store = open_store(f"flat://{tmp_path}/store/run")
    store.write("config.json", b"{}")
    checkpointer = BucketCheckpointer(store.at("checkpoints"), tmp_path / "steps")
    for step in (1, 2):
        checkpointer.save(step, {"params": {"w": weights(step)}, "step": step}, {})
    checkpointer.close()
    return str(store.root)


def weights(step: int) -> jax.Array:
    return jax.numpy.arange(12.0).reshape(3, 4) + step


def read(folder: str) -> tuple[int, np.ndarray]:
    abstract = {"w": jax.ShapeDtypeStruct((3, 4), np.float32)}
    step, chunks = open_params(f"{folder}/checkpoints", abstract)
    found = np.zeros((3, 4), np.float32)
    for index, values in chunks("w", (slice(0, 3), slice(0, 4))):
        found[index] = values
    return step, found


def test_reader_copies_the_newest_step(run):
    step, found = read(local_folder(run))
    assert step == 2
    np.testing.assert_array_equal(found, weights(2))


def test_reader_passes_over_a_damaged_step(run):
    store = open_store(run)
    (key,) = [each.key for each in store.list("checkpoints/2/") if each.key.endswith("/c/0/0")]
    content = store.read(key)
    store.write(key, content[:-1] + bytes([content[-1] ^ 4]))
    step, found = read(local_folder(run))
    assert step == 1
    np.testing.assert_array_equal(found, weights(1))
    assert store.stat("checkpoints/2/manifest.json")  # a reader changes nothing
    store.delete("checkpoints/1/manifest.json")
    with pytest.raises(CheckpointError, match="(?s)step 2: arrays.*SHA-256"):
        local_folder(run)


def test_reader_copies_only_what_it_does_not_have(run, monkeypatch):
    first, keys, download = local_folder(run), [], Store.download
    monkeypatch.setattr(
        Store, "download", lambda self, key, file: (keys.append(key), download(self, key, file))
    )
    assert local_folder(run) == first and read(first)[0] == 2
    assert keys == ["config.json"]


def test_reader_names_an_empty_address(run):
    with pytest.raises(CheckpointError, match="(?s)config.json is missing.*--checkpoint=flat:"):
        local_folder(run + "/nothing", where="--checkpoint")


def test_reader_leaves_local_paths(tmp_path):
    assert local_folder(str(tmp_path)) == str(tmp_path)
