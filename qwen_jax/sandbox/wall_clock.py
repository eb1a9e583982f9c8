"""How long a program may take by wall clock: a multiple of its CPU time, larger on a busy machine.

CPU time is the limit, since it is a program's own. Wall clock only ends programs that wait, so it
must not end one that is waiting for a processor: that would be a wrong verdict on right code.
"""

import os

_FACTOR = 10.0  # on an idle machine
_SLACK = 4.0  # builds are niced, and processors are not shared evenly


def factor() -> float:
    """Returns how many times its CPU time a program may take by wall clock, now."""
    if not hasattr(os, "sched_getaffinity"):  # macOS
        return _FACTOR
    load = os.getloadavg()[0]  # of the last minute: processes that run or want to
    return max(_FACTOR, _SLACK * load / len(os.sched_getaffinity(0)))
