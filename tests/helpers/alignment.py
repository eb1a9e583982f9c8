"""Helpers to run the stages after pretraining: configs, output, metrics."""

import contextlib
import dataclasses
import io
import json
import os
import signal

import pytest

from tests.helpers.tiny_checkpoint import CONFIG

MODEL = dataclasses.replace(CONFIG, context_length=96, initializer_range=0.02)


def config_of(stage, folder, run_dir, *, data, train=None, **changes):
    """Returns the stage's smoke config with the data of `folder`."""
    return dataclasses.replace(
        stage.SMOKE,
        init_from=changes.pop("init_from", f"{folder}/base"),
        run_dir=str(run_dir),
        data=dataclasses.replace(stage.SMOKE.data, **data),
        train=dataclasses.replace(stage.SMOKE.train, log_every=1, **(train or {})),
        **changes,
    )


class Screen(io.StringIO):
    """A stdout that sends this process SIGTERM when a text appears."""

    def __init__(self, until):
        super().__init__()
        self._until = until

    def write(self, text):
        if self._until and text.startswith(self._until):
            self._until = None
            os.kill(os.getpid(), signal.SIGTERM)
        return super().write(text)


def run(stage, config, until=None) -> str:
    screen = Screen(until)
    with contextlib.redirect_stdout(screen):
        if until is None:
            stage.main(config)
        else:
            with pytest.raises(SystemExit) as exited:
                stage.main(config)
            assert exited.value.code == 0
    return screen.getvalue()


def records(run_dir) -> list[dict]:
    """Returns the metrics without the timings."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [
        {
            name: value
            for name, value in json.loads(line).items()
            if not name.startswith(("perf/", "time", "host/"))
        }
        for line in lines
    ]


def full_and_resumed(stage, make, tmp_path) -> tuple[str, list[dict]]:
    """Runs a stage uninterrupted, and once interrupted and resumed; checks that both are the same.

    Returns:
      The output and the records of the uninterrupted run.
    """
    output = run(stage, make(tmp_path / "full"))
    resumed = make(tmp_path / "resumed")
    assert "again to resume" in run(stage, resumed, until=f"step {resumed.train.num_steps // 2}/")
    assert "resuming after step" in run(stage, resumed)
    full = records(tmp_path / "full")
    assert records(tmp_path / "resumed") == full
    assert (tmp_path / "full" / "tokenizer.tiktoken").is_file()
    return output, full
