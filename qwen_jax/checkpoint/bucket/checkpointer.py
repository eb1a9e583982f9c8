"""Saves checkpoints to an object store, and restores the latest valid step onto any mesh.

It has the interface of checkpoint.checkpointer.Checkpointer.
"""

import concurrent.futures
import itertools
import json
import pathlib
import secrets
import shutil
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from qwen_jax.checkpoint import description
from qwen_jax.checkpoint.bucket import arrays
from qwen_jax.checkpoint.bucket.steps import Damaged, Files, Steps, combined, parse, render
from qwen_jax.errors import CheckpointError, DiskFullError, QwenJaxError
from qwen_jax.parallel import distributed
from qwen_jax.utils import tree as leaves
from qwen_jax.utils.files import disk_full
from qwen_jax.utils.format import format_gb
from qwen_jax.utils.storage.store import Store

_BARRIER_SECONDS = 3600
_instances = itertools.count()


class BucketCheckpointer:
    """The checkpoints of one run in a store. Create one instance in every process of the run."""

    def __init__(
        self,
        store: Store,
        staging: pathlib.Path,
        *,
        keep: int = 3,
        log: Callable[..., None] = lambda event, **details: None,
        before_commit: Callable[[], None] = lambda: None,
    ):
        """Deletes unfinished checkpoints left by killed processes.

        Args:
          store: the folder of checkpoints.
          staging: a local folder of this process. It keeps the newest step.
          keep: number of latest valid steps to keep, 1 or more.
          log: receives the events "saved" (step, seconds) and "damaged" (step, problem, now).
          before_commit: called in process 0 before a manifest is written.
        """
        self.steps_of, self.folder, self.keep = Steps(store), staging, keep
        self._log, self._before_commit = log, before_commit
        # Each instance and save has barriers of its own.
        self._name = f"{store.root} {next(_instances)}"
        self._worker = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: concurrent.futures.Future | None = None
        self._saves = itertools.count()
        self._where = str(store.root)
        staging.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            self.steps_of.clear_unfinished()
        distributed.barrier(f"checkpoints {self._name}", seconds=_BARRIER_SECONDS)

    def check_space(self, abstract_state: Any) -> None:
        """Checks that the local disk has space for this process's part of two checkpoints.

        Raises:
          DiskFullError: it does not.
        """
        needed = 2 * leaves.total_bytes(abstract_state) // jax.process_count()
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise DiskFullError(
                f"two checkpoints of this process need {format_gb(needed)}, but only "
                f"{format_gb(free)} is free.",
                str(self.folder),
                "free some disk space, or set QWEN_JAX_STAGING to a folder on another disk.",
            )

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Saves in the background; returns as soon as `state` may be donated.

        Arguments and errors are those of Checkpointer.save.
        """
        self.wait()
        by_name, text = description.describe(step, state, meta)
        layouts = {name: arrays.layout_of(array) for name, array in by_name.items()}
        chunks, started = arrays.own_chunks(by_name), time.perf_counter()
        self._pending = self._worker.submit(
            self._commit, step, next(self._saves), layouts, chunks, text, started
        )

    def wait(self) -> None:
        """Waits until the background save is uploaded and committed.

        Raises:
          CheckpointError: the save failed.
        """
        if self._pending is None:
            return
        try:
            self._pending.result()
        except QwenJaxError:
            self._pending = None
            raise
        self._pending = None

    def check(self) -> None:
        """Raises the errors of `wait` if the background save has failed; it does not wait."""
        pending = self._pending
        if pending is not None and pending.done() and pending.exception() is not None:
            self.wait()

    def close(self) -> None:
        """Waits for this process's part of the last save. Raises the same errors as `wait`."""
        pending, self._pending = self._pending, None
        self._worker.shutdown()
        if pending is not None:
            pending.result()

    def steps(self) -> list[int]:
        """Returns all complete steps, oldest first. Only `restore` verifies their contents."""
        return self.steps_of.numbers()

    def restore(
        self, abstract_state: Any, *, step: int | None = None
    ) -> tuple[int, Any, dict[str, Any]] | None:
        """Restores the latest step that is intact in all processes; sets newer ones aside.

        Each process verifies what it reads. Arguments, results and errors are those of
        Checkpointer.restore.
        """
        self.wait()
        present = json.loads(distributed.broadcast(json.dumps(self.steps()[::-1])))
        if step is not None and step not in present:
            raise CheckpointError(
                f"no checkpoint found for step {step}.",
                self._where,
                f"choose one of these steps: {', '.join(map(str, present)) or 'none'}.",
            )
        damaged: dict[int, str] = {}
        for candidate in present if step is None else [step]:
            bad = self._fetch(candidate, abstract_state)
            if bad is None:
                self._set_aside(damaged)
                state, meta = self._load(candidate, abstract_state)
                return candidate, state, meta
            damaged[candidate] = bad
        if not damaged:
            return None
        reports = ". ".join(f"step {candidate}: {bad}" for candidate, bad in damaged.items())
        raise CheckpointError(
            f"no valid checkpoint found. {reports}.",
            self._where,
            "restore the objects from a backup (object versions), or use --restart_from_scratch.",
        )

    def _fetch(self, step: int, abstract: Any) -> str | None:
        """Downloads and verifies this process's part; returns the damage in any process."""
        problem = ""
        try:
            folder = self.folder / str(step)
            files = self.steps_of.files(step)
            first = [name for name in files if name.endswith(arrays.METADATA)]
            bad = self.steps_of.download(step, files, folder, [description.NAME, *first])
            if not bad:
                record = description.read(folder)
                if record["step"] != step:
                    bad = [f"it contains step {record['step']}"]
                wanted = _wanted(abstract, record)
                named = {name: leaf for name, leaf in wanted.items() if _fits(folder, name, leaf)}
                # A difference in names or shapes is no damage: _load reports it.
                names = list(arrays.needed(folder, named))
                bad = bad or self.steps_of.download(step, files, folder, names)
            problem = "; ".join(bad)
        except Damaged as error:
            problem = str(error)
        if jax.process_count() > 1:
            flags = multihost_utils.process_allgather(np.int32(bool(problem)))
            if np.any(flags) and not problem:
                problem = "another process found its part damaged"
        return problem or None

    def _load(self, step: int, abstract: Any) -> tuple[Any, dict[str, Any]]:
        folder = self.folder / str(step)
        record = description.read(folder)
        named = leaves.named(abstract)
        description.check_leaves(folder, named, "")
        found = arrays.load(folder, _wanted(abstract, record))
        values = [record["scalars"].get(name, found.get(name)) for name, _ in named]
        return jax.tree.unflatten(jax.tree.structure(abstract), values), record["meta"]

    def _set_aside(self, damaged: dict[int, str]) -> None:
        if jax.process_index() != 0:
            return
        for step, bad in damaged.items():
            moved = f"set aside as {self.steps_of.set_aside(step)}"
            logging.error(
                "%s: corrupted checkpoint: step %d: %s; %s", self._where, step, bad, moved
            )
            self._log("damaged", step=step, problem=bad[:500], now=moved)

    def _commit(self, step: int, number: int, layouts, chunks, text: str, started: float) -> None:
        """Runs in the background: writes, hashes, uploads; process 0 then writes the manifest."""
        try:
            self._upload(step, number, layouts, chunks, text)
            if jax.process_index() == 0:
                self._log("saved", step=step, seconds=round(time.perf_counter() - started, 3))
        except Exception as error:
            failure = self._failure(step, error)
            logging.error("%s", failure)
            raise failure from error
        self._delete_old(step)

    def _upload(self, step: int, number: int, layouts, chunks, text: str) -> None:
        process, store = jax.process_index(), self.steps_of.store
        token = f"{number:04}-{secrets.token_hex(4)}"
        working, folder = self.folder / f"{step}.saving", self.folder / str(step)
        shutil.rmtree(working, ignore_errors=True)
        arrays.write(working, layouts, chunks)
        chunks.clear()
        names = [f"{arrays.FOLDER}/{name}/{arrays.METADATA}" for name in layouts]
        names = [*names, description.NAME] if process == 0 else []
        (working / description.NAME).write_text(text, encoding="utf-8")
        names += [
            path.relative_to(working).as_posix()
            for path in (working / arrays.FOLDER).rglob("*")
            if path.is_file() and path.name != arrays.METADATA
        ]
        files = self.steps_of.upload(step, token, working, names)
        part = f"{step}/parts-{number:04}/{process}.json"
        if process:
            store.write(part, render(files))
        distributed.barrier(f"uploaded {self._name} {number}", seconds=_BARRIER_SECONDS)
        if process == 0:
            others = [f"{step}/parts-{number:04}/{n}.json" for n in range(1, jax.process_count())]
            files = combined([files, *(parse(store.read(other)) for other in others)], self._where)
            self._check_complete(layouts, files)
            self._before_commit()
            replaced = self._replaced(step)
            self.steps_of.commit(step, files)
            self.steps_of._delete([*others, *replaced])
        distributed.barrier(f"committed {self._name} {number}", seconds=_BARRIER_SECONDS)
        shutil.rmtree(folder, ignore_errors=True)
        working.rename(folder)  # on the local disk: what a restart reads first

    def _check_complete(self, layouts, files: Files) -> None:
        """Raises CheckpointError if a chunk of an array was not uploaded by any process."""
        for name, layout in layouts.items():
            whole = tuple(slice(0, size) for size in layout.shape)
            for file in arrays.files_of(layout, name, whole):
                if file not in files:
                    raise CheckpointError(
                        f"no process has written {file}.", self._where, "report this as a bug."
                    )

    def _replaced(self, step: int) -> list[str]:
        """Returns the objects of an earlier save of this step."""
        try:
            return [f"{step}/{file.object}" for file in self.steps_of.files(step).values()]
        except Damaged:
            return []

    def _delete_old(self, newest: int) -> None:
        for path in self.folder.iterdir():
            if path.name != str(newest):
                shutil.rmtree(path, ignore_errors=True)
        if jax.process_index() != 0:
            return
        try:
            for step in self.steps()[: -self.keep]:
                self.steps_of.delete(step)
        except QwenJaxError as error:
            logging.warning("%s: could not delete an old checkpoint: %s", self._where, error)

    def _failure(self, step: int, error: Exception) -> QwenJaxError:
        if isinstance(error, OSError) and error.errno is not None:
            return disk_full(error)
        what = error.what if isinstance(error, QwenJaxError) else f"{type(error).__name__}: {error}"
        kind = type(error) if isinstance(error, QwenJaxError) else CheckpointError
        return kind(
            f"step {step} was not saved: {what[:500]}",
            error.where if isinstance(error, QwenJaxError) else self._where,
            error.fix
            if isinstance(error, QwenJaxError)
            else "fix the cause and run the command again.",
        )


def _wanted(abstract: Any, record: dict[str, Any]) -> dict[str, Any]:
    return {name: leaf for name, leaf in leaves.named(abstract) if name not in record["scalars"]}


def _fits(folder: pathlib.Path, name: str, leaf: Any) -> bool:
    """Returns whether an array is in the step, with the shape of `leaf`."""
    path = folder / arrays.FOLDER / name / arrays.METADATA
    return path.is_file() and arrays.read_layout(folder, name).shape == tuple(leaf.shape)
