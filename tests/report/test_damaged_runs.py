"""The report of a run folder whose small files are damaged: a page, or an error that names one."""

import json
import os
import tarfile

import pytest

from qwen_jax.errors import DataError
from qwen_jax.report import page, plots, write_report
from tests.helpers.damage import ARCHIVES, check_reader, odd_files, seeds

pytest.importorskip("matplotlib")
OTHERS = {
    "evaluation": {"model": {"perplexity": 10.0, "bits_per_byte": 1.0}, "tokens": 12345},
    "compression": [{"language": "docs", "tokenizer": "ours", "bytes_per_token": 3.75}],
    "export": {"path": "exports/x", "layout": "qwen2", "dtype": "bfloat16"},
    "samples": [{"prompt": "a", "text": "ab", "temperature": 0.8}],
    "answers": [{"question": "1+1", "after SFT": "2"}],
    "calibration": {"held": [[0.6, 0.5, 10], [0.9, 1.0, 3]]},
}
FILES = (
    "config.json",
    "versions.json",
    "metrics.jsonl",
    "events.jsonl",
    *(f"{name}.json" for name in OTHERS),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run folder of a reward model, with every file that the report reads."""
    root = tmp_path_factory.mktemp("run")
    with tarfile.open(ARCHIVES / "reward_model.tar.gz") as tar:
        tar.extractall(root, filter="data")
    folder = root / "runs/reward_model"
    for name, content in OTHERS.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@seeds(4)
@pytest.mark.parametrize("name", FILES)
def test_write_report_names_a_damaged_file(run, name, seed, monkeypatch):
    drawn = name in ("metrics.jsonl", "evaluation.json", "calibration.json")
    if seed == 0:  # most of the time is the drawing
        monkeypatch.setattr(plots, "_png", lambda figure: b"")
        if not drawn:
            monkeypatch.setattr(page, "draw_plots", lambda *rest: {})
    times = 5 if seed == 0 and drawn else 40
    check_reader(run / name, lambda: write_report(run), seed=seed, times=times)


@pytest.mark.parametrize("name", FILES)
def test_write_report_refuses_what_is_not_a_file(run, name, monkeypatch):
    monkeypatch.setattr(page, "draw_plots", lambda *rest: {})
    for kind in odd_files(run / name):
        if kind in ("dangling link", "link to itself"):
            continue  # as if it did not exist
        with pytest.raises(DataError, match="not a regular file|No such device|is a directory"):
            write_report(run)


def test_write_report_draws_names_as_they_are(run, tmp_path):
    """A dollar is no formula, an underscore hides no line, a byte of a path is a question mark."""
    lines = [
        {"step": 1, "time": 5.0, "train/loss": 3.0, "train/learning_rate": 1e-300},
        {"step": 2, "eval/$x_{$/loss": 2.0, "eval/_a/loss": 2.0, "eval/\ud800/loss": 1e38},
        {"step": 3.5, "train/loss": 1}, {"step": True}, {"step": 10**18, "train/loss": 10**400},
        {"step": -1, "train/loss": 9.0}, {"step": 4, "train/loss": "low", "time/train": None},
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "events.jsonl").write_text('{"event": "\\ud800 <b>"}\n{"time": "now"}\n')
    shown = write_report(tmp_path).read_text(encoding="utf-8")
    assert "? &lt;b&gt;" in shown and "1 unreadable line of events.jsonl" in shown


def test_write_report_escapes_a_folder_name_that_is_not_utf8(tmp_path):
    folder = tmp_path / os.fsdecode(b"run \xff")
    folder.mkdir()
    (folder / "versions.json").write_text('{"python": "3"}')
    assert "run ?" in write_report(folder).read_text(encoding="utf-8")
