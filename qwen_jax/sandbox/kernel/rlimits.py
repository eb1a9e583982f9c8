"""Resource limits of one process: the kernel enforces them without a supervisor."""

import dataclasses
import math
import resource


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of one process; None: no limit."""

    cpu_seconds: float
    file_bytes: int  # of one file
    address_bytes: int | None = None  # address space; JVM, Node and Go reserve more than they use
    open_files: int = 256
    processes: int | None = None  # of the user, with threads; void for root


def apply(limits: Limits) -> None:
    """Sets soft and hard limits, so the process cannot raise them."""
    seconds = max(1, math.ceil(limits.cpu_seconds))
    # SIGXCPU at the soft limit, SIGKILL a second later.
    _set(resource.RLIMIT_CPU, seconds, seconds + 1)
    _set(resource.RLIMIT_CORE, 0)
    _set(resource.RLIMIT_FSIZE, limits.file_bytes)
    _set(resource.RLIMIT_NOFILE, limits.open_files)
    _set(resource.RLIMIT_MEMLOCK, 0)
    if limits.address_bytes is not None:
        _set(resource.RLIMIT_AS, limits.address_bytes)
    if limits.processes is not None:
        _set(resource.RLIMIT_NPROC, limits.processes)


def _set(which: int, soft: int, hard: int | None = None) -> None:
    # A limit that already holds stays: an unprivileged process cannot raise it.
    _, ceiling = resource.getrlimit(which)
    hard = soft if hard is None else hard
    if ceiling != resource.RLIM_INFINITY:
        soft, hard = min(soft, ceiling), min(hard, ceiling)
    resource.setrlimit(which, (soft, hard))
