"""Writes scalars as TensorBoard event files, without a thread and without failing the run.

tensorboardX's own writer has a thread that dies on a full disk; its queue then blocks the run.
"""

import contextlib
import itertools
import math
import os
import pathlib
import socket
import struct
import time
from typing import Any

from qwen_jax.utils.best_effort import Losses, RecordFile

_VERSION = "brain.Event:2"


class EventFiles:
    """The event files of one run folder. A file is created with its first record.

    Args:
      purge_step: number of completed steps when the run resumed: TensorBoard hides what an earlier
        attempt wrote for this step and later ones. None: a new run.
    """

    def __init__(self, folder: pathlib.Path, losses: Losses, *, purge_step: int | None):
        self._folder, self._losses, self._purge_step = folder, losses, purge_step
        self._file: RecordFile | None = None
        self._head = b""  # what the file starts with, until it has been written

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes the finite values of a step."""
        event_pb2, summary_pb2 = _protos()
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        if self._file is None or self._file.torn:  # readers stop at a torn record
            self._file = self._begin(event_pb2)
        summary = summary_pb2.Summary(
            value=[
                summary_pb2.Summary.Value(tag=name, simple_value=value)
                for name, value in finite.items()
            ]
        )
        event = event_pb2.Event(wall_time=time.time(), step=step, summary=summary)
        if self._file.append(self._head + _record(event)):
            self._head = b""

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _begin(self, event_pb2: Any) -> RecordFile:
        """Begins the next file. Only the first hides what an earlier attempt wrote."""
        self.close()
        prefix = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        path = next(  # TensorBoard reads them in the order of their names
            path
            for number in itertools.count()
            if not (path := self._folder / f"{prefix}.{number:03}").exists()
        )
        if not self._head:
            now, step = time.time(), self._purge_step
            self._head = _record(event_pb2.Event(wall_time=now, file_version=_VERSION))
            if step is not None:
                session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
                self._head += _record(
                    event_pb2.Event(wall_time=now, step=step, session_log=session)
                )
            self._purge_step = None  # the next file continues this one
        with contextlib.suppress(OSError):  # the file reports it
            self._folder.mkdir(parents=True, exist_ok=True)
        return RecordFile(path, self._losses, separator=b"", name="TensorBoard")


def _protos() -> tuple[Any, Any]:
    """Returns the modules of the messages, whose classes type checkers do not see."""
    from tensorboardX.proto import event_pb2, summary_pb2  # importing it takes 0.3 s

    return event_pb2, summary_pb2


def _record(event) -> bytes:
    """Encodes an event in the TFRecord format: length and data, each with its checksum."""
    from tensorboardX.record_writer import masked_crc32c

    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    checksums = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
    return length + next(checksums) + data + next(checksums)
