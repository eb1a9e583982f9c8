"""Huge pages for steps that run on a CPU.

XLA:CPU takes the workspace of a program from the kernel anew for every call: hundreds of megabytes
that fault in 4 KiB at a time, a fifth of the time of a small model's step (benchmarks/results).
With huge pages it is 2 MiB at a time. glibc asks for them if the environment says so before the
process starts; the Makefile says so.
"""

import os
import pathlib
import platform

VARIABLE, SETTING = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"


def advice() -> str | None:
    """What to set for faster steps on this CPU, or None where nothing is to be gained."""
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return None
    if "glibc.malloc.hugetlb" in os.environ.get(VARIABLE, ""):
        return None
    try:
        enabled = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return None
    if "[madvise]" not in enabled:  # [always] needs no asking, [never] grants nothing
        return None
    return f"hint: {VARIABLE}={SETTING} in the environment makes steps on this CPU faster"
