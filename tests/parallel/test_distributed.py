"""Detection of a run of several processes from the environment; rows of a process."""

import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from qwen_jax import exit_codes
from qwen_jax.config import MeshConfig
from qwen_jax.errors import ConfigError, ShardingError, UnreadableError
from qwen_jax.parallel import distributed
from qwen_jax.parallel.batch_rows import put_rows, rows_here
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.parallel.sharding import DEFAULT_RULES

PLAIN = {
    "JAX_COORDINATOR_ADDRESS": "10.0.0.1:8476",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}
POD = {
    "JOB_COMPLETION_INDEX": "2",
    "JAX_NUM_PROCESSES": "8",
    "JAX_COORDINATOR_ADDRESS": "run-worker-0-0.run:8476",
}
STEP = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "gpu[007-010,12]",
    "SLURM_NTASKS": "10",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x5)",
}
GKE = {"TPU_WORKER_HOSTNAMES": "a,b,c,d", "TPU_WORKER_ID": "0", "JOB_COMPLETION_INDEX": "0"}


def without(environment, name):
    return {key: value for key, value in environment.items() if key != name}


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, None),
        (PLAIN, ("plain addresses", "10.0.0.1:8476", 4, 3, None)),
        (
            PLAIN | {"JAX_LOCAL_DEVICE_IDS": "2,3"},
            ("plain addresses", "10.0.0.1:8476", 4, 3, (2, 3)),
        ),
        (POD, ("Kubernetes JobSet", "run-worker-0-0.run:8476", 8, 2, None)),
        (STEP, ("Slurm job 4097", "gpu007:61441", 10, 5, (1,))),
        (
            STEP | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"},
            ("Slurm job 4097", "gpu007:61441", 10, 5, (2, 3)),
        ),
        (STEP | {"CUDA_VISIBLE_DEVICES": "1"}, ("Slurm job 4097", "gpu007:61441", 10, 5, None)),
        (
            STEP | {"SLURM_STEP_TASKS_PER_NODE": "1(x10)", "SLURM_LOCALID": "0"},
            ("Slurm job 4097", "gpu007:61441", 10, 5, None),
        ),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1"}, None),
        (GKE, ("TPU pod on GKE, 4 processes", None, None, None, None)),
        (
            GKE | {"MEGASCALE_NUM_SLICES": "2"},
            ("TPU pod on GKE, 4 processes in each of 2 slices", None, None, None, None),
        ),
        (GKE | {"TPU_WORKER_HOSTNAMES": "localhost"}, ("TPU, one process", None, 1, 0, None)),
        (
            GKE | {"TPU_PROCESS_ADDRESSES": "a:1,a:2,b:1,b:2,c:1,c:2,d:1,d:2"},
            ("TPU pod on GKE, 8 processes", None, None, None, None),
        ),
        (
            {"TPU_PROCESS_ADDRESSES": "a:1,a:2", "TPU_WORKER_ID": "1"},
            ("TPU pod on GKE, 2 processes", None, None, None, None),
        ),
        ({"WORLD_SIZE": "1"}, None),
    ],
    ids=[
        "single",
        "plain",
        "plain_devices",
        "jobset",
        "slurm_gpu_per_task",
        "slurm_gpus_split",
        "slurm_bound",
        "slurm_task_per_node",
        "slurm_shell",
        "gke",
        "gke_slices",
        "gke_one_host",
        "gke_tpu7x",
        "gke_tpu7x_one_host",
        "torchrun_single",
    ],
)
def test_find_by_environment(environment, expected):
    found = distributed.find(environment)
    assert found == (None if expected is None else distributed.ProcessSpec(*expected))


@pytest.mark.parametrize(
    "environment, what",
    [
        (without(PLAIN, "JAX_PROCESS_ID"), "but not JAX_PROCESS_ID"),
        (without(PLAIN, "JAX_COORDINATOR_ADDRESS"), "but not JAX_COORDINATOR_ADDRESS"),
        (PLAIN | {"JAX_COORDINATOR_ADDRESS": "10.0.0.1"}, "not of the form host:port"),
        (PLAIN | {"JAX_PROCESS_ID": "4"}, "process 4 of 4"),
        (PLAIN | {"JAX_NUM_PROCESSES": "four"}, "not a non-negative integer"),
        ({"JOB_COMPLETION_INDEX": "0"}, "not set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES"),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, "not one of them"),
        (without(STEP, "SLURM_LOCALID"), "not set SLURM_LOCALID"),
        (STEP | {"CUDA_VISIBLE_DEVICES": "0,1,2"}, "3 GPUs cannot be divided evenly among 2 tasks"),
        (without(GKE, "TPU_WORKER_ID"), "not TPU_WORKER_ID"),
        (GKE | {"MEGASCALE_NUM_SLICES": "two"}, "not a non-negative integer"),
        (GKE | {"TPU_PROCESS_ADDRESSES": ","}, "it has no address"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpirun started 2"),
        ({"WORLD_SIZE": "8", "RANK": "1"}, "torchrun started 8"),
    ],
    ids=range(14),
)
def test_find_refuses_a_partial_environment(environment, what):
    with pytest.raises(ConfigError, match=what):
        distributed.find(environment)


@pytest.mark.parametrize(
    "nodes, first",
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[001-4]", "n001"),
        ("n[7,9-12],m3", "n7"),
        ("a-b[3]", "a-b3"),
    ],
)
def test_first_node_of_a_slurm_list(nodes, first):
    assert distributed._first_node(nodes) == first


class Device:
    """A device of a mesh that spans processes, with the one attribute rows_here reads."""

    def __init__(self, process: int):
        self.process_index = process


@pytest.mark.parametrize(
    "shape, owners, process, rows",
    [
        ((1, 4, 1, 1), [0, 0, 1, 1], 1, range(4, 8)),
        (
            (1, 4, 1, 1),
            [0, 1, 1, 0],
            0,
            [0, 1, 6, 7],
        ),  # a device order that follows the interconnect
        ((1, 2, 2, 1), [0, 1, 0, 1], 1, range(8)),  # a tensor axis that spans processes
        ((2, 1, 1, 2), [0, 0, 1, 1], 0, range(4)),
    ],
    ids=["blocks", "interleaved", "shared", "context"],
)
def test_rows_here_are_the_rows_of_the_process_devices(monkeypatch, shape, owners, process, rows):
    mesh = make_mesh(MeshConfig(*shape), devices=jax.devices()[:4])
    owner = dict(zip(mesh.devices.flat, owners, strict=True))
    original = NamedSharding.devices_indices_map

    def owned(self, shape):
        return {Device(owner[device]): index for device, index in original(self, shape).items()}

    monkeypatch.setattr(NamedSharding, "devices_indices_map", owned)
    assert rows_here(mesh, 8, process=process) == tuple(rows)
    with pytest.raises(ShardingError, match="batch_size=7"):
        rows_here(mesh, 7)


def test_put_rows_places_rows_by_sharding():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, context=2))
    sharding = NamedSharding(mesh, DEFAULT_RULES.partition_spec(("batch", "length")))
    batch = np.arange(8 * 6).reshape(8, 6).astype(np.int32)
    placed = put_rows({"x": batch}, rows_here(mesh, 8), 8, sharding)["x"]
    assert placed.sharding == sharding
    np.testing.assert_array_equal(np.asarray(placed), batch)


def test_find_reads_the_addresses_of_tpu_processes_from_a_file(tmp_path):
    file = tmp_path / "addresses"
    environment = {"TPU_PROCESS_ADDRESSES_PATH": str(file), "TPU_WORKER_ID": "0"}
    with pytest.raises(UnreadableError, match="cannot read the addresses"):
        distributed.find(environment)
    file.write_text("a:1,a:2,b:1,b:2\n")
    found = distributed.find(environment)
    assert found is not None and found.found == "TPU pod on GKE, 4 processes"


START = (
    "import sys; from qwen_jax.parallel import distributed; "
    "distributed.start({'JAX_COORDINATOR_ADDRESS': '127.0.0.1:' + sys.argv[1], "
    "'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': sys.argv[2], 'QWEN_JAX_START_SECONDS': '2'})"
)


@pytest.mark.parametrize(
    "process, what",
    [
        ("0", "not all of the 2 processes connected to process 0 within 2 s"),
        ("1", "process 0 does not respond: Connection refused within 2 s"),
    ],
)
def test_start_without_the_other_process_is_an_error(process, what):
    """JAX itself would end this process by SIGABRT, without a reason."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = subprocess.run(
        [sys.executable, "-c", START, str(port), process],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == exit_codes.LOST_PROCESS, done.stderr
    assert what in done.stderr and "QWEN_JAX_START_SECONDS sets the time" in done.stderr
