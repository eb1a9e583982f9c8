"""events.jsonl: the story of a run, one line for everything that happened to it. Process 0 writes.

start, resume   with what: processes, devices, mesh, versions
restart         what the launcher says ended the life before this one
killed          found at the next start: the life before ended without a word
saved, damaged  a checkpoint is on disk; one was found damaged and set aside
spike, skipped  the loss leapt; batches were left out after going back
stop, error     a signal ended it (its checkpoint is on disk); an error did
end             the last step is done
"""

import json
import os
import pathlib
import time
from typing import Any

import jax
from absl import logging

from qwen_jax.utils.jsonl import read_rows

NAME = "events.jsonl"
_LAST_WORDS = ("end", "stop", "error")
_RESTARTED_AFTER, _ATTEMPT = "QWEN_JAX_RESTARTED_AFTER", "QWEN_JAX_ATTEMPT"  # launchers say


class Events:
    """The story of one run folder."""

    def __init__(self, folder: str | os.PathLike):
        self._path = pathlib.Path(folder) / NAME
        self._writes = jax.process_index() == 0

    def log(self, event: str, **details: Any) -> None:
        """Appends one line: time (seconds since 1970), event, details (what JSON holds)."""
        if self._writes:
            record = {"time": round(time.time(), 3), "event": event, **details}
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        logging.info("%s %s", event, details or "")

    def begin(self) -> None:
        """Tells what became of the life before this one, if it could not do so itself."""
        last = self._last()
        if last is not None and last["event"] not in _LAST_WORDS:
            self.log("killed", last_event=last["event"], last_seen=self._last_seen(last["time"]))
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
        """When the life before was last known to be alive."""
        steps = _records(self._path.with_name("metrics.jsonl"))
        return max([last_event, *(record["time"] for record in steps[-1:] if "time" in record)])


def _records(path: pathlib.Path) -> list[dict]:
    """The whole lines of a JSONL file; mends a torn last one, so that the next stands alone."""
    if not path.exists():
        return []
    found = [row for _, row in read_rows(path, bad=[])]
    with open(path, "rb+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")
    return found
