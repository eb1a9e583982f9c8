"""The exit code of a process that a signal stopped, and output that may fail while it trains."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

from qwen_jax import exit_codes
from qwen_jax.parallel import distributed
from qwen_jax.train.loop import Stopped
from qwen_jax.utils.best_effort import keep_going


@contextlib.contextmanager
def exit_on_signal() -> Iterator[None]:
    """Exits with 0 after SIGTERM and 130 after Ctrl-C, and prints how to resume the run.

    Under a launcher, SIGTERM means preemption, and the exit code requests a restart. Inside the
    block, standard output and standard error may be closed or on a full disk.
    """
    with keep_going():
        try:
            yield
        except Stopped as stopped:
            print(f"{stopped}; run the same command again to resume", flush=True)
            if stopped.signal_number != signal.SIGTERM:
                sys.exit(exit_codes.INTERRUPTED)
            launched = os.environ.get(distributed.LAUNCHER)
            sys.exit(exit_codes.PREEMPTED if launched else exit_codes.DONE)
