"""Each private name of another library exists, and only compat.py uses it."""

import pathlib
import re
import subprocess
import sys

import grain
import jax
import numpy as np
import pytest
import tensorstore

from qwen_jax import compat

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Files that use private names on purpose: interpreters without a public name.
ALLOWED = {
    "qwen_jax/compat.py",
    "tests/helpers/hopper_interpreter.py",  # Pallas' Mosaic GPU interpreter
    "tests/kernels/tpu/test_backend.py",  # Pallas' TPU interpreter
    "tests/test_compat.py",
}
PRIVATE = re.compile(
    r"\b(jax|optax|orbax|flax|grain|tiktoken|tensorstore)\.[\w.]*\b_[a-z]\w*|_src\b"
)


def test_compat_is_the_only_file_with_private_names():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for folder in ("qwen_jax", "experiments", "benchmarks", "launch", "tests")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if str(path.relative_to(ROOT)) not in ALLOWED
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if PRIVATE.search(line)
    ]
    assert found == []


def test_coordination_client_has_the_methods_in_use():
    code = """
import socket, jax
from qwen_jax import compat
assert compat.coordination_client() is None
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=1, process_id=0)
client = compat.coordination_client()
client.key_value_set("folder/name", "value", allow_overwrite=True)
print(client.key_value_dir_get("folder"))
assert client.blocking_key_value_get("folder/name", 1000) == "value"
client.key_value_delete("folder/name")
client.wait_at_barrier("here", timeout_in_ms=1000)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "[('folder/name', 'value')]" in run.stdout


def test_write_cache_from_every_process_poses_as_process_0(monkeypatch):
    from jax._src import compiler, distributed

    seen = []
    monkeypatch.setattr(
        compiler,
        "_cache_write",
        lambda *arguments: seen.append(distributed.global_state.process_id),
    )
    monkeypatch.setattr(distributed.global_state, "process_id", 3)
    compat.write_cache_from_every_process()
    compiler._cache_write("key")
    assert seen == [0] and distributed.global_state.process_id == 3


def test_batched_items_reads_several_items_in_one_call():
    class Doubled(grain.MapDataset):
        def __len__(self):
            return len(compat.parent_of(self))

        def __getitem__(self, index):
            return 2 * compat.parent_of(self)[index]

        def _getitems(self, indices):
            return [2 * x for x in compat.batched_items(compat.parent_of(self), indices)]

    source = grain.MapDataset.range(10)
    assert list(compat.batched_items(Doubled(source), [3, 1])) == [6, 2]
    # Grain itself calls this hook when it reads in batches.
    assert hasattr(grain.MapDataset, "_getitems")


def test_stored_array_finds_an_array_saved_by_orbax(tmp_path):
    from orbax.checkpoint import v1

    v1.save(tmp_path / "arrays", {"a.b": jax.numpy.arange(6.0).reshape(2, 3)})
    spec = compat.stored_array(str(tmp_path / "arrays"), "a.b")
    stored = tensorstore.open(spec, read=True).result()
    np.testing.assert_array_equal(stored[1].read().result(), [3.0, 4.0, 5.0])


def test_os_error_code_parses_errors_of_tensorstore(tmp_path):
    with pytest.raises(ValueError) as refused:
        tensorstore.open(
            {"driver": "zarr3", "kvstore": f"file://{tmp_path}/file/below/"},
            create=True,
            dtype=tensorstore.float32,
            shape=[1],
        ).result() if (tmp_path / "file").write_text("") is not None else None
    assert compat.os_error_code(refused.value) == 20  # ENOTDIR: a file is in the path
    assert compat.os_error_code(ValueError("another")) is None


def test_credentials_of_a_storage_client():
    storage = pytest.importorskip("google.cloud.storage")
    credentials = pytest.importorskip("google.auth.credentials").AnonymousCredentials()
    client = storage.Client(project="test", credentials=credentials)
    assert compat.credentials_of(client) is credentials
