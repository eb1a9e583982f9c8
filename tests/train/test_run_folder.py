"""The folder of a run."""

import dataclasses
import json
from typing import Literal

import pytest

from qwen_jax.config import option
from qwen_jax.errors import ConfigError
from qwen_jax.train import run_folder

KIND = {"training_stage": "pretrain", "parameters": "params"}


@dataclasses.dataclass(frozen=True)
class _Steps:
    num_updates: int = option(5, "updates of the weights", alias="num_steps")
    shuffle: bool = option(True, "a new order each epoch", alias="--mix")
    on_spike: Literal["warn", "skip"] = option("warn", "", former_values={"tell": "warn"})


@dataclasses.dataclass(frozen=True)
class _Renamed:
    train: _Steps = _Steps()
    run_dir: str = option("runs/x", "everything that is written")


def test_an_older_config_json_is_compared_under_the_names_of_now(tmp_path, capsys):
    former = {"train": {"num_steps": 5, "on_spike": "tell"}, "mix": True, "run_dir": "runs/x"}
    (tmp_path / "config.json").write_text(json.dumps(former))
    with pytest.raises(ConfigError, match="train.num_updates: 5 then, 6 now"):
        run_folder.prepare(tmp_path, _Renamed(train=_Steps(num_updates=6)), **KIND)
    capsys.readouterr()
    run_folder.prepare(tmp_path, _Renamed(), **KIND)
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 3 and all("config.json" in line for line in warnings)
    assert json.loads((tmp_path / "config.json").read_text())["train"]["num_updates"] == 5


@pytest.mark.parametrize(
    "settings, stage, parameters",
    [
        ({}, "pretrain", "params"),
        ({"data": {"sources": []}}, "pretrain", "params"),
        ({"data": {"conversations": []}}, "sft", "params"),
        ({"data": {"pairs": []}}, "reward_model", "params"),
        ({"data": {"pairs": []}, "beta": 0.1}, "dpo", "params"),
        ({"data": {"prompts": []}, "ppo": {}}, "ppo", "policy.params"),
    ],
)
def test_a_run_is_what_its_config_says_and_an_older_one_what_its_settings_tell(
    settings, stage, parameters
):
    assert run_folder.identity({"model": {}, **settings}) == (stage, parameters)
    written = run_folder.Identity("reward_model", "params")._asdict()
    assert run_folder.identity({**written, **settings}) == ("reward_model", "params")
