"""Which host is slow: every process tells process 0 its own time per step.

All steps take as long as the slowest host, everywhere; what differs is how much of it a host spends
by itself (waiting for data, starting the step) and how much waiting for the devices. The figures go
through JAX's coordination service, from host to host: no device takes part.
"""

import json

import jax

from qwen_jax.parallel import distributed

_FOLDER = "qwen_jax/host_times"
_SLOWER = 3.0  # than the median of the others, and
_SECONDS = 0.02  # by at least so much


class HostTimes:
    """The mean of this host's own seconds per step, and in process 0 those of all."""

    def __init__(self):
        self._own: list[float] = []
        self._slow: list[int] = []  # the one that stood out, exchange after exchange

    def add(self, seconds: float, device_wait: float) -> None:
        """One step: all of it, and what of it the host waited for its devices."""
        self._own.append(max(seconds - device_wait, 0.0))

    def exchange(self) -> dict[int, float]:
        """Tells this host's mean since the last call; in process 0, the latest of every process."""
        if not self._own or not distributed.is_distributed():
            return {}
        mean = sum(self._own) / len(self._own)
        self._own.clear()
        distributed.kv_put(f"{_FOLDER}/{jax.process_index()}", json.dumps(mean))
        if jax.process_index():
            return {}
        return {
            int(name.rpartition("/")[2]): json.loads(value)
            for name, value in distributed.kv_list(_FOLDER)
        }

    def slow(self, times: dict[int, float]) -> str | None:
        """A sentence when the same host has stood out three times in a row; once, then silence."""
        found = find_slow_host(times)
        if found is None or self._slow[-1:] not in ([], [found[0]]):
            self._slow.clear()
        if found is not None:
            self._slow.append(found[0])
        return found[1] if found is not None and len(self._slow) == 3 else None


def find_slow_host(times: dict[int, float]) -> tuple[int, str] | None:
    """The host whose own time stands out, and a sentence about it."""
    if len(times) < 2:
        return None
    slowest = max(times, key=times.__getitem__)
    others = sorted(seconds for process, seconds in times.items() if process != slowest)
    median = others[len(others) // 2]
    if times[slowest] < max(_SLOWER * median, median + _SECONDS):
        return None
    return slowest, (
        f"process {slowest} needs {times[slowest] * 1e3:.0f} ms of its own per step, "
        f"the others {median * 1e3:.0f} ms: all wait for it"
    )
