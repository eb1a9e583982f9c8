"""Profiles a range of steps for TensorBoard and Perfetto: --train.trace_steps=100,105."""

import contextlib
import errno
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

import jax

from qwen_jax.utils.best_effort import reason_of


@contextlib.contextmanager
def traced(
    next_batch: Callable, steps: tuple[int, ...], folder: pathlib.Path, log: Callable[[str], None]
) -> Iterator[Callable]:
    """Yields a `next_batch` that starts the profiler before step steps[0] and stops it after
    steps[1].

    Every process writes its own trace to `folder`/profile. The host waits for the device only at
    the start and end of the trace.
    """
    if not steps:
        yield next_batch
        return
    first, last = steps
    running = False

    def attempt(act: Callable, *arguments: str) -> bool:
        try:
            act(*arguments)
        except (OSError, RuntimeError) as error:  # such as a full disk: the run goes on
            log(f"the profile of steps {first} to {last} is incomplete: {reason_of(error)}")
            return False
        return True

    def write() -> None:
        jax.profiler.stop_trace()
        if not shutil.disk_usage(folder).free:  # the profiler truncates its file without an error
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def stop() -> None:
        nonlocal running
        if running:
            running = False
            if attempt(write):
                log(f"profile of steps {first} to {last} is in {folder / 'profile'}")

    def fetch(step: int, state):
        nonlocal running
        if step + 1 == first:
            jax.block_until_ready(state)
            running = attempt(jax.profiler.start_trace, str(folder / "profile"))
        if step == last:
            jax.block_until_ready(state)
            stop()
        return next_batch(step, state)

    try:
        yield fetch
    finally:
        stop()  # the run ended or was stopped before steps[1]
