"""Helpers to run the stages after pretraining: configs, output, metrics."""

import contextlib
import dataclasses
import functools
import io
import json
import os
import signal

import jax
import pytest

from qwen_jax.align import train_dpo, train_ppo
from qwen_jax.align.grpo import train as train_grpo
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.train import supervised
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


@contextlib.contextmanager
def on_devices(number: int):
    """Runs of this process use the first `number` devices: programs for one compile faster."""
    make = functools.partial(make_mesh, devices=jax.devices()[:number])
    with pytest.MonkeyPatch.context() as patch:
        for module in (supervised, train_dpo, train_ppo, train_grpo):
            patch.setattr(module, "make_mesh", make)
        yield


def run(stage, config, until=None, devices=1) -> str:
    """Runs a stage's main and returns its output; instead of a page, which takes a second, it only
    checks that a run that has reached its end would write one."""
    screen, pages = Screen(until), []

    @contextlib.contextmanager
    def report_at_end(run_dir, log):
        yield
        pages.append(run_dir)

    with (
        contextlib.redirect_stdout(screen),
        on_devices(devices),
        pytest.MonkeyPatch.context() as patch,
    ):
        trains = hasattr(stage, "report_at_end")
        if trains:
            patch.setattr(stage, "report_at_end", report_at_end)
        if until is None:
            stage.main(config)
        else:
            with pytest.raises(SystemExit) as exited:
                stage.main(config)
            assert exited.value.code == 0
    assert pages == ([config.run_dir] if trains and until is None else [])
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


def full_and_resumed(stage, make, tmp_path, devices=1) -> tuple[str, list[dict]]:
    """Runs a stage uninterrupted, and once interrupted and resumed; checks that both are the same.

    Returns:
      The output and the records of the uninterrupted run.
    """
    run_here = functools.partial(run, devices=devices)
    output = run_here(stage, make(tmp_path / "full"))
    resumed = make(tmp_path / "resumed")
    half = f"step {resumed.train.num_steps // 2}/"
    assert "again to resume" in run_here(stage, resumed, until=half)
    assert "resuming after step" in run_here(stage, resumed)
    full = records(tmp_path / "full")
    assert records(tmp_path / "resumed") == full
    assert (tmp_path / "full" / "tokenizer.tiktoken").is_file()
    return output, full
