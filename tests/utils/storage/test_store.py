"""The interface to object stores, against real servers on loopback."""

import pathlib
import threading

import pytest

from qwen_jax.errors import ConfigError, UnreadableError
from qwen_jax.utils.storage.client import ABSENT
from qwen_jax.utils.storage.failures import Conflict, Missing, Retries
from qwen_jax.utils.storage.path import StoragePath, is_remote, parse
from qwen_jax.utils.storage.store import Store, open_store
from tests.helpers import object_stores
from tests.helpers.flaky_proxy import proxy

QUICK = Retries(attempts=4, base=0.01, longest=0.02)
SERVED = tuple(kind for kind in object_stores.KINDS if kind != "flat")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="module", params=object_stores.KINDS)
def server(request, folder):
    with object_stores.serve(request.param, folder) as found, object_stores.environment(found):
        yield found


@pytest.fixture
def store(server, request) -> Store:
    return open_store(f"{server.url}/{request.node.originalname}", retries=QUICK)


def test_path_parts():
    found = StoragePath.parse("gs://bucket/a//b/")
    assert str(found) == "gs://bucket/a/b" and str(found / "c/d") == "gs://bucket/a/b/c/d"
    assert (found.name, str(found.parent)) == ("b", "gs://bucket/a")
    assert is_remote("s3://x/y") and not is_remote("/a/b") and not is_remote("gopher://x")
    assert parse("/a/b") == pathlib.Path("/a/b")


@pytest.mark.parametrize("url", ["gopher://host/a", "gs://", "gs://Upper/x", "s3://a"])
def test_path_refuses(url):
    with pytest.raises(ConfigError, match="--run_dir"):
        parse(url, "--run_dir")


def test_store_reads_what_it_writes(store):
    content = bytes(range(256)) * 40
    store.write("a/b", content)
    assert store.read("a/b") == content
    assert store.read_range("a/b", 10, 20) == content[10:20]
    assert store.read_range("a/b", 10_000, None) == content[10_000:]
    assert store.read_range("a/b", len(content), len(content) + 5) == b""
    found = store.stat("a/b")
    assert found is not None and (found.key, found.bytes) == ("a/b", len(content))
    assert store.stat("a/c") is None
    with pytest.raises(Missing):
        store.read("a/c")


def test_store_lists_and_deletes(store):
    for key in ("x/2", "x/1", "xy", "z/1"):
        store.write(key, b"1")
    assert [each.key for each in store.list("x/")] == ["x/1", "x/2"]
    assert [each.key for each in store.list("x")] == ["x/1", "x/2", "xy"]
    assert [each.key for each in store.at("x").list()] == ["1", "2"]
    store.delete("x/1")
    store.delete("x/1")
    assert [each.key for each in store.list("x/")] == ["x/2"]
    store.copy("x/2", "w/3")
    assert store.read("w/3") == b"1"


def test_store_preconditions(store, server):
    if not server.has_preconditions:
        pytest.skip("gcp-storage-emulator ignores preconditions")
    first = store.write("lock", b"1", expect=ABSENT)
    with pytest.raises(Conflict):
        store.write("lock", b"2", expect=ABSENT)
    second = store.write("lock", b"3", expect=first)
    with pytest.raises(Conflict):
        store.write("lock", b"4", expect=first)
    found = store.stat("lock")
    assert store.read("lock") == b"3" and found is not None and found.generation == second


def test_store_lets_one_of_many_create(store, server):
    if not server.has_preconditions:
        pytest.skip("gcp-storage-emulator ignores preconditions")
    won = []

    def create(number: int) -> None:
        try:
            store.write("once", str(number).encode(), expect=ABSENT)
            won.append(number)
        except Conflict:
            pass

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and store.read("once") == str(won[0]).encode()


def test_store_moves_files_in_parts(store, tmp_path):
    big = tmp_path / "big"
    big.write_bytes(bytes(range(256)) * (150 << 10))  # 37.5 MiB: more than a part
    store.upload(big, "big")
    store.download("big", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == big.read_bytes()
    empty = tmp_path / "empty"
    empty.touch()
    store.upload(empty, "empty")
    store.download("empty", tmp_path / "empty_back")
    assert (tmp_path / "empty_back").read_bytes() == b"" and store.read("empty") == b""


def test_store_check_writable(store):
    assert store.check_writable() > 1e9
    assert store.list(".probe") == []


def test_flat_store_check_writable_refuses(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ConfigError, match="--run_dir=flat://"):
        open_store(f"flat://{tmp_path}/file/run").check_writable()


@pytest.fixture(scope="module", params=SERVED)
def served(request, folder):
    with object_stores.serve(request.param, folder) as found:
        yield found


@pytest.fixture
def flaky(served, request):
    with proxy(served.endpoint) as (endpoint, faults):
        with object_stores.environment(served.behind(endpoint)):
            name = request.node.originalname
            yield open_store(f"{served.url}/{name}", retries=QUICK), faults


@pytest.mark.parametrize("fault", [500, 503, 429, 408, "reset", "lost"])
def test_store_tries_again(flaky, fault, tmp_path):
    store, faults = flaky
    store.write("warm", b"0")
    faults.plan = [fault, None, None, fault]
    assert store.write("a", b"1")
    faults.plan = [fault, fault]
    assert store.read("a") == b"1"
    faults.plan = [fault]
    assert [each.key for each in store.list("a")] == ["a"]
    faults.plan = [fault]
    (tmp_path / "f").write_bytes(b"2" * (9 << 20))
    store.upload(tmp_path / "f", "f")
    faults.plan = [fault]
    store.download("f", tmp_path / "g")
    assert (tmp_path / "g").read_bytes() == b"2" * (9 << 20)
    faults.plan = [fault]
    store.delete("a")
    assert store.stat("a") is None


def test_store_gives_up(flaky):
    store, faults = flaky
    faults.every = 1
    with pytest.raises(UnreadableError, match="4 attempts.*503") as error:
        store.read("a")
    assert "a" in error.value.what and str(store.root) in error.value.where
    # Google's client also asks for the bucket's metadata.
    assert len([path for _, path in faults.requests if "test_store_gives_up" in path]) == 4


def test_store_knows_its_own_write_whose_answer_was_lost(flaky, served):
    if not served.has_preconditions:
        pytest.skip("gcp-storage-emulator ignores preconditions")
    store, faults = flaky
    store.delete("marker")
    faults.plan, faults.methods = ["lost"], ("PUT", "POST")
    assert store.write("marker", b"mine", expect=ABSENT)
    faults.plan = ["lost"]
    with pytest.raises(Conflict):
        store.write("marker", b"of another", expect=ABSENT)
    assert store.read("marker") == b"mine"


@pytest.mark.parametrize("status", [401, 403])
def test_store_permissions_are_not_tried_again(flaky, status):
    store, faults = flaky
    faults.every, faults.fault = 1, status
    with pytest.raises(ConfigError, match="credentials|bucket") as error:
        store.check_writable("--run_dir")
    assert "--run_dir=" in error.value.where
    assert len([path for _, path in faults.requests if ".probe" in path or "upload" in path]) == 1


def test_store_names_a_missing_bucket(served):
    with object_stores.environment(served):
        scheme = served.url.partition(":")[0]
        with pytest.raises(ConfigError, match="(?s)does not exist.*create"):
            open_store(f"{scheme}://no-such-bucket/a", retries=QUICK).check_writable()
