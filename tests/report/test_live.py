"""Runs of a folder as the page of a server shows them."""

import json
import os

import pytest

from experiments import report
from qwen_jax.errors import ConfigError
from qwen_jax.report.live import MAX_POINTS, Runs
from qwen_jax.serve.errors import ApiError


def write(folder, steps=3, stage="sft", checkpoints=(2,)):
    for step in checkpoints:
        (folder / "checkpoints" / str(step)).mkdir(parents=True)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps(
            {"training_stage": stage, "model": {"x": float("inf")}, "train": {"num_steps": 9}}
        )
    )
    rows = (
        {
            "step": i,
            "time": 1e9 + i,
            "train/loss": 1 / i,
            "time/train": 1.0,
            "eval/mmlu/score": 2 * i,
        }
        for i in range(1, steps + 1)
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "base")
    write(tmp_path / "base" / "ppo", stage="ppo")
    write(tmp_path / "reward", stage="reward_model")
    write(tmp_path / "new", checkpoints=())
    (tmp_path / "other").mkdir()
    (tmp_path / "eval").mkdir()
    record = {"score": 50.0, "n": 10, "shots": 5, "interval": [20.0, 80.0]}
    (tmp_path / "eval" / "results.json").write_text(json.dumps({"tasks": {"mmlu": record}}))
    return tmp_path


def test_list_has_runs_at_any_depth_and_says_which_train(folder):
    (folder / "new" / "lock.json").write_text("{}")
    (folder / "reward" / "lock.json").write_text("{}")
    os.utime(folder / "reward" / "lock.json", (1e9, 1e9))  # a killed process
    runs = {run["name"]: run for run in Runs(folder).list()["runs"]}
    assert runs.keys() == {"base", "base/ppo", "reward", "new", "eval"}
    assert [name for name, run in runs.items() if run["active"]] == ["new"]
    assert runs["base"]["step"] == 3 and runs["base"]["steps"] == 9
    assert runs["eval"]["step"] is None


def test_checkpoints_are_those_that_chat_the_newest_first(folder):
    os.utime(folder / "base" / "checkpoints" / "2", (1e9, 1e9))
    assert list(Runs(folder).checkpoints().items()) == [("base/ppo", 2), ("base", 2)]
    (folder / "base" / "checkpoints" / "10").mkdir()
    assert Runs(folder).checkpoints()["base"] == 10


def test_one_has_curves_tables_and_a_token_for_changes(folder):
    runs = Runs(folder)
    found = runs.one({"name": "base/ppo"})
    assert found["curves"]["train/loss"] == ([1, 2, 3], [1.0, 0.5, 1 / 3])
    assert "time/train" not in found["curves"] and found["model"] == "base/ppo"
    assert found["tables"]["Benchmarks while training"][0]["score (%)"] == 6.0
    assert found["config"]["model.x"] == "inf" and json.dumps(found, allow_nan=False)
    assert runs.one({"name": "base/ppo", "since": found["token"]})["unchanged"]
    os.utime(folder / "base" / "ppo" / "metrics.jsonl", (2e9, 2e9))
    assert "curves" in runs.one({"name": "base/ppo", "since": found["token"]})
    assert runs.one({"name": "reward"})["model"] is None
    assert "reward model" in runs.one({"name": "reward"})["why"]
    assert runs.one({"name": "new"})["why"] == "no checkpoint yet"
    (row,) = runs.one({"name": "eval"})["tables"]["Evaluated tasks"]
    assert row["score (%)"] == 50.0 and row["95 % interval"] == "20.0 to 80.0"


def test_one_shows_a_damaged_run_and_refuses_paths(folder):
    (folder / "base" / "samples.json").write_text("{")
    with open(folder / "base" / "metrics.jsonl", "a") as file:
        file.write('nonsense\n{"step": 4, "train/loss": NaN, "time": 1}\n{"step": 5, "tr')
    found = Runs(folder).one({"name": "base"})
    assert len(found["problems"]) == 2 and json.dumps(found, allow_nan=False)
    assert found["curves"]["train/loss"][0] == [1, 2, 3]
    for name in ("../base", "/etc", "", "other", "base/checkpoints"):
        with pytest.raises(ApiError, match="no run"):
            Runs(folder).one({"name": name})


def test_long_curves_are_thinned_to_their_first_and_last_point(tmp_path):
    write(tmp_path / "long", steps=5000)
    x, y = Runs(tmp_path).one({"name": "long"})["curves"]["train/loss"]
    assert len(x) == len(y) == MAX_POINTS and (x[0], x[-1]) == (1, 5000)


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"port": 0}, "--serve=FOLDER"),
        ({"serve": "runs", "run_dir": ("a",)}, "without --serve"),
    ],
)
def test_report_refuses_flags_that_have_no_effect(settings, word):
    with pytest.raises(ConfigError, match=word):
        report.Config(**settings)


def test_report_refuses_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="no folder"):
        report.main(report.Config(serve=str(tmp_path / "none")))
