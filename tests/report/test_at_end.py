"""A run writes its page when it ends, and `experiments.report` at any time."""

import json
import sys

import pytest

from experiments import report
from qwen_jax.cli import flags
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.report import at_end, report_at_end


def run_folder(folder):
    folder.mkdir(parents=True)
    row = {"step": 1, "time": 5.0, "train/loss": 2.0}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def test_report_at_end_logs_the_path_of_the_page(tmp_path):
    pytest.importorskip("matplotlib")
    lines = []
    with report_at_end(tmp_path / "a", lines.append):
        run_folder(tmp_path / "a")
    assert lines == [f"report: {tmp_path / 'a/report.html'}"]
    assert (tmp_path / "a/report.html").is_file()


def test_report_at_end_says_in_one_line_that_the_extra_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    lines = []
    with report_at_end(run_folder(tmp_path / "a"), lines.append):
        pass
    (line,) = lines
    assert "no report page" in line and 'pip install "qwen_jax[report]"' in line
    assert "\n" not in line and not (tmp_path / "a/report.html").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyError("a bug")])
def test_report_at_end_never_fails_a_run(tmp_path, monkeypatch, error):
    def fail(folder):
        raise error

    monkeypatch.setattr(at_end, "write_report", fail)
    lines = []
    with report_at_end(tmp_path, lines.append):
        pass
    assert len(lines) == 1 and lines[0].startswith("no report page: ")


def test_report_at_end_writes_nothing_after_an_error(tmp_path):
    lines = []
    with pytest.raises(ConfigError), report_at_end(run_folder(tmp_path / "a"), lines.append):
        raise ConfigError("held.", "a", "wait.")
    assert not lines and not (tmp_path / "a/report.html").exists()


def parse(*arguments):
    return flags.parse("Doc.", {"default": report.Config()}, ["report", *arguments])[1]


def test_report_command_writes_the_page_of_each_run(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    runs = [str(run_folder(tmp_path / name)) for name in ("a,b", "c")]
    assert parse(*runs).run_dir == tuple(runs)
    assert parse("--run_dir=a,b").run_dir == ("a", "b")
    report.main(parse(*runs))
    assert capsys.readouterr().out.split("\n")[:-1] == [f"{run}/report.html" for run in runs]


def test_report_command_refuses_what_is_no_run(tmp_path):
    with pytest.raises(ConfigError, match="no run is given"):
        report.main(parse())
    with pytest.raises(DataError, match="not a run folder"):
        report.main(parse(str(tmp_path)))
    with pytest.raises(ConfigError, match="unknown flag"):
        parse("a", "--open=1")
