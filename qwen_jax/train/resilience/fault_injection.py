"""Injects faults to test that a run survives them.

An environment variable injects faults inside a run:
QWEN_JAX_FAULTS="kill step=12 process=1; nan step=20". A fault occurs before its step is computed,
in one attempt of the run (attempt=N; default 0, the first) and in one process (process=N; default
all):

    kill      SIGKILL to itself               freeze   SIGSTOP to itself
    term      SIGTERM to itself               delay    sleeps seconds=S, also in later steps
    nan       every floating-point number of the batch is NaN
    full      no file can grow beyond bytes=B, to simulate a full disk
    corrupt   one bit of a weight is flipped for one computation of the step (without process=N:
              all processes share the weights)

Tests use these functions to inject faults from outside: flip_bit and truncate damage files;
worker_pids and unfinished_save find processes and saves to interrupt.
"""

import dataclasses
import os
import pathlib
import random
import re
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from qwen_jax.errors import ConfigError, unknown_name

VARIABLE = "QWEN_JAX_FAULTS"
KINDS = ("kill", "freeze", "term", "delay", "nan", "full", "corrupt")


@dataclasses.dataclass(frozen=True)
class Fault:
    """One scheduled fault."""

    kind: str
    step: int  # number of the affected step, counted from 1
    process: int | None = None  # index of the affected process; None: all processes
    attempt: int = 0
    seconds: float = 1.0  # length of a delay
    bytes: int = 1 << 16  # maximum file size on a "full" disk


def scheduled_faults(environ: Mapping[str, str] = os.environ) -> list[Fault]:
    """Returns the faults of this process and attempt.

    A fault is removed from the list when it occurs, except a delay, which repeats.

    Raises:
      ConfigError: QWEN_JAX_FAULTS cannot be parsed.
    """
    found = []
    for text in filter(None, map(str.strip, environ.get(VARIABLE, "").split(";"))):
        kind, *settings = text.split()
        if kind not in KINDS:
            raise unknown_name("fault", kind, KINDS, VARIABLE)
        try:
            values = dict(setting.split("=") for setting in settings)
            numbers: dict[str, Any] = {
                name: float(value) if name == "seconds" else int(value)
                for name, value in values.items()
            }
            fault = Fault(kind, **numbers)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{text!r} is not a valid fault: {error}.",
                VARIABLE,
                "write a kind and its settings, such as kill step=12 process=1.",
            ) from error
        if fault.process in (None, jax.process_index()) and (
            fault.attempt == int(environ.get("QWEN_JAX_ATTEMPT", 0))
        ):
            found.append(fault)
    return found


def before_steps(next_batch: Callable, faults: list[Fault]) -> Callable:
    """Wraps `next_batch` to inject every kind of fault except "corrupt"."""
    if not faults:
        return next_batch

    def fetch(step: int, state):
        batch = next_batch(step, state)
        for fault in [fault for fault in faults if fault.step <= step + 1]:
            if fault.kind == "delay":
                time.sleep(fault.seconds)
            elif fault.step == step + 1 and fault.kind != "corrupt":
                faults.remove(fault)
                batch = _inject(fault, batch)
        return batch

    return fetch


def in_step(train_step: Callable, faults: list[Fault]) -> Callable:
    """Wraps `train_step` to flip a bit of a weight in the steps with a "corrupt" fault."""
    pending = [fault for fault in faults if fault.kind == "corrupt"]
    if not pending:
        return train_step

    def faulty_step(state, batch):
        if pending and int(state.step) + 1 == pending[0].step:
            faults.remove(pending.pop(0))
            shardings = jax.tree.map(lambda leaf: leaf.sharding, state.params)
            state = state.replace(params=jax.jit(_flip_one, out_shardings=shardings)(state.params))
        return train_step(state, batch)

    return faulty_step


def _inject(fault: Fault, batch: Any) -> Any:
    if fault.kind in ("kill", "freeze", "term"):
        number = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP, "term": signal.SIGTERM}
        os.kill(os.getpid(), number[fault.kind])
    elif fault.kind == "full":
        import resource  # only on Unix

        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.bytes, resource.RLIM_INFINITY))
    elif fault.kind == "nan":
        return jax.tree.map(
            lambda x: x * jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else x, batch
        )
    return batch


def _flip_one(params: Any) -> Any:
    leaves, treedef = jax.tree.flatten(params)
    leaf = leaves[0]
    bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
    # Flip a mantissa bit: the value is wrong but plausible.
    flipped = bits.ravel().at[0].set(bits.ravel()[0] ^ jnp.array(1 << 5, bits.dtype))
    leaves[0] = jax.lax.bitcast_convert_type(flipped.reshape(bits.shape), leaf.dtype)
    return treedef.unflatten(leaves)


def flip_bit(folder: str | os.PathLike, rng: random.Random) -> str:
    """Flips a random bit of a random file in `folder`; returns a description of the change."""
    file = _random_file(folder, rng)
    bit = rng.randrange(8 * file.stat().st_size)
    with open(file, "r+b") as opened:
        opened.seek(bit // 8)
        byte = opened.read(1)[0] ^ (1 << bit % 8)
        opened.seek(bit // 8)
        opened.write(bytes([byte]))
    return f"bit {bit} of {file.relative_to(folder)}"


def truncate(folder: str | os.PathLike, rng: random.Random) -> str:
    """Truncates a random file in `folder` to a random size; returns a description of the change."""
    file = _random_file(folder, rng)
    size = rng.randrange(file.stat().st_size)
    os.truncate(file, size)
    return f"{file.relative_to(folder)} after {size} bytes"


def newest_checkpoint(run_dir: str | os.PathLike) -> pathlib.Path:
    """Returns the folder of a run's newest checkpoint.

    Raises:
      ConfigError: the run has no checkpoint.
    """
    folder = pathlib.Path(run_dir) / "checkpoints"
    steps = [int(path.name) for path in folder.glob("[0-9]*") if path.name.isdecimal()]
    if not steps:
        raise ConfigError("no checkpoint found.", str(folder), "wait until the run has saved one.")
    return folder / str(max(steps))


def unfinished_save(run_dir: str | os.PathLike) -> pathlib.Path | None:
    """Returns the folder of the checkpoint that the run is currently writing, or None."""
    return next(iter(pathlib.Path(run_dir).glob("checkpoints/*.saving")), None)


def worker_pids(launcher: int) -> dict[int, int]:
    """Returns {process index: pid} of the processes of a local launcher (Linux only)."""
    found = {}
    for children in pathlib.Path(f"/proc/{launcher}/task").glob("*/children"):
        for pid in map(int, children.read_text().split()):
            try:
                environ = pathlib.Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if number := re.search(r"(?:^|\0)JAX_PROCESS_ID=(\d+)", environ):
                found[int(number[1])] = pid
    return found


def _random_file(folder: str | os.PathLike, rng: random.Random) -> pathlib.Path:
    files = sorted(
        path for path in pathlib.Path(folder).rglob("*") if path.is_file() and path.stat().st_size
    )
    if not files:
        raise ConfigError(
            "the folder contains no non-empty files.",
            str(folder),
            "pass the folder of a checkpoint or of shards.",
        )
    return rng.choice(files)
