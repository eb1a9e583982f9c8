"""Saves and verifies checkpoints, and restores the latest valid step onto any mesh.

Each step has a folder with arrays/ (Orbax, one flat dictionary of arrays by name), meta.json
(names, shapes and dtypes of the leaves; the caller's metadata) and manifest.json (SHA-256 of the
other files). All files are written to `<step>.saving`, which is read back and then renamed. A
folder whose name is a number is therefore always a complete checkpoint, even if the process was
killed. Another process may read a step while the run saves; the step is deleted later then.
"""

import concurrent.futures
import errno
import itertools
import os
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import logging

from qwen_jax import compat
from qwen_jax.checkpoint import arrays, description, manifest, newest_good, step_folders, step_lock
from qwen_jax.checkpoint.plain_path import PlainPath
from qwen_jax.checkpoint.shared_hashing import HashTogether
from qwen_jax.checkpoint.unreadable import exists
from qwen_jax.errors import CheckpointError, DiskFullError
from qwen_jax.utils import tree as leaves
from qwen_jax.utils.files import more_space, sync_folder
from qwen_jax.utils.format import format_gb

_saves = itertools.count()  # the same in all processes: each save has a round of hashing
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Checkpointer:
    """The checkpoints of one run. Create one instance per folder, in every process of the run.

    Example:
      >>> checkpoints = Checkpointer("runs/a/checkpoints", keep=3)
      >>> checkpoints.save(500, state, {"seed": 0})  # returns when the state may be donated
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
        """Deletes unfinished checkpoints left by killed processes.

        Args:
          keep: number of latest valid steps to keep, 1 or more.
          log: receives the events "saved" (step, seconds) and "damaged" (step, problem, now).

        Raises:
          CheckpointError: the folder cannot be created, read or written.
        """
        if keep < 1:
            raise CheckpointError(
                f"keep={keep} would not keep any checkpoint.",
                "Checkpointer(keep)",
                "use 1 or more.",
            )
        arrays.quiet()
        self.folder = pathlib.Path(folder).absolute()
        self.keep, self._log = keep, log
        self._worker = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: concurrent.futures.Future | None = None
        self._needed = 0  # bytes of the last state to save
        self._newest = -1  # the last step that this instance saved
        self._postponed: set[int] = set()  # steps to delete that another process is reading
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                step_folders.check_renames(self.folder)
                step_folders.clear_unfinished(self.folder)
        except OSError as error:
            raise CheckpointError(
                f"cannot write to the checkpoint folder: {error}.",
                str(self.folder),
                "choose a writable folder.",
            ) from error
        self._plain = PlainPath(self.folder, shared=True)

    def check_space(self, abstract_state: Any) -> None:
        """Checks that the disk has space for at least one checkpoint.

        Raises:
          CheckpointError: it does not; states the required and the free space.
        """
        needed, free = leaves.total_bytes(abstract_state), shutil.disk_usage(self.folder).free
        if needed > free:
            raise DiskFullError(
                f"a checkpoint needs {format_gb(needed)}, but only {format_gb(free)} is free.",
                str(self.folder),
                "free some disk space, or use a --run_dir on another disk.",
            )
        if needed * (self.keep + 1 - len(self.steps())) > free:
            logging.warning(
                "%s: only %s is free; keeping %d checkpoints of %s needs space for one more",
                self.folder,
                format_gb(free),
                self.keep,
                format_gb(needed),
            )

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Saves in the background; returns as soon as `state` may be donated.

        Waits for the previous save if it is still running. Replaces an existing step.

        Args:
          step: number of completed optimizer steps, 0 or more.
          state: pytree of jax.Array, NumPy arrays, ints and floats.
          meta: JSON-serializable metadata, returned by `restore`.

        Raises:
          CheckpointError: this save cannot start, or the previous one failed (with its message).
        """
        self.wait()
        newer = [other for other in self.steps() if other > step]
        if newer:
            raise CheckpointError(
                f"step {step} is older than the newest checkpoint, {newer[-1]}.",
                str(self.folder),
                "to resume from an older step, first move the newer checkpoints elsewhere.",
            )
        by_name, text = description.describe(step, state, meta)
        self._needed = leaves.total_bytes(state)
        started = time.perf_counter()
        temporary = self.folder / f"{step}.saving"
        try:
            if jax.process_index() == 0 and temporary.exists():
                shutil.rmtree(temporary)
            response = arrays.save_async(self._plain.path / temporary.name, by_name)
        except Exception as error:
            raise self._failure(step, error) from error
        self._pending = self._worker.submit(self._commit, step, response, text, started)

    def wait(self) -> None:
        """Waits until the background save is written, hashed and committed.

        Raises:
          CheckpointError: the save failed; lists the steps on disk.
        """
        if self._pending is None:
            return
        # A process that could not save raises immediately. The others may be waiting for it inside
        # Orbax, and the launcher stops them when this process exits.
        try:
            self._pending.result()
        except CheckpointError:
            self._pending = None
            raise
        self._pending = None  # not reached if a signal interrupted the wait

    def check(self) -> None:
        """Raises the errors of `wait` if the background save has failed; it does not wait."""
        pending = self._pending
        if pending is not None and pending.done() and pending.exception() is not None:
            self.wait()

    def close(self) -> None:
        """Waits for this process's part of the last save. Raises the same errors as `wait`.

        It does not synchronize with the other processes, which may have exited.
        """
        pending, self._pending = self._pending, None
        self._worker.shutdown()
        if pending is not None:
            pending.result()
        if self._postponed:
            self._delete_old(self._newest)

    def steps(self) -> list[int]:
        """Returns all complete steps, oldest first. Only `restore` verifies their contents.

        Raises:
          CheckpointError: the folder cannot be read.
        """
        return [
            step
            for step in step_folders.numbered(self.folder)
            if exists(self.folder / str(step) / manifest.NAME)
        ]

    def restore(
        self, abstract_state: Any, *, step: int | None = None
    ) -> tuple[int, Any, dict[str, Any]] | None:
        """Restores the latest valid step, and renames and logs corrupted ones.

        Every file of a step is verified first.

        Args:
          abstract_state: pytree of jax.ShapeDtypeStruct. Arrays are restored with its shardings
            (None: on the first device), regardless of the mesh they were saved from.
          step: step to restore; None: the latest valid one.

        Returns:
          (step, state, meta), or None if there is no checkpoint.

        Raises:
          CheckpointError: `step` is missing or corrupted; all steps are corrupted; a step cannot be
            read (nothing is changed then); or the state and the checkpoint differ in names, shapes
            or dtypes (lists every difference).
        """
        self.wait()
        chosen = newest_good.choose(self.folder, step, set_aside=True, log=self._log)
        if chosen is None:
            return None
        found, _ = chosen
        state, meta = self._load(self.folder / str(found), abstract_state)
        return found, state, meta

    def _load(self, path: pathlib.Path, abstract: Any) -> tuple[Any, dict[str, Any]]:
        """Loads the leaves of `abstract` and the caller's metadata."""
        record = description.read(path)
        named = leaves.named(abstract)
        description.check_leaves(path, named, "")
        scalars = record["scalars"]
        wanted = {name: leaf for name, leaf in named if name not in scalars}
        try:
            found = arrays.load(self._plain.path / path.name, wanted)
        except (ValueError, OSError) as error:
            raise arrays.failed(path, error) from error
        values = [scalars.get(name, found.get(name)) for name, _ in named]
        return jax.tree.unflatten(jax.tree.structure(abstract), values), record["meta"]

    def _commit(self, step: int, response: Any, text: str, started: float) -> None:
        """Runs in the background: waits for Orbax, hashes, verifies, renames, deletes old steps."""
        temporary, final = self.folder / f"{step}.saving", self.folder / str(step)
        together = HashTogether(f"save {self.folder} {next(_saves)}", manifest.durable_entry)
        try:
            response.result()  # waits for all processes
            if jax.process_index() != 0:
                together.serve()
                return
            try:
                (temporary / description.NAME).write_text(text, encoding="utf-8")
                manifest.write(temporary, together)
            finally:
                together.finish()
            self._check_arrays(temporary)
            self._put_in_place(temporary, final)
            self._log("saved", step=step, seconds=round(time.perf_counter() - started, 3))
        except Exception as error:
            failure = self._failure(step, error)
            # Log it now: the training thread raises the error only at its next call.
            logging.error("%s", failure)
            if jax.process_index() == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            raise failure from error
        self._newest = step
        self._delete_old(step)

    def _check_arrays(self, path: pathlib.Path) -> None:
        """Opens every array of a step as a reader would."""
        record = description.read(path)
        types = {
            name: kind for name, kind in record["leaves"].items() if name not in record["scalars"]
        }
        # Not self._plain: on this computer, a process that exits first deletes the shared link.
        plain = PlainPath(self.folder)
        arrays.check_stored(plain.path / path.name, types)

    def _put_in_place(self, temporary: pathlib.Path, final: pathlib.Path) -> None:
        """Renames a complete step, and reads its manifest back; else restores a replaced step."""
        replaced = final.with_name(f"{final.name}.replaced")
        if exists(final):
            final.rename(replaced)
        temporary.rename(final)
        try:
            sync_folder(self.folder)
            if bad := manifest.problems(final, contents=False):
                raise CheckpointError(
                    f"the step was written, but is not found again: {'; '.join(bad)}.",
                    str(final),
                    "use a --run_dir on another file system.",
                )
        except Exception:
            final.rename(temporary)  # deleted by the caller
            if exists(replaced):
                replaced.rename(final)
            raise

    def _delete_old(self, newest: int) -> None:
        try:
            self._delete_older_than(newest)
        except (OSError, CheckpointError) as error:
            logging.warning("%s: could not delete an old checkpoint: %s", self.folder, error)

    def _delete_older_than(self, newest: int) -> None:
        shutil.rmtree(self.folder / f"{newest}.replaced", ignore_errors=True)
        good = [
            step
            for step in self.steps()
            if not manifest.problems(self.folder / str(step), contents=False)
        ]
        if newest not in good:  # should not happen; keep all older steps
            return
        for step in good[: -self.keep]:
            with step_lock.unread(self.folder / str(step)) as unread:
                # Rename first, so a partially deleted folder is never mistaken for a checkpoint.
                doomed = self.folder / f"{step}.deleting"
                if unread:
                    (self.folder / str(step)).rename(doomed)
            if unread:
                shutil.rmtree(doomed)
                self._postponed.discard(step)
            elif step not in self._postponed:
                self._postponed.add(step)
                logging.warning(
                    "%s: another process is reading step %d; it is deleted later", self.folder, step
                )

    def _failure(self, step: int, error: Exception) -> CheckpointError:
        number = compat.os_error_code(error) or getattr(error, "errno", None)
        try:
            kept = ", ".join(map(str, self.steps())) or "none"
        except CheckpointError as unreadable:
            kept = f"unknown ({unreadable.what})"
        if number in _DISK_FULL:
            full = "a file is too large" if number == errno.EFBIG else "the disk is full"
            return DiskFullError(
                f"{full} ({os.strerror(number)}): step {step} was not saved. It needs "
                f"{self._needed:,} bytes; {shutil.disk_usage(self.folder).free:,} are free.",
                str(self.folder),
                f"{more_space(number)} and run the command again. Steps on disk: {kept}.",
            )
        what = (
            error.what
            if isinstance(error, CheckpointError)
            else (f"{type(error).__name__}: {str(error)[:500]}")
        )
        return CheckpointError(
            f"step {step} was not saved: {what}",
            str(self.folder),
            f"fix the cause and run the command again. Steps on disk: {kept}.",
        )
