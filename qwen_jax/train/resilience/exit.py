"""How the process of a run ends when a signal has stopped the run."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

from qwen_jax.parallel import distributed
from qwen_jax.train.loop import Stopped


@contextlib.contextmanager
def exit_on_signal() -> Iterator[None]:
    """A run that a signal ends says how to go on; exit code 0 for SIGTERM, 130 for Ctrl-C.

    Under a launcher SIGTERM means that a machine is taken away: the code asks to be started again.
    """
    try:
        yield
    except Stopped as stopped:
        print(f"{stopped}; give the same command again to go on", flush=True)
        if stopped.signal_number != signal.SIGTERM:
            sys.exit(130)
        sys.exit(distributed.EXIT_PREEMPTED if os.environ.get(distributed.LAUNCHER) else 0)
