"""Threads for several virtual devices on one CPU, as tests and rehearsals of a mesh use them.

XLA:CPU runs a program's independent parts side by side, and each that reaches a collective keeps
its thread until every device is there. A gather that nothing holds back (the output projection's)
can so meet another one inside of the layers' loop: with a thread per core, or one per device, the
device that all wait for finds no thread, and after 40 seconds the process aborts. With room for
every part of every device it cannot happen. Only the number of threads changes, not what they
compute.
"""

import os
import re

import jax

_FLAG = re.compile(r"--xla_force_host_platform_device_count=(\d+)")
_THREADS_PER_DEVICE = 4  # 2 were enough for all that was seen: one at the top, one in a loop


def reserve_threads() -> None:
    """Sets NPROC, which XLA reads when it starts, unless it is set; before JAX's first use."""
    asked = _FLAG.findall(os.environ.get("XLA_FLAGS", ""))
    devices = max(int(asked[-1]) if asked else 1, jax.config.jax_num_cpu_devices)
    if devices > 1:
        os.environ.setdefault("NPROC", str(_THREADS_PER_DEVICE * devices))
