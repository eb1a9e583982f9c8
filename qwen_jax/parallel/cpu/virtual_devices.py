"""Threads for several virtual devices on one CPU, for tests and for trying out a mesh.

XLA:CPU runs independent parts of a program concurrently, and each part that reaches a collective
blocks its thread until every device has arrived. Two independent gathers can block at once: that of
the output projection, and one inside of the loop over layers. With one thread per core or per
device, the last device then gets no thread, and the process aborts after 40 seconds. With threads
for every part of every device this cannot happen. Only the number of threads changes, not the
results.
"""

import os
import re

import jax

_FLAG = re.compile(r"--xla_force_host_platform_device_count=(\d+)")
_THREADS_PER_DEVICE = 4  # 2 sufficed for every case seen: one at the top level, one in a loop


def reserve_threads() -> None:
    """Sets NPROC, which XLA reads at startup, unless it is set; call it before JAX is used."""
    requested = _FLAG.findall(os.environ.get("XLA_FLAGS", ""))
    devices = max(int(requested[-1]) if requested else 1, jax.config.jax_num_cpu_devices)
    if devices > 1:
        os.environ.setdefault("NPROC", str(_THREADS_PER_DEVICE * devices))
