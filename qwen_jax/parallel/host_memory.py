"""Memory for steps that run on a CPU: keep what is freed, in huge pages.

XLA:CPU allocates a program's workspace anew for every call. glibc hands so large a block back to the
kernel when it is freed, so each step faults all its pages in again, zeroed, 4 KiB at a time: about
half of the time of a small model's step.
"""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h
_MADV_HUGEPAGE, _PAGE = 14, 4096  # linux/mman.h


def keep_freed_memory(workspace_bytes: int) -> bool:
    """Makes this process's allocator keep freed memory, and prepares room for a workspace.

    Nothing is touched, so memory in use does not grow. Returns False where it cannot be done: the
    system is not Linux with glibc.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1),
                          (_M_TOP_PAD, 64 * 2**20)):
        if libc.mallopt(option, value) != 1:
            return False
    size = workspace_bytes + 2**26
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = libc.malloc(size)
    if not block:
        return False
    start = -(-block // _PAGE) * _PAGE
    libc.madvise(start, size - (start - block), _MADV_HUGEPAGE)  # only a wish: may fail
    libc.free(block)
    return True
