"""Save, verify, restore onto any mesh: the newest good step.

One folder per step: arrays/ (Orbax, one flat dictionary of arrays by name), meta.json (names,
shapes and dtypes of the leaves; the caller's own meta) and manifest.json (SHA-256 of the others).
All of it is written in `<step>.saving` and renamed when complete, so a folder named by a number
alone is a whole checkpoint, whenever the process was killed.
"""

import concurrent.futures
import errno
import itertools
import json
import logging as standard_logging
import os
import pathlib
import re
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from qwen_jax.checkpoint import manifest, step_folders
from qwen_jax.errors import CheckpointError
from qwen_jax.utils import tree as leaves
from qwen_jax.utils.files import sync_folder
from qwen_jax.utils.format import format_gb

META = "meta.json"
ARRAYS = "arrays"
FORMAT = 1
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FILE_BYTES = 256 << 20  # of Orbax's data files: small enough to be hashed side by side
_CHUNK_BYTES = 4 << 20  # the least that can be read of an array, whatever shards it was saved in
_READ_BYTES = 4 << 30  # in flight while restoring; otherwise all arrays are at once in host memory


class Checkpointer:
    """The checkpoints of one run. Make one per folder, in every process of the run.

    Example:
      >>> checkpoints = Checkpointer("runs/a/checkpoints", keep=3)
      >>> checkpoints.save(500, state, {"seed": 0})  # returns when the state is off the device
      >>> step, state, meta = checkpoints.restore(abstract_state)
      >>> checkpoints.close()
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        keep: int = 3,
        tell: Callable[..., None] = lambda event, **details: None,
    ):
        """Clears away what a killed process left unfinished.

        Args:
          keep: how many of the newest good steps stay on disk, 1 or more.
          tell: is told of "saved" (step, seconds) and "damaged" (step, problem, what became of it).

        Raises:
          CheckpointError: the folder cannot be made or written.
        """
        if keep < 1:
            raise CheckpointError(
                f"keep={keep} would keep no checkpoint.", "Checkpointer(keep)", "keep 1 or more."
            )
        _quiet_orbax()
        self.folder = pathlib.Path(folder).absolute()
        self.keep, self._tell = keep, tell
        self._worker = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: concurrent.futures.Future | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if _is_primary():
                step_folders.clear_unfinished(self.folder)
        except OSError as error:
            raise CheckpointError(
                f"the folder cannot be used: {error}.",
                str(self.folder),
                "choose a folder that can be written.",
            ) from error

    def check_space(self, abstract_state: Any) -> None:
        """Refuses to start a run of which not even one checkpoint fits on the disk.

        Raises:
          CheckpointError: naming the space needed and the space free.
        """
        needed, free = leaves.total_bytes(abstract_state), shutil.disk_usage(self.folder).free
        if needed > free:
            raise CheckpointError(
                f"a checkpoint takes {format_gb(needed)}, and {format_gb(free)} are free.",
                str(self.folder),
                "free some space, or save to another disk.",
            )
        if needed * (self.keep + 1 - len(self.steps())) > free:
            logging.warning(
                "%s: %s are free; keeping %d checkpoints of %s needs room for one more",
                self.folder,
                format_gb(free),
                self.keep,
                format_gb(needed),
            )

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Saves in the background; returns as soon as `state` may be donated.

        Waits for the save before this one, if it is still going on. A step that exists is replaced.

        Args:
          step: number of optimizer steps done, 0 or more.
          state: pytree of jax.Array, numpy arrays, ints and floats.
          meta: anything that JSON returns unchanged.

        Raises:
          CheckpointError: this save cannot be, or the one before it failed (its own message).
        """
        self.wait()
        newer = [other for other in self.steps() if other > step]
        if newer:
            raise CheckpointError(
                f"step {step} is older than the newest checkpoint, {newer[-1]}.",
                str(self.folder),
                "to go on from an older step, first move the newer ones away.",
            )
        arrays, text = _describe(step, state, meta)
        started = time.perf_counter()
        temporary = self.folder / f"{step}.saving"
        try:
            if _is_primary() and temporary.exists():
                shutil.rmtree(temporary)
            with _context():
                response = _orbax().save_async(temporary / ARRAYS, arrays)
        except Exception as error:
            raise self._failure(step, error) from error
        self._pending = self._worker.submit(self._commit, step, response, text, started)

    def wait(self) -> None:
        """Returns when the save in the background is on disk, hashed and committed.

        Raises:
          CheckpointError: it failed; what is kept is named.
        """
        if self._pending is None:
            return
        # A process that could not save says so at once and leaves: the others may be waiting for it
        # within Orbax, and its launcher takes them down.
        try:
            self._pending.result()
        except CheckpointError:
            self._pending = None
            raise
        self._pending = None  # not when a signal interrupted the waiting

    def close(self) -> None:
        """Waits for this process's part of the last save, without asking the others how theirs
        went: they may be gone. Raises as `wait` does."""
        pending, self._pending = self._pending, None
        self._worker.shutdown()
        if pending is not None:
            pending.result()

    def steps(self) -> list[int]:
        """All complete steps, oldest first (their contents are verified by `restore`)."""
        return [
            step
            for step in step_folders.numbered(self.folder)
            if (self.folder / str(step) / manifest.NAME).exists()
        ]

    def restore(
        self, abstract_state: Any, *, step: int | None = None
    ) -> tuple[int, Any, dict[str, Any]] | None:
        """The newest good step, every file of it verified. Damaged ones are renamed and logged.

        Args:
          abstract_state: pytree of jax.ShapeDtypeStruct; the arrays come back with their
            shardings, whatever mesh they were saved from (None: the first device).
          step: this one and no other.

        Returns:
          (step, state, meta), or None when there is no checkpoint at all.

        Raises:
          CheckpointError: `step` is missing or damaged; all steps are damaged; or the state and
            the checkpoint differ in names, shapes or dtypes, all of which are listed.
        """
        self.wait()
        chosen = _choose(self.folder, step, set_aside=True, tell=self._tell)
        if chosen is None:
            return None
        state, meta = _load(self.folder / str(chosen), abstract_state)
        return chosen, state, meta

    def _commit(self, step: int, response: Any, text: str, started: float) -> None:
        """The background part: waits for Orbax, hashes, renames, deletes what is too old."""
        temporary, final = self.folder / f"{step}.saving", self.folder / str(step)
        try:
            response.result()  # of all processes
            if not _is_primary():
                return
            (temporary / META).write_text(text, encoding="utf-8")
            manifest.write(temporary)
            if final.exists():
                final.rename(self.folder / f"{step}.replaced")
            temporary.rename(final)
            sync_folder(self.folder)
            self._tell("saved", step=step, seconds=round(time.perf_counter() - started, 3))
        except Exception as error:
            failure = self._failure(step, error)
            logging.error(
                "%s", failure
            )  # at once; the training thread hears of it at its next call
            if _is_primary():
                shutil.rmtree(temporary, ignore_errors=True)
            raise failure from error
        try:
            self._delete_old(step)
        except OSError as error:
            logging.warning("%s: an old checkpoint could not be deleted: %s", self.folder, error)

    def _delete_old(self, newest: int) -> None:
        shutil.rmtree(self.folder / f"{newest}.replaced", ignore_errors=True)
        good = [
            step
            for step in self.steps()
            if not manifest.problems(self.folder / str(step), contents=False)
        ]
        if newest not in good:  # cannot be; but then nothing older may go
            return
        for step in good[: -self.keep]:
            # Renamed first: half a checkpoint must not have a checkpoint's name.
            doomed = (self.folder / str(step)).rename(self.folder / f"{step}.deleting")
            shutil.rmtree(doomed)

    def _failure(self, step: int, error: Exception) -> CheckpointError:
        # Orbax gives the system's error number in the text of a ValueError.
        code = re.search(r"os_error_code='(\d+)'", str(error))
        number = int(code[1]) if code else getattr(error, "errno", None)
        kept = ", ".join(map(str, self.steps())) or "none"
        if number in _DISK_FULL:
            return CheckpointError(
                f"the disk is full ({os.strerror(number)}): step {step} is not saved.",
                str(self.folder),
                f"free some space and start again. Kept steps: {kept}.",
            )
        return CheckpointError(
            f"step {step} is not saved: {type(error).__name__}: {str(error)[:500]}",
            str(self.folder),
            f"mend the cause and start again. Kept steps: {kept}.",
        )


Piece = tuple[tuple[slice, ...], np.ndarray]


def open_params(
    folder: str | os.PathLike,
    abstract_params: Any,
    *,
    step: int | None = None,
    under: str = "params",
) -> tuple[int, Callable[[str, tuple[slice, ...]], Iterator[Piece]]]:
    """The parameters alone, of the newest good step, to be read piece by piece.

    Nothing in the folder is changed, so a run may be going on in it.

    Args:
      abstract_params: what the saved state has as `.params`; see Checkpointer.restore.
      under: another place in the state: "policy.params", say.

    Returns:
      The step, and a function (name, index) -> the pieces that make up the parameter
      "layers.mlp.w_up", say, within the bounds `index`: each with its place in array[index], no
      larger than a chunk of the file (a few megabytes), whatever the shards that were saved.

    Raises:
      CheckpointError: as Checkpointer.restore; or there is no checkpoint.
    """
    folder = pathlib.Path(folder).absolute()
    chosen = _choose(folder, step, set_aside=False)
    if chosen is None:
        raise CheckpointError(
            "there is no checkpoint here.",
            str(folder),
            "pass the `checkpoints` folder of a run that has saved one.",
        )
    path = folder / str(chosen)
    _check_leaves(path, leaves.named(abstract_params, under), under)

    def pieces(name: str, index: tuple[slice, ...]) -> Iterator[Piece]:
        store = _open_array(path / ARRAYS, f"{under}.{name}")
        axes = [
            _cut(part, step)
            for part, step in zip(index, store.chunk_layout.read_chunk.shape, strict=True)
        ]
        for cell in itertools.product(*axes):
            yield (
                tuple(
                    slice(part.start - whole.start, part.stop - whole.start)
                    for part, whole in zip(cell, index, strict=True)
                ),
                store[cell].read().result(),
            )

    return chosen, pieces


def _cut(part: slice, step: int) -> list[slice]:
    """`part` cut at the multiples of `step`."""
    edges = [part.start, *range(part.start // step * step + step, part.stop, step), part.stop]
    return [slice(*pair) for pair in itertools.pairwise(edges)]


def _open_array(folder: pathlib.Path, name: str):
    """One array as Orbax stores it. Orbax itself reads whole shards, all of an array at once."""
    import tensorstore  # what Orbax is built on

    database = {"driver": "ocdbt", "base": f"file://{folder}/state/", "path": f"{name}/"}
    return tensorstore.open({"driver": "zarr3", "kvstore": database}, read=True).result()


def _choose(
    folder: pathlib.Path,
    step: int | None,
    *,
    set_aside: bool,
    tell: Callable[..., None] = lambda event, **details: None,
) -> int | None:
    """The newest good step (or `step`), found by process 0, the same one in every process."""
    chosen, problem = -1, None
    if _is_primary():
        try:
            chosen = _newest_good(folder, step, set_aside, tell)
        except CheckpointError as error:
            chosen, problem = -2, error
    if jax.process_count() > 1:
        chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
    if chosen == -2:
        raise problem or CheckpointError(
            "process 0 found no good checkpoint.", str(folder), "see its message."
        )
    return None if chosen == -1 else chosen


def _newest_good(
    folder: pathlib.Path, step: int | None, set_aside: bool, tell: Callable[..., None]
) -> int:
    present = step_folders.numbered(folder)
    if step is not None and step not in present:
        raise CheckpointError(
            f"there is no checkpoint of step {step}.",
            str(folder),
            "choose one of "
            f"{', '.join(map(str, present)) or 'none: the folder has no checkpoint'}.",
        )
    reports = []
    for candidate in [step] if step is not None else reversed(present):
        path = folder / str(candidate)
        bad = manifest.problems(path)
        if not bad and _read_description(path)["step"] != candidate:
            bad = [f"it holds step {_read_description(path)['step']}"]
        if not bad:
            return candidate
        reports.append(f"step {candidate}: {'; '.join(bad)}")
        moved = "left as it is"
        if set_aside and step is None:
            moved = f"set aside as {step_folders.set_aside(path)}"
        logging.error("%s: damaged checkpoint, %s; %s", folder, reports[-1], moved)
        tell("damaged", step=candidate, problem="; ".join(bad)[:500], now=moved)
    if reports:
        raise CheckpointError(
            f"no good checkpoint. {'. '.join(reports)}.",
            str(folder),
            "restore the files from a copy; or begin again in an empty folder."
            if step is None
            else "leave the step out to get the newest good one.",
        )
    return -1


def _describe(step: int, state: Any, meta: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The arrays by name, and the text of meta.json:
    everything about them and the caller's meta."""
    arrays, types, scalars, strange = {}, {}, {}, []
    for name, leaf in leaves.named(state):
        if type(leaf) in (int, float, bool):
            scalars[name] = leaf
        elif isinstance(leaf, (jax.Array, np.ndarray, np.generic)) and not jax.dtypes.issubdtype(
            leaf.dtype, jax.dtypes.prng_key
        ):
            arrays[name] = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        else:
            strange.append(f"{name} ({type(leaf).__name__})")
        types[name] = leaves.type_of(leaf)
    if strange:
        raise CheckpointError(
            f"leaves that are neither arrays nor numbers: {', '.join(strange)}.",
            "save(state)",
            "save a key as jax.random.key_data, text in meta.",
        )
    record = {"format": FORMAT, "step": step, "meta": meta, "leaves": types, "scalars": scalars}
    try:
        text = json.dumps(record, indent=1) + "\n"
        exact = json.loads(text)["meta"] == meta
    except (TypeError, ValueError):
        exact = False
    if not exact:
        raise CheckpointError(
            f"JSON does not return this unchanged: {meta!r}.",
            "save(meta)",
            "use dicts with text keys, lists, text, numbers, true, false, null.",
        )
    return arrays, text


def _load(path: pathlib.Path, abstract: Any) -> tuple[Any, dict[str, Any]]:
    """The leaves of `abstract`, and the caller's meta."""
    record = _read_description(path)
    named = leaves.named(abstract)
    _check_leaves(path, named, "")
    wanted = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_sharding(leaf))
        for name, leaf in named
        if name not in record["scalars"]
    }
    with _context(largest=max(map(leaves.bytes_of, wanted.values()), default=0)):
        arrays = _orbax().load(path / ARRAYS, wanted) if wanted else {}
    values = [record["scalars"].get(name, arrays.get(name)) for name, _ in named]
    return jax.tree.unflatten(jax.tree.structure(abstract), values), record["meta"]


def _check_leaves(path: pathlib.Path, named: list[tuple[str, Any]], prefix: str) -> None:
    """Raises with every difference: Orbax itself would cast a dtype without a word."""
    wanted = {name: leaves.type_of(leaf) for name, leaf in named}
    saved = {
        name: kind
        for name, kind in _read_description(path)["leaves"].items()
        if not prefix or name == prefix or name.startswith(prefix + ".")
    }
    lines = [f"{name}: not in the checkpoint" for name in wanted if name not in saved]
    lines += [f"{name}: in the checkpoint alone" for name in saved if name not in wanted]
    lines += [
        f"{name}: {leaves.kind_of(saved[name])} in the checkpoint, {leaves.kind_of(kind)} wanted"
        for name, kind in wanted.items()
        if name in saved and saved[name] != kind
    ]
    if lines:
        listed = "\n    ".join(sorted(lines))
        raise CheckpointError(
            f"the checkpoint is of another model or optimizer; {len(lines)} leaves differ:\n"
            f"    {listed}",
            str(path),
            "use the settings it was saved with (the run's config.json).",
        )


def _read_description(path: pathlib.Path) -> dict[str, Any]:
    record = json.loads((path / META).read_text(encoding="utf-8"))
    if record["format"] != FORMAT:
        raise CheckpointError(
            f"its format is {record['format']}; this version knows {FORMAT}.",
            str(path),
            "use the version of qwen_jax that wrote it.",
        )
    return record


def _sharding(leaf: Any) -> jax.sharding.Sharding:
    return getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(
        jax.local_devices()[0]
    )


def _is_primary() -> bool:
    return jax.process_index() == 0


def _orbax():
    from orbax.checkpoint import v1  # a second of importing, for those who save or load

    return v1


def _context(largest: int = 0):
    """How Orbax writes and reads here. largest: bytes of the largest array, which must fit."""
    context = _orbax().Context()
    # Weights are noise to a compressor: half the speed for nothing.
    context.array.saving.use_compression = False
    context.array.saving.ocdbt_target_data_file_size = _FILE_BYTES
    context.array.saving.storage_options.chunk_byte_size = _CHUNK_BYTES
    context.memory.read_concurrent_bytes = max(_READ_BYTES, 2 * largest)
    context.pytree.loading.partial_load = True  # names are compared in _check_leaves
    return context


def _quiet_orbax() -> None:
    """Orbax tells of every array at INFO level and warns of what is meant here."""
    for name in ("orbax", "orbax.checkpoint"):
        standard_logging.getLogger(name).setLevel(standard_logging.ERROR)
