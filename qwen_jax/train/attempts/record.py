"""What a run folder records about its run: settings, versions, inputs, and their changes.

A new run writes its record before the first step. A resumed run compares first, and writes after
its state was restored, so an attempt that fails before that changes no file but the log of events.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qwen_jax.config import OptimizerConfig, with_current_names
from qwen_jax.errors import ConfigError, QwenJaxError, TrainingError
from qwen_jax.tokenizer.carry import save_tokenizer
from qwen_jax.train import run_folder
from qwen_jax.train.attempts import folder as contents
from qwen_jax.train.attempts import inputs, settings, staged
from qwen_jax.train.attempts.carried import read_released, write_released
from qwen_jax.train.job import Job, RunConfig
from qwen_jax.train.optimizer import make_schedule
from qwen_jax.utils.files import read_json, write_json

VERSIONS, HISTORY = "versions.json", "changes"
_HARDWARE = ("machine", "devices")  # the event "resume" has the devices
Event = tuple[str, dict[str, Any]]


def prepare(config: RunConfig, job: Job, log: Callable[[str], None]) -> "Record":
    """Decides how this attempt begins, and compares a resumed run with its record.

    Only the process that holds the folder's lock may call it.

    Raises:
      ConfigError: settings or inputs have changed that may not; lists every difference.
      CheckpointError: the run has saved, but no step can be restored.
      TrainingError: the folder cannot be written.
    """
    folder, events = staged.local(config.run_dir), []
    unfinished = contents.unfinished_move(folder) is not None
    if unfinished:
        contents.move_aside(folder)
    kind = contents.beginning(folder, restart=config.restart_from_scratch)
    if kind == "restart":
        moved = contents.move_aside(folder)
        staged.move_aside(config.run_dir, moved)
        log(f"restarting from scratch: the files of the earlier run are in {folder / moved}")
        events, kind = [("restarted_from_scratch", {"moved_to": moved})], "new"
    elif config.restart_from_scratch and kind == "resume":
        log("--restart_from_scratch has no effect: this run was started with it; it resumes")
    elif config.restart_from_scratch and not unfinished:
        log("--restart_from_scratch has no effect: there is nothing to restart")
    recorded = inputs.read(folder) if kind == "resume" else []
    record = Record(config, job, folder, kind == "resume", recorded, events)
    if record.resumes:
        record.compare()
        if config.allow_changes and not record.changed:
            log("--allow_changes has no effect: no setting that needs it has changed")
    else:
        record.write()
        (folder / inputs.NAME).unlink(missing_ok=True)  # of an attempt that saved nothing
        staged.push(config.run_dir)
    return record


class Record:
    """The record of one run folder, in the process that writes it.

    Attributes:
      resumes: whether the folder has a state to restore.
      changed: settings that differ from those of the previous attempt, all of them allowed.
    """

    def __init__(
        self,
        config: RunConfig,
        job: Job,
        folder: pathlib.Path,
        resumes: bool,
        recorded: Sequence[inputs.Input],
        events: list[Event],
    ):
        self._config, self._job, self._folder = config, job, folder
        self.resumes, self._recorded, self._events = resumes, recorded, events
        self._settings = run_folder.flatten(config)
        self.changed: list[settings.Change] = []
        self._found: dict[str, Any] = {}
        self._history: list[dict[str, Any]] = []
        self._data = inputs.of_settings(self._settings, job.files.tokenizer, recorded)

    def compare(self) -> None:
        """Compares the settings and inputs with those of the folder. Raises errors as `prepare`."""
        config, path = self._config, self._folder / contents.CONFIG
        if path.exists():
            raw = run_folder.flatten_json(read_json(path, error=ConfigError))
            history: Any = raw.pop(HISTORY, None)
            self._history = history if isinstance(history, list) else []
            found = {k: v for k, v in raw.items() if k not in run_folder.Identity._fields}
            self._found = with_current_names(found, config, str(path))
            self.changed = settings.changes(
                self._found,
                self._settings,
                run_folder.defaults(config),
                compared_elsewhere={each.role for each in self._recorded},
            )
            settings.check(self.changed, allowed=config.allow_changes, where=str(path))
        inputs.compare(
            self._recorded,
            self._inputs(),
            may_change=lambda role: config.allow_changes and role in settings.ON_REQUEST,
            log=lambda event, **details: self._events.append((event, details)),
        )
        self._compare_versions()

    def begin(self, step: int, log: Callable[[str], None], event: Callable[..., None]) -> None:
        """Writes the record, and logs what has changed; call it once the state is there.

        Args:
          step: the step from which the run goes on.
          event: receives the events.
        """
        for change in self.changed:
            each = {"name": change.name, "old": change.old, "new": change.new, "step": step}
            self._history.append(each)
            event("changed", **each)
            log(f"changed from step {step} on: {change}")
        if self.changed and (line := self._learning_rates(step)):
            log(line)
        for name, details in self._events:
            event(name, **details)
            if name in ("moved", "input"):
                what = (
                    "has other content" if name == "input" else "has moved, with the same content"
                )
                log(f"--{details['name']} {what}: {', '.join(details['new']) or 'not set'}")
            elif name == "versions":
                log("versions have changed: " + "; ".join(map(str, details["changed"])))
        found = self._inputs()
        if self.resumes and not (self._folder / inputs.NAME).exists():
            event("inputs", recorded=len(found), reason="an earlier version did not record them")
        if self.resumes:
            self.write()
        inputs.write(self._folder, found)
        staged.push(self._config.run_dir)

    def write(self) -> None:
        """Writes config.json, versions.json and the files that the job provides."""
        job, identity = self._job, run_folder.Identity
        try:
            written = identity(job.training_stage, job.parameters)._asdict()
            settings_now: Any = self._config
            written |= dataclasses.asdict(settings_now)
            write_json(
                self._folder / contents.CONFIG,
                written | ({HISTORY: self._history} if self._history else {}),
            )
            write_json(self._folder / VERSIONS, run_folder.versions())
            if job.files.tokenizer is not None:
                save_tokenizer(self._folder, job.files.tokenizer)
            if not self.resumes:
                start: Any = getattr(settings_now, "init_from", None)
                write_released(self._folder, read_released(start) if start else {})
            for name, record in job.files.records.items():
                write_json(self._folder / name, record)
        except OSError as error:
            raise cannot_write(self._folder, error) from error

    def _inputs(self) -> list[inputs.Input]:
        return [*self._data, *self._job.files.inputs()]

    def _compare_versions(self) -> None:
        path, new = self._folder / VERSIONS, run_folder.versions()
        try:
            old = read_json(path)
        except (QwenJaxError, OSError):
            return  # deleted or damaged; it is written again
        changed = [
            f"{name} {old.get(name)} -> {new.get(name)}"
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name) and name not in _HARDWARE
        ]
        if changed:
            self._events.append(("versions", {"changed": changed}))

    def _learning_rates(self, step: int) -> str | None:
        """Returns the line about the learning rate of the next step, if it has changed."""
        wanted = self._config
        if step >= wanted.train.num_steps:
            return None
        fields = {field.name for field in dataclasses.fields(OptimizerConfig)}
        before = {
            name: self._found[f"optimizer.{name}"]
            for name in fields
            if f"optimizer.{name}" in self._found
        }
        steps = max(self._found.get("train.num_steps") or 0, step + 1)
        old, new = (
            float(np.asarray(make_schedule(optimizer, length)(step)))
            for optimizer, length in (
                (OptimizerConfig(**before), steps),
                (wanted.optimizer, wanted.train.num_steps),
            )
        )
        if old == new:
            return None
        shape = ""
        if wanted.optimizer.schedule == "cosine":
            shape = f"; the cosine is that of a run of {wanted.train.num_steps} steps"
        return f"learning rate of step {step + 1}: {new:.3e}, was {old:.3e}{shape}"


def cannot_write(folder: str | os.PathLike, error: OSError) -> TrainingError:
    """Returns the error of a run folder that cannot be written."""
    return TrainingError(
        f"cannot write to the run folder: {error}.",
        str(folder),
        "choose a writable --run_dir on a disk with free space.",
    )
