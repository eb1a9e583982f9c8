"""Ends a run that hangs: no step for many times the median of the last ones.

A collective waits forever for a process that is stuck, and JAX only notices processes that are
dead. A thread of every process therefore watches the steps. It also publishes how far its process
is, in JAX's coordination service, so that each process can name those that did not arrive. After
the time is over, it writes the stacks of all threads to run_dir/hangs, and exits with a code that
restarts the run.

A process that holds Python's lock while it hangs cannot do that; the others name it.
"""

import collections
import contextlib
import dataclasses
import faulthandler
import json
import os
import pathlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from qwen_jax import exit_codes
from qwen_jax.parallel import distributed
from qwen_jax.train.loop import Hook, StepReport
from qwen_jax.utils.output import flush_output, print_error

FACTOR = 20  # times the median step
FIRST_SECONDS = 1800  # of the first steps: sampling compiles, kernels are tuned
HOOK_SECONDS = 3600  # of a save or an evaluation
_MEDIAN_OF = 64  # steps
_ANSWER_SECONDS = 10  # of the coordination service, and to write the stacks
_PUBLISH_SECONDS = 5
_SUSPENDED_SECONDS = 2 * _ANSWER_SECONDS  # Ctrl-Z, a debugger: not a hang
_FOLDER = "qwen_jax/watchdog"


@dataclasses.dataclass(frozen=True)
class Place:
    """What a process is doing."""

    what: str
    step: int  # that it works on, from 1
    seconds: float  # that it may take


class Watchdog:
    """Watches the steps of this process.

    Args:
      folder: run folder.
      min_seconds: no hang is shorter.
    """

    def __init__(self, folder: str | os.PathLike, min_seconds: float):
        self._folder, self._min = pathlib.Path(folder), min_seconds
        self._times: collections.deque[float] = collections.deque(maxlen=_MEDIAN_OF)
        self._place = Place("starting", 0, FIRST_SECONDS)
        self._since = time.monotonic()
        self._beats = 0
        self._over = threading.Event()

    def batches(self, next_batch: Callable) -> Callable:
        """Returns `next_batch`, watched."""

        def fetch(step: int, state: Any):
            self._enter("reading the batch", step + 1)
            return next_batch(step, state)

        return fetch

    def steps(self, train_step: Callable) -> Callable:
        """Returns `train_step`, watched. It returns before the device is done."""

        def step(state: Any, batch: Any):
            self._enter("computing", self._place.step)
            return train_step(state, batch)

        return step

    def reports(self, report: Callable[[StepReport], None]) -> Callable[[StepReport], None]:
        """Returns `report`, which also tells that a step is complete."""

        def reported(step: StepReport) -> None:
            if step.seconds is not None:
                self._times.append(step.seconds)
            self._since = time.monotonic()
            report(step)

        return reported

    def hooks(self, hooks: Sequence[Hook]) -> tuple[Hook, ...]:
        """Returns the hooks, which may take an hour each."""

        def watched(act: Callable[[int, Any], None]) -> Callable[[int, Any], None]:
            def acting(done: int, state: Any) -> None:
                self._since = time.monotonic()
                self._place = Place("saving or evaluating", done, HOOK_SECONDS)
                act(done, state)
                self._since = time.monotonic()

            return acting

        return tuple(dataclasses.replace(hook, act=watched(hook.act)) for hook in hooks)

    def watch(self) -> None:
        """Runs in a thread until `stop`: publishes the place, and ends a process that hangs."""
        published, previous, pause = 0.0, time.monotonic(), min(1.0, self._min / 4)
        while not self._over.wait(pause):
            now = time.monotonic()
            if now - previous > pause + _SUSPENDED_SECONDS:  # this thread stood still as well
                self._since += now - previous
            previous = now
            if distributed.is_distributed() and now - published >= _PUBLISH_SECONDS:
                published = now
                within(_ANSWER_SECONDS, self._publish)
            place, waited = self._place, time.monotonic() - self._since
            if waited > place.seconds:
                self._end(place, waited)

    def stop(self) -> None:
        """Ends the thread."""
        self._over.set()

    def _enter(self, what: str, step: int) -> None:
        limit = FIRST_SECONDS
        if self._times:
            limit = FACTOR * statistics.median(self._times)
        self._place = Place(what, step, max(self._min, limit))

    def _publish(self) -> None:
        self._beats += 1
        place = self._place
        value = {"step": place.step, "what": place.what, "beat": self._beats}
        distributed.kv_put(f"{_FOLDER}/{jax.process_index()}", json.dumps(value))

    def _keep_publishing(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(1)
            within(_ANSWER_SECONDS, self._publish)

    def _end(self, place: Place, waited: float) -> None:
        """Says what hangs, writes the stacks, and exits."""
        median = f"{statistics.median(self._times):.2f} s" if self._times else "not known yet"
        here = f"process {jax.process_index()} is {place.what} of step {place.step}"
        print_error(f"no step for {waited:.0f} s (median {median}): {here}")
        within(_ANSWER_SECONDS, self._dump)
        absent: list[str] | None = []
        if distributed.is_distributed():
            absent = within(2 * _ANSWER_SECONDS + 2 * _PUBLISH_SECONDS, self._absent)
        if absent is None:
            absent = ["process 0 does not respond"]
        for line in absent:
            print_error(f"did not arrive: {line}")
        flush_output()
        if distributed.is_distributed():  # the others may still look; process 0 has the store
            self._keep_publishing(_ANSWER_SECONDS)
        own = f"process {jax.process_index()} "
        lost = any(not line.startswith(own) for line in absent)
        os._exit(exit_codes.LOST_PROCESS if lost else exit_codes.CRASHED)

    def _dump(self) -> None:
        """Writes the stacks of all threads, first to where they cannot get stuck."""
        faulthandler.dump_traceback(all_threads=True)
        folder = self._folder / "hangs"
        folder.mkdir(exist_ok=True)
        attempt = os.environ.get("QWEN_JAX_ATTEMPT", "0")
        path = folder / f"attempt-{attempt}-process-{jax.process_index()}.txt"
        with open(path, "w", encoding="utf-8") as file:
            faulthandler.dump_traceback(file=file, all_threads=True)
        print_error(f"the stacks of all threads are in {path}")

    def _absent(self) -> list[str]:
        """Returns the processes that are behind, or whose thread has stopped too."""
        self._publish()
        before = _places()
        self._keep_publishing(1.5 * _PUBLISH_SECONDS)  # the others publish again
        return absent_in(before, _places(), jax.process_count())


def absent_in(before: dict[int, dict], after: dict[int, dict], processes: int) -> list[str]:
    """Returns a line for each process that the others wait for.

    Args:
      before, after: what each process has published, at two times.
      processes: number of processes.
    """
    order = ("reading the batch", "computing", "saving or evaluating")

    def progress(place: dict) -> tuple[int, int]:
        return place["step"], order.index(place["what"]) if place["what"] in order else -1

    newest = max(map(progress, after.values()), default=(0, -1))
    found = []
    for process in range(processes):
        place = after.get(process)
        if place is None:
            found.append(f"process {process} has not started its first step")
        elif before.get(process, {}).get("beat") == place["beat"]:
            found.append(
                f"process {process} shows no sign of life since it was {place['what']} of step "
                f"{place['step']}"
            )
        elif progress(place) < newest:
            found.append(f"process {process} is {place['what']} of step {place['step']}")
    return found


def within(seconds: float, act: Callable[[], Any]) -> Any:
    """Returns act(), or None if it takes longer or fails; it then goes on in its thread."""
    results: list[Any] = []

    def run() -> None:
        with contextlib.suppress(Exception):
            results.append(act())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None


@contextlib.contextmanager
def watching(folder: str | os.PathLike, min_seconds: float | None) -> Iterator[Watchdog]:
    """Watches the steps inside the block; with None, only wraps them."""
    watchdog = Watchdog(folder, min_seconds or 0)
    if min_seconds is not None:
        threading.Thread(target=watchdog.watch, name="watchdog", daemon=True).start()
    try:
        yield watchdog
    finally:
        watchdog.stop()


def _places() -> dict[int, dict]:
    return {
        int(name.rpartition("/")[2]): json.loads(value)
        for name, value in distributed.kv_list(_FOLDER)
    }
