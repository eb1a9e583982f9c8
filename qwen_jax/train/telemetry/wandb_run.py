"""Sends metrics to Weights & Biases (`--train.wandb_project`), without failing the run.

The run folder keeps the id of the W&B run, so a resumed run continues it. W&B's own variables
apply: with WANDB_MODE=offline nothing is sent, and `wandb sync` sends the folder later.
"""

import importlib.util
import math
import pathlib
import secrets
import threading
from typing import Any

from qwen_jax.errors import ConfigError, DataError
from qwen_jax.utils.best_effort import Losses
from qwen_jax.utils.files import read_json, write_json

NAME = "wandb.json"  # in the run folder: the id; W&B's own files are in wandb/
_LOST = "records for W&B"
_FINISH_SECONDS = 60  # for the last uploads; without a network, W&B would wait for ever


def check(project: str | None) -> None:
    """Raises ConfigError if a project is set and W&B is not installed."""
    if project is not None and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            "logging to Weights & Biases needs wandb, which is not installed.",
            "--train.wandb_project",
            'pip install "qwen_jax[wandb]", or remove the flag.',
        )


class WandbRun:
    """The W&B run of one run folder. What cannot be sent is counted in `losses`."""

    def __init__(self, folder: pathlib.Path, losses: Losses, *, project: str):
        self._folder, self._losses = folder, losses
        self._run: Any = None
        self._failed: Exception | None = None
        try:
            self._run = self._start(project)
        except Exception as error:  # no login, no network, a full disk: of many types
            self._failed = error

    def _start(self, project: str) -> Any:
        import wandb  # pyright: ignore[reportMissingImports]  # an extra

        config = self._folder / "config.json"
        run = wandb.init(
            project=project,
            id=self._id(),
            resume="allow",
            name=self._folder.resolve().name,
            dir=str(self._folder),
            config=read_json(config) if config.is_file() else None,
            settings=wandb.Settings(console="off"),  # it would replace standard output
        )
        # W&B's own counter only increases, but a run that resumes repeats steps.
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return run

    def _id(self) -> str:
        path = self._folder / NAME
        try:
            found = read_json(path).get("id") if path.exists() else None
        except (DataError, OSError):
            found = None
        if not isinstance(found, str):
            found = secrets.token_hex(4)
            write_json(path, {"id": found})
        return found

    def write(self, step: int, values: dict[str, float]) -> None:
        """Logs the finite values of a step."""
        try:
            if self._failed is not None:
                raise self._failed
            finite = {name: value for name, value in values.items() if math.isfinite(value)}
            self._run.log({"step": step, **finite})
        except Exception as error:  # the run goes on without the record
            self._losses.add(_LOST, error)

    def close(self) -> None:
        """Waits for the last uploads, at most a minute."""
        if self._run is None:
            return
        thread = threading.Thread(target=self._finish, name="wandb finish", daemon=True)
        thread.start()
        thread.join(_FINISH_SECONDS)
        if thread.is_alive():
            self._losses.warn(
                f"W&B has not received everything after {_FINISH_SECONDS} s; "
                f"later, run `wandb sync` on the newest folder in {self._folder / 'wandb'}"
            )

    def _finish(self) -> None:
        try:
            self._run.finish()
        except Exception as error:
            self._losses.add(_LOST, error)
