"""Settings that may change when a run resumes, on request or not at all."""

import dataclasses
import json
import re
from typing import Literal

import pytest

from experiments import dpo, grpo, ppo, pretrain, reward_model, sft
from qwen_jax.config import option
from qwen_jax.errors import ConfigError, TrainingError
from qwen_jax.train import run_folder
from qwen_jax.train.attempts import inputs, settings
from qwen_jax.train.attempts.record import prepare
from qwen_jax.train.job import RunFiles
from tests.helpers.adding_run import Adding, noise
from tests.helpers.tiny_checkpoint import ROOT

STAGES = (pretrain, sft, reward_model, dpo, ppo, grpo)


def replaced(config, **changes):
    for name, value in changes.items():
        section, _, field = name.partition("__")
        if field:
            value = dataclasses.replace(getattr(config, section), **{field: value})
        config = dataclasses.replace(config, **{section: value})
    return config


@pytest.fixture
def run(tmp_path):
    a = Adding(tmp_path, noise(), num_steps=12, save_every=12)
    a.run()
    a.read.clear()
    return a


def changes_to(config):
    """The changes from the smoke recipe of a stage to `config`."""
    stage = next(stage for stage in STAGES if isinstance(config, stage.Config))
    found, wanted = map(run_folder.flatten, (stage.SMOKE, config))
    return settings.changes(found, wanted, {}, compared_elsewhere=())


@pytest.mark.parametrize(
    "stage, changes",
    [
        (pretrain, {"train__num_steps": 30}),
        (pretrain, {"train__num_steps": 10}),
        (pretrain, {"train__micro_batches": 4}),
        (sft, {"train__z_loss": 1e-4}),
        (pretrain, {"optimizer__peak_learning_rate": 1e-5}),
        (pretrain, {"optimizer__schedule": "constant"}),
        (dpo, {"optimizer__weight_decay": 0.5}),
        (pretrain, {"optimizer__clip_norm": 0.5}),
        (ppo, {"value_optimizer__peak_learning_rate": 1e-5}),
        (ppo, {"ppo__kl_coefficient": 0.1}),
        (grpo, {"grpo__beta": 0.0}),
        (grpo, {"grpo__epsilon": 0.1}),
        (sft, {"model__dropout": 0.5}),
        (pretrain, {"model__remat": "block"}),
        (reward_model, {"data__epochs": 2.0}),
        (dpo, {"data__eval_pairs": ("a.json",)}),
    ],
)
def test_check_allows_changes_on_request(stage, changes):
    (change,) = changes_to(replaced(stage.SMOKE, **changes))
    with pytest.raises(ConfigError) as caught:
        settings.check([change], allowed=False, where="config.json")
    assert f"{change.name}: was" in caught.value.what and "--allow_changes" in caught.value.fix
    settings.check([change], allowed=True, where="config.json")


def test_changes_on_request_are_logged_and_kept(run):
    before = (run.folder / "config.json").read_bytes()
    changes = {"train__num_steps": 16, "optimizer__peak_learning_rate": 1e-5}
    names = ["optimizer.peak_learning_rate", "train.num_steps"]
    run.config = replaced(run.config, **changes)
    with pytest.raises(ConfigError, match="--allow_changes"):
        run.run()
    assert (run.folder / "config.json").read_bytes() == before
    run.config = replaced(run.config, allow_changes=True)
    run.run()
    assert run.read == list(range(12, 16))
    events = [event for event in run.events() if event["event"] == "changed"]
    assert [(event["name"], event["step"]) for event in events] == [(name, 12) for name in names]
    assert "changed from step 12 on: train.num_steps: was 12, now 16" in run.shown
    (line,) = [line for line in run.shown if line.startswith("learning rate of step 13: ")]
    assert "the cosine is that of a run of 16 steps" in line
    written = json.loads((run.folder / "config.json").read_text())
    assert [change["name"] for change in written["changes"]] == names
    run.config = replaced(run.config, allow_changes=False)
    run.run()  # the new settings are those of the run now
    assert len([event for event in run.events() if event["event"] == "changed"]) == 2
    assert json.loads((run.folder / "config.json").read_text())["changes"] == written["changes"]


@pytest.mark.parametrize(
    "stage, changes, reason",
    [
        (pretrain, {"model__num_layers": 3}, "the saved weights belong to this model"),
        (sft, {"model__param_dtype": "bfloat16"}, "the saved weights belong to this model"),
        (dpo, {"lora__rank": 4}, "the saved weights belong to these adapters"),
        (pretrain, {"train__seed": 1}, "weights, dropout and the order of the data"),
        (pretrain, {"train__batch_size": 2}, "the examples of every batch"),
        (pretrain, {"optimizer__moment_dtype": "bfloat16"}, "the saved moments"),
        (pretrain, {"optimizer__clip_norm": None}, "the optimizer's state has another form"),
        (pretrain, {"data__packing": "documents"}, "the examples of every batch"),
        (sft, {"tokenizer": "a.tiktoken"}, "the weights belong to this tokenizer"),
        (dpo, {"beta": 0.5}, "it is part of what the run computes"),
        (ppo, {"reward_model": "runs/a"}, "the run learns from these rewards"),
        (grpo, {"reward_functions": ("a:b",)}, "the run learns from these rewards"),
        (grpo, {"grpo__num_generations": 2}, "it is part of what the run computes"),
    ],
)
def test_check_refuses_other_changes_with_the_reason(stage, changes, reason):
    with pytest.raises(ConfigError) as caught:
        settings.check(
            changes_to(replaced(stage.SMOKE, **changes)), allowed=True, where="config.json"
        )
    assert reason in caught.value.what and "another --run_dir" in caught.value.fix


def test_changes_before_the_first_save_are_free(tmp_path):
    a = Adding(tmp_path, [float("nan")] * 2, num_steps=20)
    with pytest.raises(TrainingError):
        a.run()
    a = Adding(tmp_path, noise(), num_steps=30, save_every=30, seed=7)
    a.config = replaced(a.config, model__vocab_size=1024)
    a.run()
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["train"]["num_steps"], written["model"]["vocab_size"]) == (30, 1024)


def test_changes_of_nothing_say_that_the_flag_has_no_effect(run):
    run.config = replaced(run.config, allow_changes=True, train__log_every=5)
    run.run()
    assert any("--allow_changes has no effect" in line for line in run.shown)


def test_changes_ignore_a_setting_at_its_default_that_an_older_version_lacks(run):
    path = run.folder / "config.json"
    written = json.loads(path.read_text())
    del written["train"]["z_loss"], written["restart_from_scratch"], written["data"]["packing"]
    path.write_text(json.dumps(written))
    run.run()
    path.write_text(json.dumps(written))
    run.config = replaced(run.config, data__packing="documents")
    with pytest.raises(ConfigError, match="data.packing: was 'concat', now 'documents'"):
        run.run()


@pytest.mark.parametrize(
    "old, new, shown",
    [
        (1, 2, "was 1, now 2"),
        (["a"], ["a", "b"], "was ['a'], now ['a', 'b']"),
        (None, "x", "was None, now 'x'"),
        (["x" * 30] * 90, ["x" * 30] * 89 + ["y"], "item 90 was"),
        (["x" * 30] * 90, ["x" * 30] * 91, "item 91 was nothing, now 'xxx"),
        ("a" * 900 + "b", "a" * 900 + "c", "...aaa"),
    ],
)
def test_difference_is_short_and_shows_the_first_differing_part(old, new, shown):
    text = settings.difference(old, new)
    assert shown in text and len(text) < 500
    a, b = text.split(", now ", 1)
    assert a.removeprefix("was ") != b


def test_listed_settings_exist_and_are_in_the_guide():
    known = {name for stage in STAGES for name in run_folder.flatten(stage.SMOKE)}
    guide = (ROOT / "docs/guides/resuming.md").read_text(encoding="utf-8")
    for name in (*settings.MAY_CHANGE, *settings.ON_REQUEST):
        assert any(each == name or each.startswith(name) for each in known), name
        shown = name.replace("value_optimizer.", "optimizer.")
        assert f"`{shown}`" in guide or f"`{shown}*`" in guide, name


def test_flags_that_name_inputs_are_all_identified():
    """A new flag for a file or folder joins inputs.ALL, or this list with a reason."""
    not_inputs = {"run_dir", "grpo.scale_rewards", "init"}  # output; choices
    for stage in STAGES:
        for name, value in run_folder.flatten(stage.SMOKE).items():
            text = isinstance(value, str | None) or value == []
            path = re.search(
                r"source|conversations|pairs|prompts|token|init|reward|dir$|file", name
            )
            numbers = ("max_prompt_tokens", "samples_per_prompt", "max_new_tokens")
            if text and path and not name.endswith(numbers):
                assert name in inputs.ALL or name in not_inputs or "pretrain.tokenizer" in name, (
                    name
                )


@dataclasses.dataclass(frozen=True)
class _Steps:
    num_updates: int = option(5, "number of optimizer steps", alias="num_steps")
    shuffle: bool = option(True, "use a new order in each epoch", alias="--mix")
    on_spike: Literal["warn", "skip"] = option("warn", "", former_values={"tell": "warn"})


@dataclasses.dataclass(frozen=True)
class _Renamed:
    train: _Steps = _Steps()
    run_dir: str = option("runs/x", "folder of all output")
    restart_from_scratch: bool = False
    allow_changes: bool = False


class _Job:
    training_stage, parameters, files = "pretrain", "params", RunFiles()


def test_prepare_compares_an_older_config_under_current_names(tmp_path, capsys):
    former = {"train": {"num_steps": 5, "on_spike": "tell"}, "mix": True, "run_dir": "runs/x"}
    (tmp_path / "config.json").write_text(json.dumps(former))
    (tmp_path / "checkpoints/5").mkdir(parents=True)
    config = _Renamed(run_dir=str(tmp_path))
    with pytest.raises(ConfigError, match="train.num_updates: was 5, now 6"):
        prepare(dataclasses.replace(config, train=_Steps(num_updates=6)), _Job, print)
    capsys.readouterr()
    record = prepare(config, _Job, print)
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 3 and all("config.json" in line for line in warnings)
    assert json.loads((tmp_path / "config.json").read_text()) == former
    record.begin(5, print, lambda event, **details: None)
    assert json.loads((tmp_path / "config.json").read_text())["train"]["num_updates"] == 5
