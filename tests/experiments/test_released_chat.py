"""A step of each stage from folders like Qwen2.5's and Qwen3's: what comes out is as it went in."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import convert, dpo, ppo, reward_model, sft
from qwen_jax.align.train_sft import read_conversation_data
from qwen_jax.data.chat.sft_rows import SPLIT
from qwen_jax.errors import ConfigError, TokenizerError
from qwen_jax.model.lora import LoRAConfig
from qwen_jax.pretrained.huggingface import open_pretrained
from qwen_jax.pretrained.start import start
from qwen_jax.tokenizer.load import load_tokenizer
from qwen_jax.tokenizer.template.tokens import stop_ids
from tests.helpers import released_chat
from tests.helpers.alignment import config_of, run

NAMES = list(released_chat.LAYOUTS)


@pytest.fixture(scope="module")
def inputs(shared, tmp_path_factory):
    """Folders of models by name, and the folder of data."""
    folder = tmp_path_factory.mktemp("released")
    models = {name: released_chat.write(folder / name, name, shared) for name in NAMES}
    return models, released_chat.write_data(folder / "data")


def config(stage, name, inputs, run_dir, data, **changes):
    models, folder = inputs
    return config_of(
        stage, folder, run_dir, init_from=str(models[name]),
        data={key: (f"{folder}/{file}.jsonl",) for key, file in data.items()}
        | {"context_length": 1024},
        train={"num_steps": 1, "eval_every": None, "save_every": 1, "batch_size": 8},
        optimizer=dataclasses.replace(stage.SMOKE.optimizer, warmup_steps=0),
        **changes,
    )  # fmt: skip


def check_same(start_folder, folder, model=True):
    """Checks that a run or an export has the tokenizer, the template and the settings as before."""
    for name in released_chat.KEPT:
        assert (folder / name).read_bytes() == (start_folder / name).read_bytes(), name
    before, after = map(load_tokenizer, (start_folder, folder))
    assert after.added_tokens == before.added_tokens and after.settings == before.settings
    assert after.fingerprint == before.fingerprint and stop_ids(after) == stop_ids(before)
    if model:
        assert (
            open_pretrained(folder).config.variant == open_pretrained(start_folder).config.variant
        )


def export(run_dir, output):
    convert.main(convert.Config(input=str(run_dir), output=str(output)))
    return output


@pytest.mark.parametrize("name", [pytest.param("qwen2.5", marks=pytest.mark.slow), "qwen3"])
def test_sft_keeps_the_files_and_trains_the_text_of_the_template(inputs, tmp_path, name):
    models, folder = inputs
    made = config(sft, name, inputs, tmp_path / "run", {"conversations": "conversations"})
    output = run(sft, made)
    assert (f"16 {SPLIT}" in output or f"8 {SPLIT}" in output) == (name == "qwen3")
    check_same(models[name], tmp_path / "run")
    check_same(models[name], export(tmp_path / "run", tmp_path / "export"))
    layout = json.loads((tmp_path / "export/config.json").read_text())["model_type"]
    assert layout == released_chat.LAYOUTS[name]


@pytest.mark.parametrize("name", NAMES)
def test_read_conversation_data_makes_the_text_of_the_template(inputs, tmp_path, name):
    made = config(sft, name, inputs, tmp_path / "run", {"conversations": "conversations"})
    started, tokenizer = start(made, made.data.context_length)
    lines: list[str] = []
    data = read_conversation_data(started, tokenizer, lines.append)
    texts = {tokenizer.decode(e.tokens[e.weights > 0]) for e in data.examples}
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>'
    thoughts = "<think>\n\n</think>\n\n"
    expected = {
        "qwen2.5": {"2<|im_end|>3<|im_end|>", f"{call}It is 3.<|im_end|>"},
        "qwen3": {f"{thoughts}{text}" for text in (
            "2<|im_end|>", "3<|im_end|>", call, "It is 3.<|im_end|>")},
    }[name]  # fmt: skip
    assert texts == expected
    for example in data.examples:  # the name in the question ends no turn
        ends = int(np.sum(example.tokens == tokenizer.im_end))
        starts = int(np.sum(example.tokens == tokenizer.im_start))
        assert ends == starts


def test_variables_and_masks_that_do_not_fit_the_template_are_refused(inputs, tmp_path):
    made = config(sft, "qwen3", inputs, tmp_path / "run", {"conversations": "conversations"})

    def with_data(**data):
        return dataclasses.replace(made, data=dataclasses.replace(made.data, **data))

    off = with_data(chat_template_kwargs='{"enable_thinking": false}')
    started, tokenizer = start(off, off.data.context_length)
    data = read_conversation_data(started, tokenizer, lambda line: None)
    texts = {tokenizer.decode(e.tokens[e.weights > 0]) for e in data.examples}
    assert "2<|im_end|>" in texts
    with pytest.raises(ConfigError, match="not a JSON object"):
        with_data(chat_template_kwargs="false")
    original = with_data(mask="original")
    with pytest.raises(ConfigError, match="a chat template of its own"):
        read_conversation_data(start(original, 1024)[0], tokenizer, lambda line: None)
    bare = load_tokenizer(inputs[0]["qwen3"] / "tokenizer.json")
    with pytest.raises(TokenizerError, match="no variable enable_thinking"):
        read_conversation_data(started, bare, lambda line: None)


STAGES = {
    "lora": (sft, {"conversations": "conversations"}, {"lora": LoRAConfig(rank=2, alpha=4.0)}),
    "reward_model": (reward_model, {"pairs": "pairs"}, {}),
    "dpo": (dpo, {"pairs": "pairs"}, {}),
}


@pytest.mark.slow  # ten runs
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_keeps_the_files(inputs, tmp_path, name, stage):
    module, data, changes = STAGES[stage]
    run(module, config(module, name, inputs, tmp_path / "run", data, **changes))
    scoring = stage == "reward_model"
    check_same(inputs[0][name], tmp_path / "run", model=not scoring)
    if not scoring:
        check_same(inputs[0][name], export(tmp_path / "run", tmp_path / "export"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_ppo_keeps_the_files(inputs, tmp_path, name):
    made = config_of(
        ppo, inputs[1], tmp_path / "run", init_from=str(inputs[0][name]),
        data={"prompts": (f"{inputs[1]}/conversations.jsonl",), "max_prompt_tokens": 900},
        train={"num_steps": 1, "save_every": 1},
        optimizer=dataclasses.replace(ppo.SMOKE.optimizer, warmup_steps=0),
        reward_functions=("qwen_jax.align.rewards:arithmetic",),
    )  # fmt: skip
    run(ppo, made)
    check_same(inputs[0][name], tmp_path / "run")
    check_same(inputs[0][name], export(tmp_path / "run", tmp_path / "export"))
