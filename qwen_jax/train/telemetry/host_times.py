"""Finds slow hosts: every process sends its host time per step to process 0.

A step takes the same time on all hosts: that of the slowest one. Hosts differ in how much of it is
host time (waiting for data, dispatching the step) and how much is spent waiting for devices. The
times are sent through JAX's coordination service, without using a device.
"""

import json

import jax

from qwen_jax.parallel import distributed

_FOLDER = "qwen_jax/host_times"
_SLOW_FACTOR = 3.0  # a slow host takes this many times as long as the median of the others, and
_SLOW_SECONDS = 0.02  # at least this much longer


class HostTimes:
    """Mean host seconds per step of this process and, in process 0, of all processes."""

    def __init__(self):
        self._host_seconds: list[float] = []
        self._slow: list[int] = []  # the slow process in each of the latest consecutive exchanges

    def add(self, seconds: float, device_wait: float) -> None:
        """Records a step: its total seconds and the part spent waiting for devices."""
        self._host_seconds.append(max(seconds - device_wait, 0.0))

    def exchange(self) -> dict[int, float]:
        """Sends this host's mean since the last call.

        Returns:
          The latest mean of every process in process 0; {} in the others.
        """
        if not self._host_seconds or not distributed.is_distributed():
            return {}
        mean = sum(self._host_seconds) / len(self._host_seconds)
        self._host_seconds.clear()
        distributed.kv_put(f"{_FOLDER}/{jax.process_index()}", json.dumps(mean))
        if jax.process_index():
            return {}
        return {
            int(name.rpartition("/")[2]): json.loads(value)
            for name, value in distributed.kv_list(_FOLDER)
        }

    def slow(self, times: dict[int, float]) -> str | None:
        """Returns a message once a host has been slow in three consecutive exchanges, else None.

        Each slow host is reported once.
        """
        found = find_slow_host(times)
        if found is None or self._slow[-1:] not in ([], [found[0]]):
            self._slow.clear()
        if found is not None:
            self._slow.append(found[0])
        return found[1] if found is not None and len(self._slow) == 3 else None


def find_slow_host(times: dict[int, float]) -> tuple[int, str] | None:
    """Returns the process with an unusually high host time and a message about it, or None."""
    if len(times) < 2:
        return None
    slowest = max(times, key=times.__getitem__)
    others = sorted(seconds for process, seconds in times.items() if process != slowest)
    median = others[len(others) // 2]
    if times[slowest] < max(_SLOW_FACTOR * median, median + _SLOW_SECONDS):
        return None
    return slowest, (
        f"process {slowest} is slow: {times[slowest] * 1e3:.0f} ms of host time per step, "
        f"the others {median * 1e3:.0f} ms; all processes wait for it"
    )
