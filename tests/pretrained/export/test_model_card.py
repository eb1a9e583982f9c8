"""The model card: stage, recipe, data, parent, scores, license; nothing that is not known."""

import json

import pytest

from qwen_jax.errors import ConfigError
from qwen_jax.pretrained.export.folder import CARD_MARK
from qwen_jax.pretrained.export.model_card import model_card
from qwen_jax.train.attempts import inputs

RUN = {
    "training_stage": "sft",
    "parameters": "params",
    "model": {"context_length": 32768},
    "train": {"num_steps": 40, "batch_size": 8},
    "data": {"context_length": 512, "epochs": None},
    "lora": {"rank": 8, "alpha": 16.0},
}
RESULTS = {
    "tasks": {
        "gsm8k": {
            "protocol": "8-shot chain of thought",
            "shots": 8,
            "n": 1319,
            "score": 51.71,
            "interval": [49.0, 54.4],
            "prompts_sha256": "ab" * 32,
        }
    }
}


def run_folder(tmp_path, **changes):
    folder = tmp_path / "run"
    folder.mkdir()
    parent = tmp_path / "hub" / "models--Qwen--Qwen3-0.6B" / "snapshots" / "0f"
    parent.mkdir(parents=True)
    (parent / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Qwen3\n")
    record = RUN | {"init_from": str(parent)} | changes
    (folder / "config.json").write_text(json.dumps(record))
    found = [inputs.Input("data.conversations", "/home/me/secret/chat.jsonl", "c0ffee" * 10)]
    inputs.write(folder, found)
    return folder


def test_model_card_says_where_a_run_is_from(tmp_path):
    results = tmp_path / "results.json"
    results.write_text(json.dumps(RESULTS))
    card = model_card(run_folder(tmp_path), name="mine", results=str(results), step=40)
    head = card.split("---")[1]
    for line in ("license: apache-2.0", "base_model: Qwen/Qwen3-0.6B", "- sft"):
        assert line in head.splitlines(), line
    for part in (
        CARD_MARK,
        "# mine",
        "supervised fine-tuning, with LoRA adapters merged into its parent (Qwen technical report, "
        "3.1)",
        "- Parent: Qwen/Qwen3-0.6B",
        "40 steps",
        "| `train.batch_size` | 8 |",
        "| `data.context_length` | 512 |",
        "| `lora.alpha` | 16.0 |",
        "| `data.conversations` | secret/chat.jsonl | `c0ffeec0ffeec0ff` |",
        "| gsm8k | 8 | 1,319 | 51.7 | 49.0 to 54.4 | 8-shot chain of thought, prompts "
        "abababababab |",
        "## License\n\napache-2.0",
    ):
        assert part in card, part
    assert "/home/me" not in card and "data.epochs" not in card


def test_model_card_of_random_weights_has_no_parent_license_or_scores(tmp_path):
    folder = run_folder(tmp_path, training_stage="pretrain", init_from=None, lora={"alpha": 16.0})
    card = model_card(folder, name="mine")
    assert "none: random weights" in card and "Not stated." in card
    assert "license:" not in card and "## Scores" not in card and "lora" not in card.lower()
    assert "license: mit" in model_card(folder, name="mine", license="mit")


def test_model_card_refuses_another_file_as_results(tmp_path):
    (tmp_path / "x.json").write_text('{"tasks": {"gsm8k": {}}}')
    with pytest.raises(ConfigError, match="not the result of an evaluation"):
        model_card(run_folder(tmp_path), name="mine", results=str(tmp_path / "x.json"))
