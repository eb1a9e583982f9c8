"""The exit code of a process that a signal stopped."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

from qwen_jax.parallel import distributed
from qwen_jax.train.loop import Stopped


@contextlib.contextmanager
def exit_on_signal() -> Iterator[None]:
    """Exits with 0 after SIGTERM and 130 after Ctrl-C, and prints how to resume the run.

    Under a launcher, SIGTERM means preemption, and the exit code requests a restart.
    """
    try:
        yield
    except Stopped as stopped:
        print(f"{stopped}; run the same command again to resume", flush=True)
        if stopped.signal_number != signal.SIGTERM:
            sys.exit(130)
        sys.exit(distributed.EXIT_PREEMPTED if os.environ.get(distributed.LAUNCHER) else 0)
