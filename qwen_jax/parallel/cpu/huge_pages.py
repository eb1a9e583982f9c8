"""Huge pages for steps that run on a CPU.

XLA:CPU allocates the workspace of a program from the kernel on every call. These hundreds of
megabytes fault in 4 KiB at a time, which takes a fifth of a small model's step time
(benchmarks/results); with huge pages, 2 MiB at a time. glibc requests huge pages if the environment
variable is set before the process starts. The Makefile sets it.
"""

import os
import pathlib
import platform

VARIABLE, SETTING = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"


def advice() -> str | None:
    """Returns a hint to set the variable, or None if it is set or would have no effect."""
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return None
    if "glibc.malloc.hugetlb" in os.environ.get(VARIABLE, ""):
        return None
    try:
        enabled = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return None
    if "[madvise]" not in enabled:  # [always] needs no request, [never] ignores it
        return None
    return f"hint: {VARIABLE}={SETTING} in the environment makes steps on this CPU faster"
