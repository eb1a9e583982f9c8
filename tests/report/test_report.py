"""The report page of a run: complete, self-contained, and writable at any time of the run."""

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
from qwen_jax.report import plots, write_report
from qwen_jax.report.records import Curves, read_jsonl
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
    """Collects headings, text, images and tags, and checks that tags nest."""

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


def test_write_report_contains_every_section_and_plot(run):
    path = write_report(run)
    assert path == run / "report.html"
    page = _Page(path.read_text(encoding="utf-8"))
    assert page.headings == [
        "a <run>",
        "Loss",
        "Comparison with an n-gram model",
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
def test_write_report_draws_the_phases_of_ppo(tmp_path, metrics, plot):
    records = [{"step": step, "train/loss": 1.0, **metrics} for step in range(1, 9)]
    _jsonl(tmp_path / "metrics.jsonl", records)
    write_report(tmp_path)
    plots = {file.stem for file in (tmp_path / "plots").iterdir()}
    assert plots & {"phases", "sampling"} == {plot}


@pytest.mark.parametrize("metrics, unit", [({}, "token"), ({"train/accuracy": 1.0}, "pair")])
def test_draw_plots_names_the_unit_of_the_loss(monkeypatch, metrics, unit):
    monkeypatch.setattr(plots, "_png", lambda figure: figure.axes[0].get_ylabel())
    curves = Curves([{"step": step, "train/loss": 1.0, **metrics} for step in range(1, 4)])
    assert plots.draw_plots(curves, None)["loss"] == f"loss (nats per {unit})"


def test_write_report_draws_the_groups_of_equal_rewards_of_grpo(tmp_path):
    names = ("reward", "kl", "entropy", "frac_reward_zero_std")
    records = [
        {"step": step, "train/loss": 1.0, **{f"rollout/{name}": 0.5 for name in names}}
        for step in range(1, 9)
    ]
    _jsonl(tmp_path / "metrics.jsonl", records)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    plots = {file.stem for file in (tmp_path / "plots").iterdir()}
    assert {"reward", "kl", "entropy", "zero_std"} <= plots and "value" not in plots
    assert "whose rewards are all equal" in page


def test_write_report_loads_nothing_external_and_escapes_samples(run):
    text = write_report(run).read_text(encoding="utf-8")
    page = _Page(text)
    assert "script" not in page.tags and "link" not in page.tags
    assert not re.search(r"(src|href)=\"(?!data:)|@import|url\(", text)
    assert "a): return a<b & <script>alert(1)</script>" in page.words  # escaped exactly once
    assert "def f(" in page.words


@pytest.mark.parametrize(
    "kept", ["metrics.jsonl", "config.json", "samples.json", "compression.json", "export.json"]
)
def test_write_report_works_with_any_one_file(run, kept):
    for file in list(run.iterdir()):
        if file.name != kept:
            file.unlink()
    page = _Page(write_report(run).read_text(encoding="utf-8"))
    expected = {
        "metrics.jsonl": ["Loss", "Optimization", "Speed"],
        "config.json": ["Configuration"],
        "samples.json": ["Samples"],
        "compression.json": ["Compression"],
        "export.json": ["Export"],
    }[kept]
    assert page.headings[1:] == expected


def test_write_report_works_after_one_step(run):
    _jsonl(run / "metrics.jsonl", _metrics(1))
    assert "Loss" in _Page(write_report(run).read_text(encoding="utf-8")).headings


def test_write_report_skips_non_finite_values(run):
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


def test_write_report_embeds_compression_png(run):
    (run / "compression.png").write_bytes(PNG + b"pixels")
    assert base64.b64encode(PNG + b"pixels").decode() in write_report(run).read_text("utf-8")


def test_read_jsonl_accepts_a_truncated_last_line_and_counts_others(run):
    path = run / "metrics.jsonl"
    complete = path.read_text(encoding="utf-8")
    path.write_text(complete + '{"step": 41, "train/lo', encoding="utf-8")
    assert read_jsonl(path) == (_metrics(), 0)
    assert "Unreadable lines" not in _Page(write_report(run).read_text("utf-8")).headings
    path.write_text('{"step": 0, "tr\n' + complete, encoding="utf-8")
    page = _Page(write_report(run).read_text(encoding="utf-8"))
    assert page.headings[-1] == "Unreadable lines"
    assert any("1 unreadable line of metrics.jsonl" in word for word in page.words)


def test_curves_keep_the_last_value_of_a_step_logged_again():
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


def test_write_report_rejects_missing_empty_and_damaged_folders(run, tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="not a run folder"):
        write_report(tmp_path / "empty")
    (run / "config.json").write_text('{"model":', encoding="utf-8")
    with pytest.raises(DataError, match="config.json"):
        write_report(run)


def test_write_report_without_matplotlib_names_the_extra(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"qwen_jax\[report\]"):
        write_report(run)


def test_curves_read_former_names_of_metrics():
    former = {"perf/mfu_a": 0.4, "host/3/own_seconds": 0.1, "rollout/sampler_gap": 1e-6}
    curves = Curves([{"step": 1, **former}])
    assert [curves.last("perf/mfu"), curves.last("rollout/sampler_logprob_gap")] == [0.4, 1e-6]
    assert curves.named("host/", "/host_seconds") == ["3"]
