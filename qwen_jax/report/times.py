"""Where the time of a run went, over all its attempts, from metrics.jsonl and events.jsonl.

An attempt records its seconds by kind with every logged step (train/telemetry/goodput.py). What
came after its last record is known from its events: an evaluation, a save, or steps that were lost.
"""

import itertools
import math
from typing import NamedTuple

from qwen_jax.report.records import is_number

DOWN = "down"  # between attempts; all other kinds are parts of an attempt
_FINAL = ("end", "stop", "error")
_OF_THE_NEXT = ("killed", "restart")  # logged by the next attempt, before its start


class Attempt(NamedTuple):
    """One attempt: the Unix times between which it ran, and its seconds by kind.

    The seconds add up to end - start.
    """

    start: float
    end: float
    seconds: dict[str, float]


def attempts(records: list[dict], events: list[dict]) -> list[Attempt]:
    """Returns the attempts of a run that have started, in order."""
    found: list[Attempt] = []
    starts = sorted(
        event["time"]
        for event in events
        if event.get("event") in ("start", "resume") and "time" in event
    )
    for start, stop in itertools.pairwise([-math.inf, *starts, math.inf]):
        rows = [row for row in records if "time" in row and start <= row["time"] < stop]
        if math.isinf(start):  # records whose start is not in the events
            if not rows:
                continue
            start = rows[0]["time"]
        last, lost = _last_sign(start, stop, events)
        last = max([last, *(row["time"] for row in rows)])
        timed = [row for row in rows if "time/train" in row]
        seconds = _seconds(timed[-1]) if timed else {}
        tail = "lost" if lost else "other"
        seconds[tail] = seconds.get(tail, 0.0) + last - (timed[-1]["time"] if timed else start)
        found.append(Attempt(last - sum(seconds.values()), last, seconds))
    return found


def breakdown(of: list[Attempt]) -> dict[str, float]:
    """Returns the seconds by kind of all attempts, and those between them as `down`.

    Without `down`, they add up to wall_seconds.
    """
    totals: dict[str, float] = {}
    for attempt in of:
        for kind, seconds in attempt.seconds.items():
            totals[kind] = totals.get(kind, 0.0) + seconds
    if len(of) > 1:
        totals[DOWN] = sum(
            max(after.start - before.end, 0.0) for before, after in itertools.pairwise(of)
        )
    return totals


def wall_seconds(of: list[Attempt]) -> float | None:
    """Returns the seconds of all attempts, without the time between them; None: no attempt."""
    return sum(attempt.end - attempt.start for attempt in of) if of else None


def _seconds(row: dict) -> dict[str, float]:
    return {
        name.removeprefix("time/"): float(value)
        for name, value in row.items()
        if name.startswith("time/") and is_number(value)
    }


def _last_sign(start: float, stop: float, events: list[dict]) -> tuple[float, bool]:
    """Returns the time of an attempt's last event, and whether it may have lost steps.

    The next attempt deletes the records of lost steps, and its event "killed" says when the last
    one was written.
    """
    last = start
    for event in events:
        if not start <= event.get("time", -math.inf) < stop:
            continue
        kind = event.get("event")
        seen = event.get("last_seen", last)
        if kind == "killed" and is_number(seen):
            return (max(last, seen) if seen < stop else last), True
        if kind in _OF_THE_NEXT:
            return last, True
        last = event["time"]
        if kind in _FINAL:
            return last, kind == "error"
    return last, False
