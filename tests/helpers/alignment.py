"""Runs of the stages after pretraining: configs, output, metrics."""

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
    """The stage's smoke with the folder's data."""
    return dataclasses.replace(
        stage.SMOKE,
        init_from=changes.pop("init_from", f"{folder}/base"),
        run_dir=str(run_dir),
        data=dataclasses.replace(stage.SMOKE.data, **data),
        train=dataclasses.replace(stage.SMOKE.train, log_every=1, **(train or {})),
        **changes,
    )


class Screen(io.StringIO):
    """Presses Ctrl-C's gentler brother when a text appears."""

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
            with pytest.raises(SystemExit) as ended:
                stage.main(config)
            assert ended.value.code == 0
    return screen.getvalue()


def records(run_dir) -> list[dict]:
    """What was measured, without the times."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [
        {
            name: value
            for name, value in json.loads(line).items()
            if not name.startswith(("perf/", "time", "host/"))
        }
        for line in lines
    ]


def whole_and_halves(stage, make, tmp_path) -> tuple[str, list[dict]]:
    """Runs it once in one piece and once in two, and sees that nothing differs."""
    output = run(stage, make(tmp_path / "whole"))
    halves = make(tmp_path / "halves")
    assert "again to resume" in run(stage, halves, until=f"step {halves.train.num_steps // 2}/")
    assert "resuming after step" in run(stage, halves)
    whole = records(tmp_path / "whole")
    assert records(tmp_path / "halves") == whole
    assert (tmp_path / "whole" / "tokenizer.tiktoken").is_file()
    return output, whole
