"""Save, verify, restore onto any mesh: the newest good step.

One folder per step: arrays/ (Orbax, one flat dictionary of arrays by name), meta.json (names,
shapes and dtypes of the leaves; the caller's own meta) and manifest.json (SHA-256 of the others).
All of it is written in `<step>.saving` and renamed when complete, so a folder named by a number
alone is a whole checkpoint, whenever the process was killed.
"""

import concurrent.futures
import errno
import os
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import logging

from qwen_jax import compat
from qwen_jax.checkpoint import arrays, description, manifest, newest_good, step_folders
from qwen_jax.errors import CheckpointError
from qwen_jax.utils import tree as leaves
from qwen_jax.utils.files import sync_folder
from qwen_jax.utils.format import format_gb

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
        log: Callable[..., None] = lambda event, **details: None,
    ):
        """Clears away what a killed process left unfinished.

        Args:
          keep: how many of the newest good steps stay on disk, 1 or more.
          log: is told of "saved" (step, seconds) and "damaged" (step, problem, what became of it).

        Raises:
          CheckpointError: the folder cannot be made or written.
        """
        if keep < 1:
            raise CheckpointError(
                f"keep={keep} would keep no checkpoint.", "Checkpointer(keep)", "keep 1 or more."
            )
        arrays.quiet()
        self.folder = pathlib.Path(folder).absolute()
        self.keep, self._log = keep, log
        self._worker = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: concurrent.futures.Future | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
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
        by_name, text = description.describe(step, state, meta)
        started = time.perf_counter()
        temporary = self.folder / f"{step}.saving"
        try:
            if jax.process_index() == 0 and temporary.exists():
                shutil.rmtree(temporary)
            response = arrays.save_async(temporary, by_name)
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
        chosen = newest_good.choose(self.folder, step, set_aside=True, log=self._log)
        if chosen is None:
            return None
        state, meta = _load(self.folder / str(chosen), abstract_state)
        return chosen, state, meta

    def _commit(self, step: int, response: Any, text: str, started: float) -> None:
        """The background part: waits for Orbax, hashes, renames, deletes what is too old."""
        temporary, final = self.folder / f"{step}.saving", self.folder / str(step)
        try:
            response.result()  # of all processes
            if jax.process_index() != 0:
                return
            (temporary / description.NAME).write_text(text, encoding="utf-8")
            manifest.write(temporary)
            if final.exists():
                final.rename(self.folder / f"{step}.replaced")
            temporary.rename(final)
            sync_folder(self.folder)
            self._log("saved", step=step, seconds=round(time.perf_counter() - started, 3))
        except Exception as error:
            failure = self._failure(step, error)
            logging.error(
                "%s", failure
            )  # at once; the training thread hears of it at its next call
            if jax.process_index() == 0:
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
        number = compat.os_error_code(error) or getattr(error, "errno", None)
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


def _load(path: pathlib.Path, abstract: Any) -> tuple[Any, dict[str, Any]]:
    """The leaves of `abstract`, and the caller's meta."""
    record = description.read(path)
    named = leaves.named(abstract)
    description.check_leaves(path, named, "")
    scalars = record["scalars"]
    found = arrays.load(path, {name: leaf for name, leaf in named if name not in scalars})
    values = [scalars.get(name, found.get(name)) for name, _ in named]
    return jax.tree.unflatten(jax.tree.structure(abstract), values), record["meta"]
