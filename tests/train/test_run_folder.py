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
    num_updates: int = option(5, "number of optimizer steps", alias="num_steps")
    shuffle: bool = option(True, "use a new order in each epoch", alias="--mix")
    on_spike: Literal["warn", "skip"] = option("warn", "", former_values={"tell": "warn"})


@dataclasses.dataclass(frozen=True)
class _Renamed:
    train: _Steps = _Steps()
    run_dir: str = option("runs/x", "folder of all output")


def test_prepare_compares_an_older_config_under_current_names(tmp_path, capsys):
    former = {"train": {"num_steps": 5, "on_spike": "tell"}, "mix": True, "run_dir": "runs/x"}
    (tmp_path / "config.json").write_text(json.dumps(former))
    with pytest.raises(ConfigError, match="train.num_updates: was 5, now 6"):
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
def test_identity_is_read_from_the_config_or_inferred_from_older_settings(
    settings, stage, parameters
):
    assert run_folder.identity({"model": {}, **settings}) == (stage, parameters)
    written = run_folder.Identity("reward_model", "params")._asdict()
    assert run_folder.identity({**written, **settings}) == ("reward_model", "params")
