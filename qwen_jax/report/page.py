"""Writes the report of a run folder: one self-contained HTML page, and its plots in plots/.

Each section reads one or two files of the folder and is omitted if they do not exist. A report can
therefore be written at any time during a run.
"""

import base64
import os
import pathlib
from typing import Any

from qwen_jax.errors import DataError
from qwen_jax.report import sections
from qwen_jax.report.elements import STYLE, any_table, escaped, side_by_side
from qwen_jax.report.plots import draw_plots
from qwen_jax.report.records import Curves, read_json, read_jsonl
from qwen_jax.report.times import attempts
from qwen_jax.utils.files import read_bytes, write_bytes, write_text

_FILES = (  # JSON files of a run folder; each may be missing
    "config",
    "versions",
    "compression",
    "evaluation",
    "samples",
    "answers",
    "calibration",
    "export",
)
_STAGES = {  # folder of a training stage -> title of its section
    "sft": "Supervised fine-tuning (report 3.1)",
    "pmp": "Preference model pretraining (report 3.2.1)",
    "reward": "Reward model (report 3.2.1)",
    "ppo": "Reinforcement learning (report 3.2.2)",
    "grpo": "Reinforcement learning, GRPO (not in the report)",
}
_STAGE_PLOTS = {  # plot -> caption
    "loss": "Loss.",
    "accuracy": "Accuracy: fraction of pairs whose chosen response has the higher reward.",
    "calibration": "Calibration: accuracy against the confidence of the reward model. Dotted line: "
    "perfect calibration.",
    "reward": "Reward of the sampled completions, before normalization.",
    "kl": "KL divergence of the policy from the reference model.",
    "entropy": "Entropy of the policy.",
    "zero_std": "Groups whose rewards are all equal, from which GRPO learns nothing.",
    "value": "Squared error of the value model.",
}


def write_report(run_dir: str | os.PathLike) -> pathlib.Path:
    """Writes report.html and plots/*.png into `run_dir` and returns the path of report.html.

    Reads these files if they exist: config.json, versions.json, metrics.jsonl, events.jsonl,
    compression.json, compression.png, evaluation.json, samples.json, answers.json,
    calibration.json, export.json. Also reads the folders of later training stages. records.py
    documents the contents.

    Raises:
      DataError: the folder does not exist, is not a run folder, or contains an invalid JSON file. A
        truncated last line of a .jsonl file, as left by a killed run, is not an error.
      ConfigError: matplotlib is not installed.
    """
    folder = pathlib.Path(run_dir)
    if not folder.is_dir():
        raise DataError("the folder does not exist.", str(folder), "pass a run folder.")
    files: dict[str, Any] = {name: read_json(folder / f"{name}.json") for name in _FILES}
    steps, bad_metrics = read_jsonl(folder / "metrics.jsonl")
    events, bad_events = read_jsonl(folder / "events.jsonl")
    if not steps and all(content is None for content in files.values()):
        raise DataError(
            "this is not a run folder.",
            str(folder),
            "pass a folder that contains metrics.jsonl or config.json.",
        )
    curves = Curves(steps)
    plots = _plots(folder, curves, files)
    (folder / "plots").mkdir(exist_ok=True)
    for name, png in plots.items():
        write_bytes(folder / "plots" / f"{name}.png", png)
    unreadable = {"metrics.jsonl": bad_metrics, "events.jsonl": bad_events}
    parts = [
        *_training_sections(files, curves, steps, events, plots),
        *_run_sections(files, curves, steps, events, plots),
        ("Unreadable lines", sections.unreadable(unreadable)),
    ]
    title = folder.resolve().name
    write_text(folder / "report.html", _page(title, sections.subtitle(files, curves), parts))
    return folder / "report.html"


def _plots(folder: pathlib.Path, curves: Curves, files: dict[str, Any]) -> dict[str, bytes]:
    """Returns {name: PNG} for the run and for each training stage folder in it."""
    plots = draw_plots(curves, files["evaluation"], files["calibration"])
    compression = folder / "compression.png"
    if compression.exists():
        plots["compression"] = read_bytes(compression)
    for stage in _STAGES:
        stage_plots = draw_plots(
            Curves(read_jsonl(folder / stage / "metrics.jsonl")[0]),
            None,
            read_json(folder / stage / "calibration.json"),
        )
        plots |= {
            f"{stage}_{name}": png for name, png in stage_plots.items() if name in _STAGE_PLOTS
        }
    return plots


def _picture(plots: dict[str, bytes], name: str, caption: str) -> str:
    if name not in plots:
        return ""
    data = base64.b64encode(plots[name]).decode("ascii")
    return (
        f'<figure><img alt="{escaped(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escaped(caption)}</figcaption></figure>"
    )


def _training_sections(
    files, curves: Curves, steps: list[dict], events: list[dict], plots
) -> list[tuple[str, str]]:
    """Returns the (title, HTML) pairs of loss, evaluation and samples."""

    def stage(prefix: str, *omitted: str) -> str:
        return side_by_side(
            *(
                _picture(plots, prefix + name, caption)
                for name, caption in _STAGE_PLOTS.items()
                if name not in omitted
            )
        )

    loss = _picture(
        plots,
        "loss",
        "Training loss (thin: every logged step, thick: running mean)"
        + (" and held-out loss." if curves.eval_names() else "."),
    )
    benchmarks = _picture(
        plots,
        "benchmarks",
        "Scores of benchmarks on a fixed part of their questions; band: two standard errors.",
    )
    perplexity = _picture(plots, "perplexity", "Held-out perplexity; lower is better.")
    return [
        ("", sections.tiles(curves, attempts(steps, events), files["config"])),
        ("Loss", loss + sections.held_out(curves)),
        ("Benchmarks", benchmarks + sections.benchmarks(curves)),
        (
            "Comparison with an n-gram model",
            sections.ngram_comparison(files["evaluation"]) + perplexity,
        ),
        ("Samples", sections.samples(files["samples"])),
        ("Preference training", stage("", "loss")),
        *((title, stage(f"{name}_")) for name, title in _STAGES.items()),
        ("Responses by stage", any_table(files["answers"])),
    ]


def _run_sections(
    files, curves: Curves, steps: list[dict], events: list[dict], plots
) -> list[tuple[str, str]]:
    """Returns the (title, HTML) pairs of optimization, speed, configuration and events."""
    optimization = side_by_side(
        _picture(plots, "learning_rate", "Learning rate."),
        _picture(
            plots,
            "gradient_norm",
            "Gradient norm before clipping (thick: running median).",
        ),
    )
    speed = side_by_side(
        _picture(plots, "throughput", "Tokens per second, excluding evaluation and checkpoints."),
        _picture(plots, "data_wait", "Time per step spent waiting for data."),
        _picture(plots, "sampling", "Time per step spent sampling completions."),
        _picture(plots, "phases", "Time of each phase of a step (running median)."),
    )
    times = sections.time_table(attempts(steps, events)) + sections.hosts(curves)
    compression = _picture(plots, "compression", "Bytes of text per token; higher is better.")
    return [
        ("Optimization", optimization),
        ("Speed", speed),
        ("Time breakdown", times),
        ("Compression", compression + any_table(files["compression"])),
        ("Export", any_table(files["export"])),
        ("Configuration", sections.configuration(files["config"])),
        ("Versions", any_table(files["versions"])),
        ("Events", sections.event_table(events, attempts(steps, events))),
    ]


def _page(title: str, subtitle: str, parts: list[tuple[str, str]]) -> str:
    """Returns the HTML document; sections without content are omitted."""
    body = "".join(
        f"<section>{f'<h2>{heading}</h2>' if heading else ''}{content}</section>"
        for heading, content in parts
        if content
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escaped(title)} · qwen_jax</title><style>{STYLE}</style></head>"
        f"<body><header><h1>{escaped(title)}</h1><p>{escaped(subtitle)}</p>"
        f"</header>{body}</body></html>\n"
    )
