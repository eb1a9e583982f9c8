"""--config: a run's config.json or YAML gives values, and flags replace them."""

import dataclasses
import json
import sys

import pytest

from experiments import dpo, grpo, ppo, pretrain, reward_model, sft
from qwen_jax import sizes
from qwen_jax.cli import flags
from qwen_jax.errors import ConfigError
from qwen_jax.model.lora import LoRAConfig
from tests.helpers.paths import ALL_CHARACTERS

PRETRAIN = pretrain.RECIPES | {"smoke": pretrain.SMOKE}


def parse(path, *arguments, recipes=PRETRAIN):
    return flags.parse("Doc.", recipes, ["prog", f"--config={path}", *arguments])


def of_run(config, stage: str) -> str:
    """What a run writes to its config.json (train/attempts/record.py)."""
    identity = {"training_stage": stage, "parameters": "params"}
    return json.dumps(identity | dataclasses.asdict(config) | {"changes": [{"name": "x"}]})


@pytest.mark.parametrize("experiment", [sft, reward_model, dpo, ppo, grpo])
def test_config_json_of_a_run_gives_its_settings(experiment, tmp_path):
    """Its model has been resolved: --init_from sets the architecture again, but not the context."""
    data = experiment.SMOKE.data
    (name,) = {field.name for field in dataclasses.fields(data)} & {
        "conversations",
        "pairs",
        "prompts",
    }
    awkward = (f"data/{ALL_CHARACTERS.strip()}", "a,b.jsonl", "c\\,.jsonl")
    config = dataclasses.replace(
        experiment.SMOKE,
        init_from="runs/base",
        data=dataclasses.replace(data, **{name: awkward}),
        lora=LoRAConfig(rank=4),
    )
    model = config.model.apply(sizes.TINY)
    path = tmp_path / "config.json"
    path.write_text(of_run(dataclasses.replace(config, model=model), experiment.__name__))
    _, found = parse(path, recipes=experiment.RECIPES)
    recorded = dataclasses.replace(config.model, context_length=sizes.TINY.context_length)
    config = dataclasses.replace(config, model=recorded)
    assert found == config
    _, found = parse(path, "--lora.rank=none", "--recipe=smoke", recipes=experiment.RECIPES)
    assert found == dataclasses.replace(config, lora=LoRAConfig())


def test_config_json_of_pretraining_gives_its_model(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(of_run(pretrain.SMOKE, "pretrain"))
    name, found = parse(path, "--run_dir=elsewhere", "--train.num_steps", "7")
    assert name == "1.8b"
    assert found == dataclasses.replace(
        pretrain.SMOKE,
        run_dir="elsewhere",
        train=dataclasses.replace(pretrain.SMOKE.train, num_steps=7),
    )


YAML = """
recipe: smoke
data:
  sources: [a=0.5, "b,c"]
  packing: run_on      # a former value
train:
  recheck_every: 9     # a former name
  trace_steps: [3, 5]
  z_loss: 1e-4         # a string to YAML
optimizer: {clip_norm: null}
model:
  tie_embeddings: yes
  extension:
mesh:
"""


def test_yaml_gives_values_on_top_of_the_recipe_that_it_names(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(YAML)
    name, found = parse(path, "--train.sdc_check_every=8")
    assert name == "smoke" and found.model.hidden_size == pretrain.SMOKE.model.hidden_size
    assert found.data.sources == ("a=0.5", "b,c") and found.data.packing == "concat"
    assert found.train.sdc_check_every == 8 and found.train.trace_steps == (3, 5)
    assert found.train.z_loss == 1e-4 and found.optimizer.clip_norm is None
    assert found.model.tie_embeddings and found.mesh == pretrain.SMOKE.mesh
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2 and all(str(path) in line for line in warnings)
    name, found = parse(path, "--recipe=7b")
    assert name == "7b" and found.train.num_steps == pretrain.RECIPES["7b"].train.num_steps
    assert found.data.sources == ("a=0.5", "b,c")


def test_help_shows_the_values_of_the_file(tmp_path, capsys):
    path = tmp_path / "mine.yml"
    path.write_text("train: {num_steps: 1234}\n")
    with pytest.raises(SystemExit) as stop:
        parse(path, "--help")
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "--train.num_steps=1234" in text and "--config=FILE" in text


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.yaml", "train: {num_step: 3}", "did you mean 'train.num_steps'.*"),
        ("a.json", '{"trian": {"num_steps": 3}}', "unknown setting 'trian.num_steps'"),
        ("a.yaml", "help: true", "unknown setting 'help'"),
        ("a.yaml", "recipe: 7c", "did you mean '7b'"),
        ("a.yaml", "train: {num_steps: many}", "num_steps"),
        ("a.yaml", "train: {num_steps: 1.5}", "num_steps"),
        ("a.yaml", "train: {num_steps: null}", "num_steps"),
        ("a.yaml", "train: {batch_size: 0}", "batch_size=0 is not an integer of at least 1"),
        ("a.yaml", "run_dir: 2024-01-01", "run_dir is a date"),
        ("a.yaml", "run_dir: a\nrun_dir: b", "the key 'run_dir' is a key that is repeated"),
        ("a.yaml", "1: a", "the key 1 is no text"),
        ("a.yaml", "a: [", "not valid YAML"),
        ("a.yaml", "[1]", "not a mapping"),
        ("a.yaml", "!!python/object/apply:os.system ['true']", "not valid YAML"),
        ("a.json", '{"run_dir": "a", "run_dir": "b"}', "not valid JSON"),
        ("a.json", '{"train": {"num_steps": 3}, "train.num_steps": 4}', "is given twice"),
        ("a.json", '{"run_dir": "a\\u0000b"}', r"(?s)has a NUL.*--run_dir"),
        ("a.yaml", 'data: {sources: ["a\\0b"]}', r"(?s)has a NUL.*--data.sources"),
        ("a.toml", "", "ends with .json, .yaml or .yml"),
    ],
)
def test_config_is_refused_with_a_reason(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as refused:
        parse(path)
    assert str(path) in str(refused.value) or "batch_size" in message or "NUL" in message


def test_config_that_is_missing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not found"):
        parse(tmp_path / "none.yaml")


def test_yaml_of_a_later_stage_may_not_set_the_architecture(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("model: {hidden_size: 64}")
    with pytest.raises(ConfigError, match="--init_from determines the architecture"):
        parse(path, recipes=sft.RECIPES)


def test_yaml_names_the_missing_package(tmp_path, monkeypatch):
    path = tmp_path / "a.yaml"
    path.write_text("run_dir: a")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ConfigError, match="pip install pyyaml"):
        parse(path)


@pytest.mark.parametrize("form", [["--config=~/x.yaml"], ["--config", "~/x.yaml"]])
def test_config_of_the_home_folder(form, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.yaml").write_text("run_dir: ~/runs/a\ndata:\n  sources: [w=~/d]\n")
    _, found = flags.parse("Doc.", PRETRAIN, ["prog", *form])
    assert found.run_dir == f"{tmp_path}/runs/a" and found.data.sources == (f"w={tmp_path}/d",)
    (tmp_path / "x.yaml").write_text("no_such_setting: 1\n")
    with pytest.raises(ConfigError) as refused:  # names the file that was read
        flags.parse("Doc.", PRETRAIN, ["prog", *form])
    assert refused.value.where == f"{tmp_path}/x.yaml"


@pytest.mark.parametrize(
    "path, what",
    [
        ("https://host/config.json", "is a URL"),
        ("file:///config.json", "is a URL"),
        (" ", "consists of spaces"),
    ],
)
def test_config_that_is_no_path_is_refused(path, what):
    with pytest.raises(ConfigError, match=what) as refused:
        parse(path)
    assert refused.value.where == "--config"
