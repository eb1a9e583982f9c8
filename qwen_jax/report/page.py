"""A run folder -> one HTML page that stands alone, and its plots as PNG files in plots/.

A section reads one or two files of the folder and is left out where they are not there yet, so a
report can be written at any moment of a run.
"""

import base64
import os
import pathlib
from typing import Any

from qwen_jax.errors import DataError
from qwen_jax.report import sections
from qwen_jax.report.elements import STYLE, any_table, escaped, row
from qwen_jax.report.plots import draw_plots
from qwen_jax.report.records import Curves, read_json, read_jsonl, where_time_went
from qwen_jax.utils.files import write_bytes, write_text

_FILES = (  # JSON files of a run's folder; each may be missing
    "config",
    "versions",
    "compression",
    "evaluation",
    "samples",
    "answers",
    "calibration",
    "export",
)
_STAGES = {  # folder of a stage -> its section
    "sft": "Supervised fine-tuning (report 3.1)",
    "pmp": "Preference model pretraining (report 3.2.1)",
    "reward": "Reward model (report 3.2.1)",
    "ppo": "Reinforcement learning (report 3.2.2)",
}
_OF_A_STAGE = {  # plot -> caption
    "loss": "Loss.",
    "accuracy": "Held-out pairs whose better answer has the higher reward.",
    "calibration": "How sure it is of the answer that it prefers, and how often that is the better "
    "one; on the dotted line it knows what it knows.",
    "reward": "Reward of the sampled answers, before normalization.",
    "kl": "How far the policy is from where it started; the penalty holds it.",
    "entropy": "How undecided the policy is.",
    "value": "Error of the value model.",
}


def write_report(run_dir: str | os.PathLike) -> pathlib.Path:
    """Writes report.html and plots/*.png into `run_dir`; returns the page's path.

    Reads what is there of config.json, versions.json, metrics.jsonl, events.jsonl,
    compression.json and .png, evaluation.json, samples.json, answers.json, export.json and the
    folders of later stages; records.py says what each holds.

    Raises:
      DataError: no such folder, nothing of a run in it, or a damaged JSON file. A torn last line of
        a .jsonl file is what a killed run leaves, and no error.
      ConfigError: matplotlib is not installed.
    """
    folder = pathlib.Path(run_dir)
    if not folder.is_dir():
        raise DataError("there is no such folder.", str(folder), "pass the folder of a run.")
    files: dict[str, Any] = {name: read_json(folder / f"{name}.json") for name in _FILES}
    steps, bad_metrics = read_jsonl(folder / "metrics.jsonl")
    events, bad_events = read_jsonl(folder / "events.jsonl")
    if not steps and all(content is None for content in files.values()):
        raise DataError(
            "nothing in this folder belongs to a run.",
            str(folder),
            "pass a folder that holds metrics.jsonl or config.json.",
        )
    curves = Curves(steps)
    plots = _plots(folder, curves, files)
    (folder / "plots").mkdir(exist_ok=True)
    for name, png in plots.items():
        write_bytes(folder / "plots" / f"{name}.png", png)
    unreadable = {"metrics.jsonl": bad_metrics, "events.jsonl": bad_events}
    parts = [
        *_of_training(files, curves, events, plots),
        *_of_the_run(files, curves, steps, events, plots),
        ("Unreadable lines", sections.unreadable(unreadable)),
    ]
    title = folder.resolve().name
    write_text(folder / "report.html", _page(title, sections.subtitle(files, curves), parts))
    return folder / "report.html"


def _plots(folder: pathlib.Path, curves: Curves, files: dict[str, Any]) -> dict[str, bytes]:
    """name -> PNG, of the run and of each stage that has a folder in it."""
    plots = draw_plots(curves, files["evaluation"], files["calibration"])
    compression = folder / "compression.png"
    if compression.exists():
        plots["compression"] = compression.read_bytes()
    for stage in _STAGES:
        drawn = draw_plots(
            Curves(read_jsonl(folder / stage / "metrics.jsonl")[0]),
            None,
            read_json(folder / stage / "calibration.json"),
        )
        plots |= {f"{stage}_{name}": png for name, png in drawn.items() if name in _OF_A_STAGE}
    return plots


def _picture(plots: dict[str, bytes], name: str, caption: str) -> str:
    if name not in plots:
        return ""
    data = base64.b64encode(plots[name]).decode("ascii")
    return (
        f'<figure><img alt="{escaped(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escaped(caption)}</figcaption></figure>"
    )


def _of_training(files, curves: Curves, events: list[dict], plots) -> list[tuple[str, str]]:
    """(title, HTML) of what was learned."""

    def stage(prefix: str, *left_out: str) -> str:
        return row(
            *(
                _picture(plots, prefix + name, caption)
                for name, caption in _OF_A_STAGE.items()
                if name not in left_out
            )
        )

    loss = _picture(
        plots,
        "loss",
        "Training loss, every logged step thin and its running mean thick; held-out loss where it "
        "was measured.",
    )
    perplexity = _picture(plots, "perplexity", "Held-out perplexity; lower is better.")
    return [
        ("", sections.tiles(curves, events, files["config"])),
        ("Loss", loss + sections.held_out(curves)),
        ("Against counting", sections.against_counting(files["evaluation"]) + perplexity),
        ("Samples", sections.samples(files["samples"])),
        ("From preferences", stage("", "loss")),
        *((title, stage(f"{name}_")) for name, title in _STAGES.items()),
        ("Answers, stage by stage", any_table(files["answers"])),
    ]


def _of_the_run(
    files, curves: Curves, steps: list[dict], events: list[dict], plots
) -> list[tuple[str, str]]:
    """(title, HTML) of how the run went and what it is."""
    optimization = row(
        _picture(plots, "learning_rate", "Learning rate of each step."),
        _picture(
            plots,
            "gradient_norm",
            "Norm of the gradient before clipping, and its running median.",
        ),
    )
    speed = row(
        _picture(plots, "throughput", "Tokens per second, without evaluation and saving."),
        _picture(plots, "data_wait", "Time a step waited for its batch."),
        _picture(plots, "sampling", "Time a step sampled answers."),
        _picture(plots, "phases", "Time of each phase of a step, its running median."),
    )
    times = sections.time_table(where_time_went(steps, events)) + sections.hosts(curves)
    compression = _picture(plots, "compression", "Text that a token holds: more is better.")
    return [
        ("Optimization", optimization),
        ("Speed", speed),
        ("Where the time went", times),
        ("Compression", compression + any_table(files["compression"])),
        ("Export", any_table(files["export"])),
        ("Configuration", sections.configuration(files["config"])),
        ("Versions", any_table(files["versions"])),
        ("Events", sections.event_table(events)),
    ]


def _page(title: str, subtitle: str, parts: list[tuple[str, str]]) -> str:
    """The document; a part without content is left out."""
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
