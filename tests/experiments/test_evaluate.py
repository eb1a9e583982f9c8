"""experiments.evaluate: from a model folder and test sets to a table."""

import dataclasses
import json

import jax
import pytest

from experiments.evaluate import Config, main
from qwen_jax.errors import ConfigError
from qwen_jax.model.spec import init_params
from qwen_jax.pretrained.huggingface import save_pretrained
from qwen_jax.tokenizer.bpe import Tokenizer
from tests.helpers import tiny_checkpoint


def test_evaluate_writes_results_and_prints_a_table(tmp_path, shared, capsys):
    model = dataclasses.replace(tiny_checkpoint.CONFIG, num_layers=1)
    params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(0))
    save_pretrained(tmp_path / "model", model, params, tokenizer=tiny_checkpoint.TOKENIZER)
    config = Config(
        checkpoint=str(tmp_path / "model"),
        tasks=("ceval",),
        data=(str(shared / "data/eval"),),
        output=str(tmp_path / "out"),
        limit=3,
    )
    main(config)
    shown = capsys.readouterr().out
    assert "warning: ceval: 3 of 3 prompts lost their beginning" in shown
    (row,) = [line.split() for line in shown.splitlines() if line.startswith("ceval ")]
    assert row[:5] == ["ceval", "5", "3", "of", "1,346"] and row[-3:] == ["54.7", "63.5", "72.1"]
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["tasks"]["ceval"]["truncated"] == 3 and len(results["data"]["ceval.zip"]) == 64
    with pytest.raises(ConfigError, match="max_length: was 64, now 32"):
        main(dataclasses.replace(config, max_length=32))


def test_prompts_only_writes_prompts_without_a_model(tmp_path, shared, capsys):
    config = Config(
        tasks=("ceval", "gsm8k_chat"),
        data=(str(shared / "data/eval"),),
        output=str(tmp_path),
        limit=2,
        prompts_only=True,
    )
    main(config)
    rows = [json.loads(line) for line in (tmp_path / "prompts.jsonl").open(encoding="utf-8")]
    assert [row["task"] for row in rows] == ["ceval"] * 2 + ["gsm8k_chat"] * 2
    assert rows[0]["id"] == "accountant/0" and rows[0]["choices"] == ["A", "B", "C", "D"]
    assert rows[2]["choices"] is None and "ducks" in rows[2]["prompt"]
    main(dataclasses.replace(config, prompts_only=False, preview=True))
    text = capsys.readouterr().out
    assert text.count("=== ") == text.count("tokens are not shown") == 2
    tokenizer = tmp_path / "bytes.tiktoken"
    Tokenizer({bytes([byte]): byte for byte in range(256)}).save(tokenizer)
    main(dataclasses.replace(config, prompts_only=False, preview=True, tokenizer=str(tokenizer)))
    text = capsys.readouterr().out
    assert "║A  (1 token)" in text and "⟦<|im_start|>⟧│a│s│s│i│s│t│a│n│t│⏎" in text


@pytest.mark.parametrize(
    "settings, error",
    [
        ({"checkpoint": "x"}, "--tasks"),
        ({"checkpoint": "x", "tasks": ("mmlu",)}, "--data"),
        ({"tasks": ("mmlu",), "data": ("x",)}, "--checkpoint, --server"),
    ],
)
def test_evaluate_names_what_is_missing(settings, error):
    with pytest.raises(ConfigError, match=error):
        main(Config(**settings))


@pytest.mark.parametrize(
    "settings, error",
    [
        ({"prompts_only": True, "preview": True}, "exclude"),
        ({"compare": ("a",)}, "1 folders"),
        ({"checkpoint": "a", "server": "http://b"}, "--checkpoint, --server"),
        ({"preview": True, "samples": 3}, "--preview samples nothing"),
        ({"samples": 3, "temperature": 0.0}, "3 samples of a question are equal"),
    ],
)
def test_config_refuses_flags_that_exclude_each_other(settings, error):
    with pytest.raises(ConfigError, match=error):
        Config(**settings)


def test_output_of_each_model_has_its_own_folder():
    assert str(Config(checkpoint="runs/a").folder) == "runs/evaluate/a"
    server = Config(server="http://127.0.0.1:8000", server_model="a/b")
    assert str(server.folder) == "runs/evaluate/127.0.0.1-8000-a-b"
    assert str(Config(checkpoint="runs/a", output="x").folder) == "x"
