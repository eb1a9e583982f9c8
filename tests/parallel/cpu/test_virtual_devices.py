"""Threads for virtual devices: with too few of them, collectives can deadlock."""

import os
import subprocess
import sys

import pytest

from qwen_jax.parallel.cpu import virtual_devices

SHOW = (
    "import os; from qwen_jax.parallel.cpu import virtual_devices; "
    "virtual_devices.reserve_threads(); print(os.environ.get('NPROC'))"
)


@pytest.mark.parametrize(
    ("flags", "before", "threads"),
    [
        ("", None, None),
        ("--xla_cpu_enable_fast_math=false --xla_force_host_platform_device_count=8", None, "32"),
        ("--xla_force_host_platform_device_count=8", "64", "64"),
    ],
)
def test_reserve_threads_by_number_of_devices(monkeypatch, flags, before, threads):
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setenv("NPROC", before or "")  # restored after the test
    if before is None:
        monkeypatch.delenv("NPROC")
    virtual_devices.reserve_threads()
    assert os.environ.get("NPROC") == threads


def test_reserve_threads_reads_the_devices_of_jax():
    shown = subprocess.run(
        [sys.executable, "-c", SHOW],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path), "JAX_NUM_CPU_DEVICES": "4"},
    )
    assert shown.stdout.strip() == "16"
