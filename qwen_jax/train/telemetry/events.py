"""events.jsonl: the history of a run, one line per event. Process 0 writes it.

start, resume   an attempt starts: step, processes, devices, mesh
restart         why the previous attempt ended, according to the launcher
killed          logged at the next start: the previous attempt ended without a final event
saved, damaged  a checkpoint was saved; a checkpoint is corrupted and was set aside
spike, skipped  the loss spiked; batches were skipped after a rollback
restarted_from_scratch  the files of the earlier run were moved: moved_to
changed         a setting differs from the last attempt's: name, old, new, step
moved, input    an input has another path with the same content; other content that may change
inputs          a run of an earlier version recorded its inputs
versions        versions of packages differ from the last attempt's
slow_host       a host takes much more time per step than the others
stop, error     a signal stopped the run (its state has been saved); an error stopped the run
end             the last step is complete
"""

import json
import os
import pathlib
import time
from typing import Any

import jax
from absl import logging

from qwen_jax.errors import DataError
from qwen_jax.utils.best_effort import Losses, RecordFile
from qwen_jax.utils.jsonl import read_rows

NAME = "events.jsonl"
_FINAL_EVENTS = ("end", "stop", "error")
_RESTARTED_AFTER, _ATTEMPT = "QWEN_JAX_RESTARTED_AFTER", "QWEN_JAX_ATTEMPT"  # set by launchers


class Events:
    """The event log of one run folder."""

    def __init__(self, folder: str | os.PathLike):
        self._path = pathlib.Path(folder) / NAME
        self._writes = jax.process_index() == 0
        self.losses = Losses()  # of this file and the run's other logs
        self._file = RecordFile(self._path, self.losses)

    def log(self, event: str, **details: Any) -> None:
        """Appends one line: time (seconds since the epoch), event, JSON-serializable details."""
        if self._writes:
            record = {"time": round(time.time(), 3), "event": event, **details}
            self._file.append(json.dumps(record).encode() + b"\n")
        logging.info("%s %s", event, details or "")

    def close(self) -> None:
        """Closes the file, and reports what the run's logs have lost."""
        self._file.close()
        self.losses.report()

    def log_previous_attempt(self) -> None:
        """Logs how the previous attempt ended if it could not log that itself."""
        last = self._last()
        if last is not None and last.get("event") not in _FINAL_EVENTS:
            seen = self._last_seen(last.get("time", 0.0))
            self.log("killed", last_event=last.get("event"), last_seen=seen)
        if os.environ.get(_RESTARTED_AFTER):
            self.log(
                "restart",
                attempt=int(os.environ.get(_ATTEMPT, 1)),
                reason=os.environ[_RESTARTED_AFTER],
            )

    def _last(self) -> dict | None:
        records = _records(self._path) if self._writes else []
        return records[-1] if records else None

    def _last_seen(self, last_event: float) -> float:
        """Returns the time of the previous attempt's last event or metrics record."""
        steps = _records(self._path.with_name("metrics.jsonl"))
        return max([last_event, *(record["time"] for record in steps[-1:] if "time" in record)])


def _records(path: pathlib.Path) -> list[dict]:
    """Returns the records of a JSONL file; [] if it does not exist or cannot be read."""
    try:
        return [row for _, row in read_rows(path, bad=[])] if path.exists() else []
    except (OSError, DataError):
        return []
