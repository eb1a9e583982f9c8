"""--model=NAME sets a whole section: a size, a config.json of any supported layout, or of a run."""

import dataclasses
import json

import pytest

from experiments import plan, pretrain
from qwen_jax import sizes
from qwen_jax.attention_config import ContextExtension
from qwen_jax.cli import flags
from qwen_jax.config import DataConfig
from qwen_jax.errors import ConfigError
from qwen_jax.model.spec import param_specs
from qwen_jax.pretrained.huggingface import save_pretrained
from tests.helpers.weights import initial

RECIPES = pretrain.RECIPES | {"smoke": pretrain.SMOKE}
GROUPED = dataclasses.replace(
    sizes.TINY, num_kv_heads=2, context_length=4096, extension=ContextExtension(False, False)
)


def parse(*arguments):
    return flags.parse("Doc.", RECIPES, ["prog", *arguments])


@pytest.fixture
def folder(tmp_path):
    save_pretrained(tmp_path / "base", GROUPED, initial(param_specs(GROUPED)), layout="qwen2")
    return tmp_path / "base"


def test_model_takes_a_size_with_the_other_settings_of_the_recipe():
    name, config = parse("--recipe=50m", "--model=qwen3-0.6b", "--model.vocab_size=32768")
    recipe = RECIPES["50m"]
    assert name == "50m" and config.train == recipe.train
    assert config.model == dataclasses.replace(
        sizes.QWEN3_0_6B,
        vocab_size=32768,
        compute_dtype=recipe.model.compute_dtype,
        remat=recipe.model.remat,
    )
    assert config.data.context_length == recipe.model.context_length == 1024
    # A model whose context is shorter than the recipe's rows has rows of its own length.
    _, short = parse("--recipe=350m", "--model=toy_8m")
    assert (short.model.context_length, short.data.context_length) == (256, None)


@pytest.mark.parametrize("file", ["config.json", ""])
def test_model_takes_a_released_config_and_the_flags_on_top_of_it(folder, file):
    _, config = parse("--recipe=smoke", "--model", str(folder / file), "--model.num_layers=1")
    assert config.model.num_layers == 1 and config.model.num_kv_heads == 2
    assert (config.model.context_length, config.data.context_length) == (4096, 64)
    assert config.init == (None if file == "" else "random")


def test_a_folder_with_weights_needs_a_word_about_them(folder):
    source = ["--data.sources=a", f"--run_dir={folder.parent / 'run'}"]
    _, config = parse("--recipe=smoke", f"--model={folder}", *source)
    with pytest.raises(ConfigError, match="--init_from to the folder, or --init=random"):
        pretrain.main(config)
    _, config = parse("--recipe=smoke", f"--model={folder}", "--init=random", *source)
    with pytest.raises(Exception, match="shard folder does not exist"):
        pretrain.main(config)


def test_model_takes_the_config_of_a_run(tmp_path):
    run = {"model": dataclasses.asdict(GROUPED), "training_stage": "sft", "parameters": "params"}
    (tmp_path / "config.json").write_text(json.dumps(run))
    _, config = parse("--recipe=smoke", f"--model={tmp_path}/config.json")
    assert config.model.num_kv_heads == 2 and config.model.ffn_size == GROUPED.ffn_size


def test_a_file_of_settings_may_name_a_model(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("recipe: 50m\nmodel: 134m\ntrain: {num_steps: 3}\n")
    _, config = parse(f"--config={file}")
    assert config.model.hidden_size == 768 and config.train.num_steps == 3
    _, config = parse(f"--config={file}", "--model=25m")
    assert config.model.hidden_size == 384
    file.write_text("model: 134n\n")
    with pytest.raises(ConfigError, match="did you mean '134m'") as error:
        parse(f"--config={file}")
    assert error.value.where == str(file)


@pytest.mark.parametrize("program", [lambda name: parse(f"--model={name}"), plan.pretraining_of])
def test_an_unknown_model_is_named_with_what_is_known(program):
    with pytest.raises(ConfigError, match="did you mean '50m'.*qwen3-0.6b") as error:
        program("55m")
    assert error.value.where == "--model"
    with pytest.raises(ConfigError, match="there is no file or folder .*/nowhere/config.json"):
        program("/nowhere/config.json")


@pytest.mark.parametrize(
    "name, expected",
    [
        ("1_8b", sizes.QWEN_1_8B),
        ("1.8B", sizes.QWEN_1_8B),
        ("134m", sizes.TOY_110M),
        ("8.4m", sizes.TOY_8M),
        ("toy_8m", sizes.TOY_8M),
        ("Qwen3-0.6B", sizes.QWEN3_0_6B),
    ],
)
def test_sizes_have_other_names_in_every_program(name, expected):
    assert sizes.by_name(name) == expected
    assert parse(f"--model={name}")[1].model.hidden_size == expected.hidden_size
    assert plan.pretraining_of(name).model.hidden_size == expected.hidden_size


def test_without_a_name_a_recipe_is_as_it_was():
    assert parse("--recipe=7b")[1] == RECIPES["7b"]
    assert parse()[1].data == DataConfig() and parse()[1].init == "random"
