"""Which host is slow: every process tells process 0 its own time per step.

All steps take as long as the slowest host, everywhere; what differs is how much of it a host spends
by itself (waiting for data, starting the step) and how much waiting for the devices. The figures go
through JAX's coordination service, from host to host: no device takes part.
"""

import json

import jax

from qwen_jax.parallel import hosts

_FOLDER = "qwen_jax/host_times"
_SLOWER = 3.0  # than the median of the others, and
_SECONDS = 0.02  # by at least so much


class HostTimes:
    """The mean of this host's own seconds per step, and in process 0 those of all."""

    def __init__(self):
        self._own: list[float] = []

    def add(self, seconds: float, device_wait: float) -> None:
        """One step: all of it, and what of it the host waited for its devices."""
        self._own.append(max(seconds - device_wait, 0.0))

    def exchange(self) -> dict[int, float]:
        """Tells this host's mean since the last call; in process 0, the latest of every process."""
        if not self._own or not hosts.several():
            return {}
        mean = sum(self._own) / len(self._own)
        self._own.clear()
        hosts.publish(f"{_FOLDER}/{jax.process_index()}", json.dumps(mean))
        if jax.process_index():
            return {}
        return {int(name.rpartition("/")[2]): json.loads(value)
                for name, value in hosts.published(_FOLDER)}


def slow_one(times: dict[int, float]) -> str | None:
    """A sentence when one host's own time stands out."""
    if len(times) < 2:
        return None
    slowest = max(times, key=times.get)
    others = sorted(seconds for process, seconds in times.items() if process != slowest)
    median = others[len(others) // 2]
    if times[slowest] < max(_SLOWER * median, median + _SECONDS):
        return None
    return (f"process {slowest} needs {times[slowest] * 1e3:.0f} ms of its own per step, the others "
            f"{median * 1e3:.0f} ms: all wait for it")
