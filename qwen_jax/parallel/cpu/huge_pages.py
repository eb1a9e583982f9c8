"""Huge pages for steps that run on a CPU.

XLA:CPU allocates the workspace of a program from the kernel on every call: hundreds of megabytes
that fault in 4 KiB at a time, a fifth of the step time of a small model (benchmarks/results). With
huge pages it is 2 MiB at a time. glibc requests them if the environment variable is set before the
process starts; the Makefile sets it.
"""

import os
import pathlib
import platform

VARIABLE, SETTING = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"


def advice() -> str | None:
    """Returns a hint to set the variable, or None if it is set or has no effect here."""
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
