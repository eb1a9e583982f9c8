"""Folders of any name: for the libraries that read a path as a pattern or URL."""

import gc
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
import tensorstore

from qwen_jax.checkpoint import plain_path
from qwen_jax.checkpoint.checkpointer import Checkpointer
from qwen_jax.checkpoint.parameters import open_params
from qwen_jax.checkpoint.plain_path import PlainPath, is_plain
from qwen_jax.errors import CheckpointError
from tests.helpers.checkpoints import abstract, assert_params, assert_same, make_state
from tests.helpers.paths import ALL_CHARACTERS, CHINESE, EACH_CHARACTER, LONG, MORE
from tests.helpers.tiny_checkpoint import ROOT, environment


def test_plain_path_of_every_character_is_read_by_glob_and_tensorstore(tmp_path):
    epath = pytest.importorskip("etils.epath")
    for name in EACH_CHARACTER + MORE:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "real").write_bytes(b"real")
        plain = PlainPath(folder)
        spec = {"driver": "file", "path": f"{plain.path}/"}
        store = tensorstore.KvStore.open(spec).result()
        assert store.read("real").result().value == b"real", name
        store.write("written", b"here").result()
        assert (folder / "written").read_bytes() == b"here", name
        found = {path.name for path in epath.Path(plain.path).glob("*")}
        assert found == {"real", "written"}, name


def test_is_plain_leaves_usual_names_as_they_are():
    for usual in ("/data/runs/a-1", "/数据/2026.1.1", "/x/lr=0.5,seed=1", "/a b/~c/@d", "/"):
        assert is_plain(pathlib.Path(usual)) and PlainPath(
            pathlib.Path(usual)
        ).path == pathlib.Path(usual)
    for special in ("/a[1]", "/a*", "/a?", "/a\\b", "/a/../b", "/a%b", "/gs/a", "/s3", "/\udcff"):
        assert not is_plain(pathlib.Path(special)), special


def test_plain_path_deletes_its_link_but_not_the_folder(tmp_path):
    folder = tmp_path / "a[1]"
    folder.mkdir()
    plain = PlainPath(folder)
    link = plain.path
    assert os.readlink(link) == str(folder) and os.stat(link.parent).st_mode & 0o777 == 0o700
    del plain
    gc.collect()
    assert not link.parent.exists() and folder.exists()


def test_plain_path_names_the_flag_if_links_are_not_possible(tmp_path, monkeypatch):
    def refuse(*arguments, **more):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(pathlib.Path, "symlink_to", refuse)
    with pytest.raises(CheckpointError, match="--run_dir"):
        Checkpointer(tmp_path / "a[1]")


def test_plain_path_avoids_a_special_temporary_folder(tmp_path, monkeypatch):
    (tmp_path / "t[m]p").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t[m]p"))
    (tmp_path / "a[1]").mkdir()
    plain = PlainPath(tmp_path / "a[1]")
    assert is_plain(plain.path)


@pytest.mark.parametrize("processes", [1, 2])
def test_plain_path_is_equal_in_all_processes_and_private(tmp_path, monkeypatch, processes):
    folder = tmp_path / "a[1]"
    folder.mkdir()
    sent = []

    def broadcast(value):
        sent.append(value if not sent else sent[0])
        return sent[0]

    monkeypatch.setattr(plain_path.jax, "process_count", lambda: processes)
    monkeypatch.setattr(plain_path.multihost_utils, "broadcast_one_to_all", broadcast)
    first = PlainPath(folder, shared=True)
    monkeypatch.setattr(plain_path.jax, "process_index", lambda: 1)
    second = PlainPath(folder, shared=True)
    assert (first.path == second.path) == (processes == 2)
    assert os.readlink(second.path) == str(folder)


@pytest.mark.parametrize("name", [ALL_CHARACTERS, LONG, CHINESE, "a\\b", "[a]"])
def test_checkpointer_restores_from_a_folder_of_any_name(tmp_path, name):
    (tmp_path / name).mkdir()
    checkpoints = Checkpointer(tmp_path / name / "checkpoints", keep=1)
    for step in (1, 2):
        checkpoints.save(step, make_state(step), {"step": step})
    checkpoints.close()
    assert checkpoints.steps() == [2]
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]
    step, state, meta = Checkpointer(checkpoints.folder).restore(abstract(make_state(0)))
    assert (step, meta) == (2, {"step": 2})
    assert_same(state, make_state(2))
    _, chunks = open_params(checkpoints.folder, abstract(make_state(0).params))
    assert_params(chunks, make_state(2).params)


def test_open_params_does_not_read_a_neighbor_whose_name_is_the_decoded_url(tmp_path):
    """file://.../a%5B and file://.../run#2 name the folders `a[` and `run`."""
    for special, neighbor in (("a%62", "ab"), ("run#2", "run"), ("q?x", "q"), ("p|zip", "p")):
        for seed, name in enumerate((special, neighbor), 1):
            checkpoints = Checkpointer(tmp_path / name)
            checkpoints.save(1, make_state(seed), {})
            checkpoints.close()
        _, chunks = open_params(tmp_path / special, abstract(make_state(0).params))
        assert_params(chunks, make_state(1).params)


def test_checkpointer_follows_links_before_parent_folders(tmp_path):
    (tmp_path / "far/away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far/away")
    checkpoints = Checkpointer(tmp_path / "link/../run")
    checkpoints.save(1, make_state(1), {})
    assert_same(checkpoints.restore(abstract(make_state(0)))[1], make_state(1))
    assert (tmp_path / "far/run/1").is_dir() and not (tmp_path / "run").exists()
    _, chunks = open_params(tmp_path / "link/../run", abstract(make_state(0).params))
    assert_params(chunks, make_state(1).params)
    assert np.asarray(make_state(1).step) == 1


PROCESS = """
import sys
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

port, process, folder = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(process))
from qwen_jax.checkpoint.checkpointer import Checkpointer
from qwen_jax.checkpoint.parameters import open_params

sharding = NamedSharding(Mesh(np.array(jax.devices()), "x"), PartitionSpec("x"))
whole = np.arange(8, dtype=np.float32)
w = jax.make_array_from_callback((8,), sharding, lambda index: whole[index])
checkpoints = Checkpointer(folder, keep=1)
for step in (1, 2):
    checkpoints.save(step, {"params": {"w": w}}, {})
checkpoints.wait()
wanted = {"w": jax.ShapeDtypeStruct((8,), jnp.float32, sharding=sharding)}
step, state, _ = checkpoints.restore({"params": wanted})
for shard in state["params"]["w"].addressable_shards:
    np.testing.assert_array_equal(shard.data, whole[shard.index])
step, chunks = open_params(folder, wanted)
parts = [chunk for _, chunk in chunks("w", (slice(0, 8),))]
np.testing.assert_array_equal(np.concatenate(parts), whole)
del chunks  # a reader keeps its step
checkpoints.save(3, {"params": {"w": w}}, {})  # process 1 exits while process 0 verifies
checkpoints.close()
print("steps", checkpoints.steps() if process == "0" else "")
"""


@pytest.mark.slow  # two processes that import JAX
@pytest.mark.parametrize("name", [ALL_CHARACTERS, "plain"])
def test_checkpointer_of_two_processes_in_a_folder_of_any_name(tmp_path, name):
    (tmp_path / name).mkdir()
    folder = tmp_path / name / "checkpoints"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    both = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(port), str(process), str(folder)],
            cwd=ROOT,
            env=environment() | {"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in (0, 1)
    ]
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(outputs)
    assert "steps [3]" in outputs[0]
    assert [path.name for path in tmp_path.iterdir()] == [name]
