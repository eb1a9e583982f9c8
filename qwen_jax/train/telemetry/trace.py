"""A profile of some steps, for TensorBoard and Perfetto: --train.trace_steps=100,105."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator

import jax


@contextlib.contextmanager
def traced(
    next_batch: Callable, steps: tuple[int, ...], folder: pathlib.Path, log: Callable[[str], None]
) -> Iterator[Callable]:
    """`next_batch`, which starts the profiler before step steps[0] and ends it after steps[1].

    Every process writes its own part under `folder`/profile. The device is waited for at both ends,
    and nowhere between.
    """
    if not steps:
        yield next_batch
        return
    first, last = steps
    running = False

    def end() -> None:
        nonlocal running
        if running:
            jax.profiler.stop_trace()
            running = False
            log(f"profile of steps {first} to {last} in {folder / 'profile'}")

    def fetch(step: int, state):
        nonlocal running
        if step + 1 == first:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(folder / "profile"))
            running = True
        if step == last:
            jax.block_until_ready(state)
            end()
        return next_batch(step, state)

    try:
        yield fetch
    finally:
        end()  # the run was shorter, or was stopped
