"""Several processes hash the files of a step together."""

import threading

import jax
import pytest

from qwen_jax.checkpoint import manifest, shared_hashing
from qwen_jax.checkpoint.shared_hashing import HashTogether


class Client:
    """JAX's key-value store, between threads."""

    def __init__(self):
        self.values, self.changed = {}, threading.Condition()

    def key_value_set(self, key: str, value: str) -> None:
        with self.changed:
            self.values[key] = value
            self.changed.notify_all()

    def key_value_delete(self, key: str) -> None:
        with self.changed:
            self.values.pop(key, None)

    def blocking_key_value_get(self, key: str, timeout: int) -> str:
        with self.changed:
            assert self.changed.wait_for(lambda: key in self.values, 30)
            return self.values[key]


@pytest.fixture
def processes(monkeypatch):
    """Makes each thread a process: its name is its index; the main thread is process 0."""
    client = Client()
    monkeypatch.setattr(shared_hashing.compat, "coordination_client", lambda: client)
    monkeypatch.setattr(shared_hashing.distributed, "is_distributed", lambda: True)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    names = {"1": 1, "2": 2}
    monkeypatch.setattr(jax, "process_index", lambda: names.get(threading.current_thread().name, 0))


def serve(read: list, hash_file) -> list[threading.Thread]:
    def hash_and_note(path):
        read.append(path.name)
        return hash_file(path)

    threads = [
        threading.Thread(
            target=lambda: HashTogether("t", hash_and_note).serve(), name=str(process), daemon=True
        )
        for process in (1, 2)
    ]
    for thread in threads:
        thread.start()
    return threads


@pytest.fixture
def files(tmp_path):
    for number in range(9):
        (tmp_path / f"f{number}").write_bytes(bytes([number]) * 100 * (number + 1))
    return tmp_path


def test_shared_hashing_gives_the_manifest_of_one_process(processes, files, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 1)
    manifest.write(files)
    alone = (files / manifest.NAME).read_bytes()
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    read = []
    threads = serve(read, manifest.durable_entry)
    together = HashTogether("t", manifest.durable_entry)
    manifest.write(files, together)
    assert manifest.problems(files, together=together) == []
    (files / "f3").write_bytes(b"x" * 400)
    assert manifest.problems(files, together=together) == ["f3 does not match its SHA-256"]
    together.finish()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert (files / manifest.NAME).read_bytes() == alone
    assert len(read) >= 9  # two thirds of 9 files, three times


def test_shared_hashing_leaves_to_process_0_what_others_do_not_see(processes, files):
    def blind(path):
        raise FileNotFoundError(2, "not shared", str(path))

    threads = serve([], blind)
    together = HashTogether("t", manifest.durable_entry)
    manifest.write(files, together)
    assert manifest.problems(files, together=together) == []
    together.finish()
    for thread in threads:
        thread.join(30)


def test_shared_hashing_shares_bytes_evenly():
    sizes = {f"f{number}": 10 * number for number in range(1, 20)} | {"big": 1000}
    shares = shared_hashing._shares(sizes, 3)
    assert sorted(sum(shares, [])) == sorted(sizes)
    assert sorted(sum(sizes[name] for name in share) for share in shares) == [950, 950, 1000]
