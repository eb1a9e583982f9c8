"""Threads for virtual devices: with too few of them, collectives can deadlock."""

import subprocess
import sys

import pytest

SHOW = (
    "import os; from qwen_jax.parallel.cpu import virtual_devices; "
    "virtual_devices.reserve_threads(); print(os.environ.get('NPROC'))"
)


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({}, "None"),
        (
            {
                "XLA_FLAGS": "--xla_cpu_enable_fast_math=false "
                "--xla_force_host_platform_device_count=8"
            },
            "32",
        ),
        ({"JAX_NUM_CPU_DEVICES": "4"}, "16"),
        ({"JAX_NUM_CPU_DEVICES": "4", "NPROC": "64"}, "64"),
    ],
)
def test_reserve_threads_by_number_of_devices(environment, threads):
    shown = subprocess.run(
        [sys.executable, "-c", SHOW],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path), **environment},
    )
    assert shown.stdout.strip() == threads
