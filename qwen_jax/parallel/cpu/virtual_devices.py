"""Sets the number of threads for several virtual devices on one CPU, to test or try out a mesh.

XLA:CPU runs independent parts of a program concurrently. Each part that reaches a collective blocks
its thread until every device has arrived. Two independent gathers can block at the same time: that
of the output projection and one inside the loop over layers. With only one thread per core or per
device, the last device then gets no thread, and the process aborts after 40 seconds. With a thread
for every part on every device, this cannot happen. The number of threads does not affect results.
"""

import os
import re

import jax

_FLAG = re.compile(r"--xla_force_host_platform_device_count=(\d+)")
_THREADS_PER_DEVICE = 4  # 2 sufficed in every observed case: one at the top level, one in a loop


def reserve_threads() -> None:
    """Sets NPROC, which XLA reads at startup, unless it is already set.

    Call it before using JAX.
    """
    requested = _FLAG.findall(os.environ.get("XLA_FLAGS", ""))
    devices = max(int(requested[-1]) if requested else 1, jax.config.jax_num_cpu_devices)
    if devices > 1:
        os.environ.setdefault("NPROC", str(_THREADS_PER_DEVICE * devices))
