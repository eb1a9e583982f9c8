"""The page of a run: complete, self-contained, and possible at any moment of the run."""

import base64
import dataclasses
import html.parser
import json
import re
import sys

import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.report import write_report
from qwen_jax.report.records import Curves, read_jsonl, where_time_went
from qwen_jax.train.telemetry.phases import PHASES

pytest.importorskip("matplotlib")
PNG = b"\x89PNG\r\n\x1a\n"


def _metrics(steps=40):
    lines = []
    for step in range(1, steps + 1):
        lines.append(
            {
                "step": step,
                "time": 1000.0 + step,
                "train/loss": 9.0 / step**0.3,
                "train/grad_norm": 1.0,
                "train/learning_rate": 1e-3,
                "train/tokens": 64 * step,
                "perf/tokens_per_second": 5000.0 + step,
                "perf/mfu": 0.4,
                "perf/mfu_noncausal": 0.45,
                "perf/data_wait_seconds": 0.001,
            }
        )
        if step % 10 == 0:
            lines.append(
                {
                    "step": step,
                    "time": 1000.5 + step,
                    "eval/docs/loss": 2.0,
                    "eval/docs/perplexity": 7.389,
                    "eval/docs/bits_per_byte": 1.234,
                }
            )
    return lines


def _jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "a <run>"
    folder.mkdir()
    _jsonl(folder / "metrics.jsonl", _metrics())
    contents = {
        "config": {
            "model": dataclasses.asdict(sizes.TOY_8M),
            "train": {"num_steps": 50},
            "run_dir": "runs/x",
        },
        "versions": {"python": "3.12.1", "devices": "1 x cpu"},
        "evaluation": {
            "model": {"perplexity": 10.0, "bits_per_byte": 1.0},
            "ngram": {"perplexity": 25.0, "bits_per_byte": 1.4},
            "tokens": 12345,
        },
        "compression": [{"language": "docs", "tokenizer": "ours", "bytes_per_token": 3.75}],
        "export": {"path": "exports/x", "layout": "qwen2", "dtype": "bfloat16"},
        "samples": [
            {
                "prompt": "def f(",
                "text": "def f(a): return a<b & <script>alert(1)</script>",
                "temperature": 0.8,
                "top_p": 0.95,
            }
        ],
    }
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    _jsonl(
        folder / "events.jsonl",
        [{"time": 999.0, "event": "start"}, {"time": 1021.0, "event": "loss_spike", "step": 21}],
    )
    return folder


class _Page(html.parser.HTMLParser):
    """Collects headings, text, pictures and tags, and checks that tags nest."""

    def __init__(self, text):
        super().__init__()
        self.headings, self.words, self.images, self.tags, self._open = [], [], [], set(), []
        self.feed(text)
        assert not self._open, self._open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "img":
            self.images.append(dict(attrs)["src"])
        if tag not in ("img", "meta"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] in ("h2", "h1"):
            self.headings.append(data)
        elif "style" not in self._open:
            self.words.append(data)


def test_the_page_holds_every_section_and_every_plot(run):
    path = write_report(run)
    assert path == run / "report.html"
    page = _Page(path.read_text(encoding="utf-8"))
    assert page.headings == [
        "a <run>",
        "Loss",
        "Against counting",
        "Samples",
        "Optimization",
        "Speed",
        "Compression",
        "Export",
        "Configuration",
        "Versions",
        "Events",
    ]
    plots = {file.stem: file.read_bytes() for file in (run / "plots").iterdir()}
    assert plots.keys() == {
        "loss",
        "learning_rate",
        "gradient_norm",
        "throughput",
        "data_wait",
        "perplexity",
    }
    embedded = [base64.b64decode(source.partition("base64,")[2]) for source in page.images]
    assert sorted(embedded) == sorted(plots.values())
    assert all(png.startswith(PNG) for png in embedded)
    words = " ".join(page.words)
    for expected in (
        "8.39 M",
        "2,560",
        "2.000",
        "7.39",
        "1.234",
        "5,020",
        "42s",
        "40 of 50 steps",
        "2.50 times lower",
        "12,345",
        "3.75",
        "exports/x",
        "hidden_size",
        "3.12.1",
        "loss_spike",
        "MFU 40.0% (noncausal 45.0%)",
        "temperature 0.8, top p 0.95",
    ):
        assert expected in words, expected


@pytest.mark.parametrize(
    "metrics, plot",
    [
        ({f"perf/{name}_seconds": 1.0 for name in PHASES}, "phases"),
        ({"perf/sample_seconds": 1.0}, "sampling"),  # of older runs
    ],
)
def test_phases_of_ppo_are_drawn(tmp_path, metrics, plot):
    records = [{"step": step, "train/loss": 1.0, **metrics} for step in range(1, 9)]
    _jsonl(tmp_path / "metrics.jsonl", records)
    write_report(tmp_path)
    plots = {file.stem for file in (tmp_path / "plots").iterdir()}
    assert plots & {"phases", "sampling"} == {plot}


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing_from_samples(run):
    text = write_report(run).read_text(encoding="utf-8")
    page = _Page(text)
    assert "script" not in page.tags and "link" not in page.tags
    assert not re.search(r"(src|href)=\"(?!data:)|@import|url\(", text)
    assert "a): return a<b & <script>alert(1)</script>" in page.words  # shown as it is, once
    assert "def f(" in page.words


@pytest.mark.parametrize(
    "left", ["metrics.jsonl", "config.json", "samples.json", "compression.json", "export.json"]
)
def test_any_one_file_is_enough(run, left):
    for file in list(run.iterdir()):
        if file.name != left:
            file.unlink()
    page = _Page(write_report(run).read_text(encoding="utf-8"))
    expected = {
        "metrics.jsonl": ["Loss", "Optimization", "Speed"],
        "config.json": ["Configuration"],
        "samples.json": ["Samples"],
        "compression.json": ["Compression"],
        "export.json": ["Export"],
    }[left]
    assert page.headings[1:] == expected


def test_a_run_of_one_step_has_a_page(run):
    _jsonl(run / "metrics.jsonl", _metrics(1))
    assert "Loss" in _Page(write_report(run).read_text(encoding="utf-8")).headings


def test_values_that_are_not_finite_do_not_stop_the_report(run):
    records = _metrics(5) + [
        {
            "step": 6,
            "time": 1007.0,
            "train/loss": float("nan"),
            "train/grad_norm": float("inf"),
            "train/learning_rate": 0.0,
        }
    ]
    _jsonl(run / "metrics.jsonl", records)
    write_report(run)
    assert Curves(records).curve("train/loss")[0].tolist() == [1, 2, 3, 4, 5]


def test_a_picture_of_the_compression_is_embedded(run):
    (run / "compression.png").write_bytes(PNG + b"pixels")
    assert base64.b64encode(PNG + b"pixels").decode() in write_report(run).read_text("utf-8")


def test_a_torn_last_line_is_expected_and_a_torn_one_before_is_told(run):
    path = run / "metrics.jsonl"
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole + '{"step": 41, "train/lo', encoding="utf-8")
    assert read_jsonl(path) == (_metrics(), 0)
    assert "Unreadable lines" not in _Page(write_report(run).read_text("utf-8")).headings
    path.write_text('{"step": 0, "tr\n' + whole, encoding="utf-8")
    page = _Page(write_report(run).read_text(encoding="utf-8"))
    assert page.headings[-1] == "Unreadable lines"
    assert any("1 line of metrics.jsonl" in word for word in page.words)


def test_a_step_logged_again_after_a_restart_counts_once_with_its_new_value():
    curves = Curves(
        [
            {"step": 1, "train/loss": 5.0},
            {"step": 2, "train/loss": 4.0},
            {"step": 2, "train/loss": 4.5},
            {"step": 2, "eval/docs/loss": 3.0},
        ]
    )
    x, y = curves.curve("train/loss")
    np.testing.assert_array_equal(x, [1, 2])
    np.testing.assert_array_equal(y, [5.0, 4.5])
    assert curves.eval_names() == ["docs"]


def test_wall_time_leaves_out_the_time_between_an_interruption_and_the_resume():
    curves = Curves(
        [{"step": 1, "time": 10.0}, {"step": 2, "time": 20.0}, {"step": 3, "time": 5030.0}]
    )
    events = [
        {"time": 5.0, "event": "start"},
        {"time": 5000.0, "event": "resume"},
        {"time": 5031.0, "event": "end"},
    ]
    assert curves.wall_seconds(events) == pytest.approx(5 + 10 + 30)


def test_the_time_of_all_lives_is_added_up_and_so_is_the_time_between(run):
    """Two lives of 10 and 20 seconds, 70 seconds apart (a part of which was done again)."""
    lives = [
        {
            "step": 1,
            "time": 1010.0,
            "time/train": 6.0,
            "time/other": 4.0,
            "host/0/host_seconds": 0.001,
            "host/1/host_seconds": 0.2,
        },
        {"step": 2, "time": 1100.0, "time/train": 15.0, "time/save": 2.0, "time/other": 3.0},
    ]
    events = [{"time": 1002.0, "event": "start"}, {"time": 1085.0, "event": "resume"}]
    assert where_time_went(lives, events) == {
        "train": 21.0,
        "other": 7.0,
        "save": 2.0,
        "down": 70.0,
    }
    _jsonl(run / "metrics.jsonl", lives)
    _jsonl(run / "events.jsonl", events)
    words = " ".join(_Page(write_report(run).read_text(encoding="utf-8")).words)
    assert "Goodput 21.0 %" in words and "down between two lives" in words and "200.0" in words


def test_a_missing_an_empty_and_a_damaged_folder_are_named(run, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="nothing in this folder"):
        write_report(tmp_path / "empty")
    (run / "config.json").write_text('{"model":', encoding="utf-8")
    with pytest.raises(DataError, match="config.json"):
        write_report(run)


def test_without_matplotlib_the_error_names_the_extra(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"qwen_jax\[report\]"):
        write_report(run)


def test_curves_read_the_former_names_of_metrics():
    former = {"perf/mfu_a": 0.4, "host/3/own_seconds": 0.1, "rollout/sampler_gap": 1e-6}
    curves = Curves([{"step": 1, **former}])
    assert [curves.last("perf/mfu"), curves.last("rollout/sampler_logprob_gap")] == [0.4, 1e-6]
    assert curves.named("host/", "/host_seconds") == ["3"]
