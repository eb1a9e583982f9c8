"""Memory for steps that run on a CPU: keep what is freed.

XLA:CPU allocates a program's workspace anew for every call. glibc hands so large a block back to the
kernel when it is freed, so each step faults all its pages in again, zeroed, 4 KiB at a time: a
fifth of the time of a small model's step (benchmarks/results).
"""

import ctypes
import importlib.metadata
import importlib.util
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8  # malloc.h


def keep_freed_memory() -> bool:
    """Makes this process's allocator keep what is freed, for the next step to use again.

    Call it before the first computation: threads that have an arena of their own (64 MB at most,
    beyond which blocks come from the kernel) keep it. Returns False where it cannot be done: the
    system is not Linux with glibc.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1),
                (_M_TOP_PAD, 64 * 2**20))
    return all(libc.mallopt(option, value) == 1 for option, value in settings)


def accelerator_installed() -> bool:
    """Whether JAX will find a GPU or TPU plug-in; asked before it starts, so nothing is started."""
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return bool(plugins) or importlib.util.find_spec("libtpu") is not None
