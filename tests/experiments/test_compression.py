"""experiments.compression: any form of tokenizer, by language."""

import json

import pytest

from experiments import compression
from qwen_jax.errors import ConfigError
from tests.helpers import tokenizer_folders as folders

pytest.importorskip("pyarrow", reason="pyarrow is not installed")


def test_main_compares_any_forms_by_language(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    for form in ("released", "slow", "tiktoken"):
        folders.write(tmp_path / form, form)
    (tmp_path / "en.txt").write_text("the thing in the weather\n" * 20)
    (tmp_path / "more.jsonl").write_text(json.dumps({"text": "the the the"}) + "\n")
    (tmp_path / "zh.txt").write_text("\u4f60\u597d\n" * 20, encoding="utf-8")
    config = compression.Config(
        tokenizers=(
            f"ours={tmp_path}/released",
            f"{tmp_path}/slow/vocab.json",
            f"{tmp_path}/slow",
            f"{tmp_path}/tiktoken/qwen.tiktoken",
            f"{tmp_path}/released/tokenizer.json",
        ),
        texts=(f"{tmp_path}/en.txt", f"en={tmp_path}/more.jsonl", f"{tmp_path}/zh.txt"),
        output=str(tmp_path / "out"),
    )
    compression.main(config)
    rows = json.loads((tmp_path / "out/compression.json").read_text())
    assert {row["language"] for row in rows} == {"en", "zh"}
    assert [row["tokenizer"] for row in rows[:5]] == ["ours", "vocab", "slow", "qwen", "tokenizer"]
    assert {row["ratio"] for row in rows} == {1.0}  # one vocabulary in all forms
    assert (tmp_path / "out/compression.png").is_file()
    assert "language" in capsys.readouterr().out


def test_main_names_what_is_missing_and_names_that_clash(tmp_path):
    with pytest.raises(ConfigError, match="no tokenizers are set"):
        compression.main(compression.Config())
    with pytest.raises(ConfigError, match="no texts are set"):
        compression.main(compression.Config(tokenizers=("a",)))
    clash = compression.Config(tokenizers=("a=x", "a=y"), texts=("t",))
    with pytest.raises(ConfigError, match="two tokenizers have one name"):
        compression.main(clash)
