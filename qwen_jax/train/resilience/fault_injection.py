"""Faults on purpose, to see a run survive them.

Inside of a run, by the environment: QWEN_JAX_FAULTS="kill step=12 process=1; nan step=20". A fault
comes before its step is computed, in one life of the run (attempt=0, the first, unless another is
named) and in one process (process=N; all without it):

    kill      SIGKILL to itself               freeze   SIGSTOP to itself
    term      SIGTERM to itself               delay    sleeps seconds=S at every step from there on
    nan       every number of the batch that can be is NaN
    full      no file grows beyond bytes=B any more, as on a full disk
    corrupt   one bit of a weight flips for one computation of that step (in no one process: the
              weights are of all)

From outside, on files and processes: flip_bit, truncate, worker_pids, unfinished_save.
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
    """One planned fault."""

    kind: str
    step: int  # the number of the step that it spoils, from 1
    process: int | None = None
    attempt: int = 0
    seconds: float = 1.0  # of a delay
    bytes: int = 1 << 16  # of a full disk


def scheduled_faults(environ: Mapping[str, str] = os.environ) -> list[Fault]:
    """The faults that this process is to commit in this life;
    each comes once and is then taken out.

    Raises:
      ConfigError: the text is none of faults.
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
                f"{text!r} is no fault: {error}.", VARIABLE, "write kill step=12 process=1, say."
            ) from error
        if fault.process in (None, jax.process_index()) and (
            fault.attempt == int(environ.get("QWEN_JAX_ATTEMPT", 0))
        ):
            found.append(fault)
    return found


def before_steps(next_batch: Callable, faults: list[Fault]) -> Callable:
    """`next_batch`, which commits the faults that are not of the step itself."""
    if not faults:
        return next_batch

    def fetch(step: int, state):
        batch = next_batch(step, state)
        for fault in [fault for fault in faults if fault.step <= step + 1]:
            if fault.kind == "delay":
                time.sleep(fault.seconds)
            elif fault.step == step + 1 and fault.kind != "corrupt":
                faults.remove(fault)
                batch = _commit(fault, batch)
        return batch

    return fetch


def in_step(train_step: Callable, faults: list[Fault]) -> Callable:
    """`train_step`, whose weights have a bit flipped in the one computation that is to be wrong."""
    left = [fault for fault in faults if fault.kind == "corrupt"]
    if not left:
        return train_step

    def stepped(state, batch):
        if left and int(state.step) + 1 == left[0].step:
            faults.remove(left.pop(0))
            shardings = jax.tree.map(lambda leaf: leaf.sharding, state.params)
            state = state.replace(params=jax.jit(_flip_one, out_shardings=shardings)(state.params))
        return train_step(state, batch)

    return stepped


def _commit(fault: Fault, batch: Any) -> Any:
    if fault.kind in ("kill", "freeze", "term"):
        number = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP, "term": signal.SIGTERM}
        os.kill(os.getpid(), number[fault.kind])
    elif fault.kind == "full":
        import resource  # Unix alone

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
    # The highest bit of the mantissa, or nearby: a number that is plausible and wrong.
    flipped = bits.ravel().at[0].set(bits.ravel()[0] ^ jnp.array(1 << 5, bits.dtype))
    leaves[0] = jax.lax.bitcast_convert_type(flipped.reshape(bits.shape), leaf.dtype)
    return treedef.unflatten(leaves)


def flip_bit(folder: str | os.PathLike, draw: random.Random) -> str:
    """Flips one bit of one file below `folder`; says which."""
    file = _any_file(folder, draw)
    bit = draw.randrange(8 * file.stat().st_size)
    with open(file, "r+b") as opened:
        opened.seek(bit // 8)
        byte = opened.read(1)[0] ^ (1 << bit % 8)
        opened.seek(bit // 8)
        opened.write(bytes([byte]))
    return f"bit {bit} of {file.relative_to(folder)}"


def truncate(folder: str | os.PathLike, draw: random.Random) -> str:
    """Cuts one file below `folder` off somewhere; says which."""
    file = _any_file(folder, draw)
    size = draw.randrange(file.stat().st_size)
    os.truncate(file, size)
    return f"{file.relative_to(folder)} after {size} bytes"


def newest_checkpoint(run_dir: str | os.PathLike) -> pathlib.Path:
    """The folder of a run's newest checkpoint.

    Raises:
      ConfigError: there is none.
    """
    folder = pathlib.Path(run_dir) / "checkpoints"
    steps = [int(path.name) for path in folder.glob("[0-9]*") if path.name.isdecimal()]
    if not steps:
        raise ConfigError("there is no checkpoint here.", str(folder), "let the run save one.")
    return folder / str(max(steps))


def unfinished_save(run_dir: str | os.PathLike) -> pathlib.Path | None:
    """The checkpoint that is being written at this moment."""
    return next(iter(pathlib.Path(run_dir).glob("checkpoints/*.saving")), None)


def worker_pids(launcher: int) -> dict[int, int]:
    """The processes that a local launcher started: their number -> pid (Linux)."""
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


def _any_file(folder: str | os.PathLike, draw: random.Random) -> pathlib.Path:
    files = sorted(
        path for path in pathlib.Path(folder).rglob("*") if path.is_file() and path.stat().st_size
    )
    if not files:
        raise ConfigError(
            "there is no file with anything in it.",
            str(folder),
            "name a checkpoint or a folder of shards.",
        )
    return draw.choice(files)
