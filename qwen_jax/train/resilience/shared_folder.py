"""Checks that all processes of a run see one run folder, before they compile anything.

Process 0 writes config.json and manifests, every process writes its part of a checkpoint. On
folders that only have the same name, a checkpoint would lack the parts of the other hosts.
"""

import json
import os
import pathlib
import socket
import time
import uuid

import jax

from qwen_jax.errors import ConfigError, QwenJaxError, UnreadableError
from qwen_jax.parallel import distributed

_SEEN_SECONDS = 60  # for a network file system to show a new file
_FOLDER = "qwen_jax/shared"


def check(run_dir: str, *, resumes: bool) -> None:
    """Raises an error in all processes if one of them does not see what process 0 writes.

    A bucket (gs://, s3://) is the same everywhere. All processes must call it.

    Args:
      run_dir: folder of the run, which process 0 has made.
      resumes: in process 0, whether the run has saved before.

    Raises:
      ConfigError: the folder of a new run is not shared; names the hosts and the path.
      UnreadableError: the same for a run that resumes, whose folder was shared: it is probably not
        mounted yet. Launchers restart the run.
    """
    if jax.process_count() == 1 or "://" in run_dir:
        return
    folder, process = pathlib.Path(run_dir), jax.process_index()
    name = f".shared-{uuid.uuid4().hex}"
    if process == 0:
        (folder / name).write_text(socket.gethostname(), encoding="utf-8")
    try:
        # The broadcast comes after the write, and the removal after the barrier.
        name, resumes = json.loads(distributed.broadcast(json.dumps([name, resumes])))
        problem = _problem(folder, name)
        value = [socket.gethostname(), problem]
        distributed.kv_put(f"{_FOLDER}/{name}/{process}", json.dumps(value))
        distributed.barrier(f"shared folder {name}")
    finally:
        if process == 0:
            (folder / name).unlink(missing_ok=True)
    found = {
        int(key.rpartition("/")[2]): json.loads(value)
        for key, value in distributed.kv_list(f"{_FOLDER}/{name}")
    }
    if error := _error(folder, found, resumes):
        raise error


def _problem(folder: pathlib.Path, name: str) -> str:
    """Returns why this process cannot use the folder, or ""."""
    deadline = time.monotonic() + _SEEN_SECONDS
    while not os.path.exists(folder / name):
        if time.monotonic() > deadline:
            return "does not see what process 0 writes"
        time.sleep(0.2)
        if not folder.exists():
            return "does not have this folder"
    own = folder / f"{name}-{jax.process_index()}"
    try:
        own.write_bytes(b"")
        own.unlink()
    except OSError as error:
        return f"cannot write to it ({error.strerror})"
    return ""


def _error(
    folder: pathlib.Path, found: dict[int, tuple[str, str]], resumes: bool
) -> QwenJaxError | None:
    """Returns the error that names every host with a problem, or None."""
    bad = [(process, *each) for process, each in sorted(found.items()) if each[1]]
    if not bad:
        return None
    shown = "; ".join(f"{host} (process {process}) {problem}" for process, host, problem in bad[:8])
    more = f"; and {len(bad) - 8} more" if len(bad) > 8 else ""
    kind = UnreadableError if resumes else ConfigError
    return kind(
        f"not shared: {shown}{more}. Process 0 is on {found[0][0]}.",
        f"run_dir={folder.absolute()}",
        "mount the same storage there on every host.",
    )
