"""Runs whose folders have names with every character, from pretraining to completions."""

import json
import shutil

import pytest

from experiments import convert, generate, pretrain, sft
from qwen_jax.cli import flags
from qwen_jax.report import write_report
from tests.helpers.alignment import run
from tests.helpers.paths import ALL_CHARACTERS, CHINESE, LONG


def parsed(program, *arguments):
    """Parses a command line as the program does."""
    recipes = dict(getattr(program, "RECIPES", {})) or {"default": program.Config()}
    recipes |= {"smoke": program.SMOKE} if hasattr(program, "SMOKE") else {}
    return flags.parse(program.__doc__, recipes, ["prog", *arguments])[1]


def listed(path) -> str:
    """Writes a path as an item of a list, whose commas have backslashes."""
    return str(path).replace(",", r"\,")


def pretrained(folder, root):
    """Pretrains on data in `root`, interrupted after the first step; returns the run folder."""
    shutil.copytree(folder / "text", root / "data/text")
    shutil.copy(folder / "base/tokenizer.tiktoken", root / "own.tiktoken")
    config = parsed(
        pretrain,
        "--recipe=smoke",
        f"--run_dir={root}/run",
        f"--data.sources={listed(root / 'data/text/train')}=2",
        f"--data.eval_sources={listed(root / 'data/text/train')}",
        f"--data.tokenizer={root}/own.tiktoken",
        "--model.hidden_size=32",
        "--model.num_layers=1",
        "--model.vocab_size=512",
        "--train.num_steps=3",
        "--optimizer.warmup_steps=1",
        "--train.log_every=1",
    )
    run(pretrain, config, until="step 1")
    assert "resuming after step" in run(pretrain, config)
    assert (root / "run/checkpoints/3/manifest.json").exists()
    return root / "run"


def completions(root, checkpoint) -> list[str]:
    (root / "prompts.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    output = root / f"{checkpoint.name} completions.jsonl"
    config = parsed(
        generate,
        f"--checkpoint={checkpoint}",
        f"--input={root}/prompts.jsonl",
        f"--output={output}",
        "--settings.max_new_tokens=4",
        "--settings.temperature=0",
    )
    run(generate, config)
    return [json.loads(line)["answers"][0]["text"] for line in output.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", [ALL_CHARACTERS, LONG, CHINESE, "-x", "lr=0.5", "gs:"])
def test_every_stage_runs_in_a_folder_of_any_name(folder, tmp_path, monkeypatch, name):
    root = tmp_path / name
    root.mkdir()
    monkeypatch.chdir(tmp_path)  # nothing may be written into another folder
    base = pretrained(folder, root)
    shutil.copy(folder / "conversations.jsonl", root)
    config = parsed(
        sft,
        "--recipe=smoke",
        f"--init_from={base}",
        f"--run_dir={root}/sft",
        f"--data.conversations={listed(root / 'conversations.jsonl')}",
        "--train.num_steps=3",
        "--optimizer.warmup_steps=1",
        "--train.log_every=1",
        "--data.context_length=64",
    )
    run(sft, config, until="step 1")
    assert "resuming after step" in run(sft, config)
    found = completions(root, root / "sft")
    for layout in ("qwen2", "run"):
        exported = root / f"exported {layout}"
        run(
            convert,
            parsed(convert, f"--input={root}/sft", f"--output={exported}", f"--layout={layout}"),
        )
        assert completions(root, exported) == found
    page = write_report(root / "sft")
    assert page.exists() and page.parent == root / "sft"
    assert [path.name for path in tmp_path.iterdir()] == [name]
