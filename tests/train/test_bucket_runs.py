"""Whole runs on object stores: the bits of one on a disk, also after kill -9 and among faults."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from qwen_jax import exit_codes
from qwen_jax.checkpoint import arrays as disk
from qwen_jax.checkpoint import description
from qwen_jax.checkpoint.bucket import arrays as bucket
from qwen_jax.checkpoint.bucket.steps import Steps
from qwen_jax.data import shards
from qwen_jax.data.document import Document
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.utils.storage.mirror import Mirror
from qwen_jax.utils.storage.store import open_store
from tests.helpers import object_stores
from tests.helpers.flaky_proxy import proxy

pytestmark = pytest.mark.slow
STEPS, SAVE_EVERY = 24, 4
SECONDS = 900  # after which a run counts as hanging
_TIMES = ("time", "perf/", "host/")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("bucket_runs")
    rng = np.random.default_rng(0)
    documents = [
        Document(str(i), " ".join(rng.choice(["a", "bc", "def", "gh"], 50))) for i in range(400)
    ]
    tokenizer = Tokenizer({bytes([byte]): byte for byte in range(256)})
    shards.write(documents, folder / "words", tokenizer, eval_fraction=0.1)
    return folder


@pytest.fixture(scope="module", params=object_stores.KINDS)
def server(request, home):
    with object_stores.serve(request.param, home) as found:
        yield found


def command(home: pathlib.Path, run_dir: str, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "experiments.pretrain", "--recipe=smoke", f"--run_dir={run_dir}"),
        *(f"--data.sources={home}/words/train", f"--data.eval_sources={home}/words/eval"),
        *(f"--train.num_steps={STEPS}", f"--train.save_every={SAVE_EVERY}"),
        *("--train.eval_every=12", "--train.log_every=1", "--train.keep_checkpoints=2", *more),
    ]


def start(home: pathlib.Path, run_dir: str, environ=None, name="host", more=()) -> subprocess.Popen:
    log = open(home / f"{name}.log", "ab")
    settings = {"QWEN_JAX_STAGING": str(home / "staging" / name), "XLA_FLAGS": ""}
    return subprocess.Popen(
        command(home, run_dir, *more),
        env={**os.environ, **settings, **(environ or {})},
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, home: pathlib.Path, name="host", code: int = 0) -> str:
    found = process.wait(SECONDS)
    text = (home / f"{name}.log").read_text()
    assert found == code, text[-3000:]
    return text


def curve(text: str) -> dict[int, dict]:
    found: dict[int, dict] = {}
    for row in map(json.loads, text.splitlines()):
        kept = {name: value for name, value in row.items() if not name.startswith(_TIMES)}
        found.setdefault(row["step"], {}).update(kept)
    return found


def disk_arrays(folder: pathlib.Path) -> dict[str, np.ndarray]:
    record = description.read(folder)
    names = [name for name in record["leaves"] if name not in record["scalars"]]
    stores = disk.open_stored(folder, names)
    return {name: np.asarray(stores[name].read().result()) for name in names}


def bucket_arrays(url: str, step: int, folder: pathlib.Path) -> dict[str, np.ndarray]:
    steps = Steps(open_store(f"{url}/checkpoints"))
    files = steps.files(step)
    assert steps.download(step, files, folder, files) == []
    record = description.read(folder)
    names = [name for name in record["leaves"] if name not in record["scalars"]]
    return {name: np.asarray(bucket._open(folder, name, None).read().result()) for name in names}


@pytest.fixture(scope="module")
def on_disk(home):
    """Returns the curve and the last arrays of an undisturbed run on a disk."""
    finish(start(home, str(home / "disk"), name="disk"), home, "disk")
    metrics = (home / "disk/metrics.jsonl").read_text()
    return curve(metrics), disk_arrays(home / f"disk/checkpoints/{STEPS}")


def check_same(url: str, on_disk, folder: pathlib.Path) -> None:
    mirror = Mirror(open_store(url), folder / "run")
    mirror.pull()
    assert curve((folder / "run/metrics.jsonl").read_text()) == on_disk[0]
    found = bucket_arrays(url, STEPS, folder / "step")
    assert found.keys() == on_disk[1].keys()
    for name, value in on_disk[1].items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    for name in ("config.json", "inputs.json", "versions.json", "report.html", "events.jsonl"):
        assert (folder / "run" / name).stat().st_size
    assert json.loads((folder / "run/config.json").read_text())["run_dir"] == url
    assert list((folder / "run/tensorboard").iterdir())
    assert not open_store(url).stat("lock.json")


def test_run_on_a_store_has_the_bits_of_one_on_a_disk(server, home, on_disk, tmp_path):
    url = f"{server.url}/whole"
    with object_stores.environment(server):
        text = finish(start(home, url, name=f"whole-{server.kind}"), home, f"whole-{server.kind}")
        assert f"the weights after {STEPS} steps are in {url}" in text
        check_same(url, on_disk, tmp_path)
        again = start(home, url, name=f"again-{server.kind}")  # on another computer
        assert "nothing to do" in finish(again, home, f"again-{server.kind}")
        check_same(url, on_disk, tmp_path / "again")


def test_run_on_a_store_survives_kills(server, home, on_disk, tmp_path):
    url, rng = f"{server.url}/killed", random.Random(server.kind)
    name = f"killed-{server.kind}"
    with object_stores.environment(server):
        steps = Steps(open_store(f"{url}/checkpoints"))
        kills = 0
        for number in range(10):
            process = start(home, url, name=name)
            before = steps.numbers()
            in_save = number % 2 == 0
            deadline = time.monotonic() + SECONDS
            while process.poll() is None and time.monotonic() < deadline:
                saving = list((home / "staging" / name).rglob("*.saving"))
                if (saving and steps.numbers()) if in_save else steps.numbers() != before:
                    break
                time.sleep(0.002 if in_save else 0.05)
            if process.poll() is not None:
                break  # it was faster than the kill
            time.sleep(rng.uniform(0, 0.2))
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            if rng.random() < 0.3:
                shutil.rmtree(home / "staging" / name)  # the next attempt is on another computer
        assert kills >= 3
        finish(start(home, url, name=name), home, name)
        check_same(url, on_disk, tmp_path)


def test_run_on_a_store_goes_on_between_faults(server, home, on_disk, tmp_path):
    if server.kind == "flat":
        pytest.skip("a folder has no connection that fails")
    url, name = f"{server.url}/faults", f"faults-{server.kind}"
    with proxy(server.endpoint) as (endpoint, faults):
        faults.every = 11  # a tenth of all requests fail
        process = start(home, url, server.behind(endpoint).environ, name)
        finish(process, home, name)
        assert len(faults.requests) > 200
    with object_stores.environment(server):
        check_same(url, on_disk, tmp_path)


def test_run_on_a_store_restarts_from_scratch(server, home, on_disk, tmp_path):
    url, name = f"{server.url}/scratch", f"scratch-{server.kind}"
    with object_stores.environment(server):
        finish(start(home, url, name=name, more=["--train.seed=5"]), home, name)
        text = finish(start(home, url, name=name, more=["--restart_from_scratch=true"]), home, name)
        assert "restarting from scratch: the files of the earlier run are in" in text
        check_same(url, on_disk, tmp_path)
        store = open_store(url)
        assert json.loads(store.read("before-1/config.json"))["train"]["seed"] == 5
        assert store.stat(f"before-1/checkpoints/{STEPS}/manifest.json")
        assert store.list("before-1/metrics.jsonl.segments/")


def test_second_run_on_a_store_is_refused(server, home):
    if not server.has_preconditions:
        pytest.skip("gcp-storage-emulator ignores preconditions")
    url = f"{server.url}/twice"
    with object_stores.environment(server):
        store = open_store(url)
        first = start(home, url, name=f"first-{server.kind}", more=["--train.num_steps=100000"])
        try:
            deadline = time.monotonic() + SECONDS
            while store.stat("lock.json") is None and time.monotonic() < deadline:
                assert first.poll() is None, (home / f"first-{server.kind}.log").read_text()
                time.sleep(0.2)
            second = start(home, url, name=f"second-{server.kind}")
            text = finish(second, home, f"second-{server.kind}", exit_codes.FOLDER_IN_USE)
            assert f"process {first.pid} on" in text and url in text
        finally:
            os.killpg(first.pid, signal.SIGKILL)
            first.wait()


def test_run_refuses_a_bucket_that_does_not_exist(server, home):
    if server.kind == "flat":
        pytest.skip("a folder is made")
    scheme = server.url.partition(":")[0]
    name = f"missing-{server.kind}"
    process = start(home, f"{scheme}://no-such-bucket/run", server.environ, name)
    text = finish(process, home, name, exit_codes.REFUSED)
    assert "the bucket" in text and "does not exist" in text and "Traceback" not in text


def start_processes(home: pathlib.Path, run_dir: str, environ, name: str, count: int = 2) -> list:
    """Starts the processes of one run, each with a disk of its own for its local copy."""
    address = f"127.0.0.1:{object_stores.free_port()}"
    return [
        start(
            home,
            run_dir,
            {
                **environ,
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(process),
            },
            f"{name}-{process}",
            ["--model.unroll_layers=2"],
        )
        for process in range(count)
    ]


@pytest.fixture(scope="module")
def on_disk_of_two(home):
    for number, process in enumerate(start_processes(home, str(home / "disk2"), {}, "disk2")):
        finish(process, home, f"disk2-{number}")
    metrics = (home / "disk2/metrics.jsonl").read_text()
    return curve(metrics), disk_arrays(home / f"disk2/checkpoints/{STEPS}")


def test_processes_without_a_shared_disk_save_one_checkpoint(
    server, home, on_disk_of_two, tmp_path
):
    url, name = f"{server.url}/two", f"two-{server.kind}"
    with object_stores.environment(server):
        steps = Steps(open_store(f"{url}/checkpoints"))
        processes = start_processes(home, url, {}, name)
        deadline = time.monotonic() + SECONDS
        while len(steps.numbers()) < 2 and time.monotonic() < deadline:
            assert all(process.poll() is None for process in processes)
            time.sleep(0.05)
        for process in processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(home / "staging" / f"{name}-1")  # one host is replaced
        for number, process in enumerate(start_processes(home, url, {}, name)):
            assert "resuming after step" in finish(process, home, f"{name}-{number}") or number
        check_same(url, on_disk_of_two, tmp_path)
        files = steps.files(STEPS)
        assert len({file.object.partition("/")[0] for file in files.values()}) == 2
