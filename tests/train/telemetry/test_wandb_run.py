"""--train.wandb_project, with a fake module `wandb`: records, resuming, failures."""

import json
import sys
import threading

import pytest

from qwen_jax.errors import ConfigError
from qwen_jax.train.telemetry import wandb_run
from tests.helpers.adding_run import Adding, noise

FAKE = """
import os
started = []
class Settings:
    def __init__(self, **settings):
        self.settings = settings
class Run:
    def __init__(self, arguments):
        self.arguments, self.records, self.steps, self.finished = arguments, [], {}, False
    def define_metric(self, name, step_metric=None):
        self.steps[name] = step_metric
    def log(self, values):
        if fails == "log":
            raise ConnectionError("no network")
        self.records.append(values)
    def finish(self):
        if fails == "finish":
            raise ConnectionError("no network")
        if fails == "hang":
            import threading
            threading.Event().wait(60)
        self.finished = True
fails = None
def init(**arguments):
    if fails == "init":
        raise RuntimeError("no login")
    started.append(Run(arguments))
    return started[-1]
"""


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """The fake module."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/wandb.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    import wandb as module  # type: ignore[import-not-found]

    yield module
    sys.modules.pop("wandb", None)


def metrics(folder) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines]


def test_wandb_run_gets_the_records_of_the_metrics_log_and_resumes(tmp_path, wandb):
    folder = tmp_path / "a run"
    Adding(folder, noise(), num_steps=11, log_every=5, wandb_project="mine").run()
    (first,) = wandb.started
    assert first.records == metrics(folder) and len(first.records) == 4 and first.finished
    assert first.steps == {"step": None, "*": "step"}
    given = first.arguments
    assert given["project"] == "mine" and given["name"] == "a run" and given["resume"] == "allow"
    assert given["dir"] == str(folder) and given["config"]["train"]["num_steps"] == 11
    assert json.loads((folder / "wandb.json").read_text()) == {"id": given["id"]}
    again = Adding(folder, noise(), num_steps=11, log_every=5, wandb_project="mine")
    again.run()
    assert wandb.started[1].arguments["id"] == given["id"]
    Adding(tmp_path / "b", noise(), num_steps=11, log_every=5, wandb_project="mine").run()
    assert wandb.started[2].arguments["id"] != given["id"]


def test_wandb_run_replaces_a_damaged_id(tmp_path, wandb):
    (tmp_path / "wandb.json").write_text("{")
    Adding(tmp_path, noise(), num_steps=11, wandb_project="mine").run()
    (run,) = wandb.started
    assert json.loads((tmp_path / "wandb.json").read_text()) == {"id": run.arguments["id"]}


@pytest.mark.parametrize(
    "fails, shown",
    [
        ("init", "4 records for W&B could not be written: RuntimeError: no login"),
        ("log", "4 records for W&B could not be written: no network"),
        ("finish", "1 records for W&B could not be written: no network"),
        ("hang", "later, run `wandb sync`"),
    ],
)
def test_wandb_run_that_fails_does_not_stop_the_run(
    tmp_path, wandb, monkeypatch, capfd, fails, shown
):
    monkeypatch.setattr(wandb_run, "_FINISH_SECONDS", 0.1)
    wandb.fails = fails
    Adding(tmp_path, noise(), num_steps=11, log_every=5, wandb_project="mine").run()
    assert len(metrics(tmp_path)) == 4
    assert shown in capfd.readouterr().err.replace("ConnectionError: ", "")
    assert fails != "hang" or any(t.name == "wandb finish" for t in threading.enumerate())


def test_wandb_is_imported_only_for_a_project(tmp_path, wandb):
    Adding(tmp_path, noise(), num_steps=11).run()
    assert not wandb.started and not (tmp_path / "wandb.json").exists()


def test_check_names_the_missing_extra_before_the_run_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(wandb_run.importlib.util, "find_spec", lambda name: None)
    run = Adding(tmp_path / "a", noise(), num_steps=11, wandb_project="mine")
    with pytest.raises(ConfigError, match=r"qwen_jax\[wandb\]"):
        run.run()
    assert not (tmp_path / "a").exists()
