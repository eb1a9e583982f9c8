"""A run folder -> one HTML page that stands alone, and its plots as PNG files in plots/.

A section reads one or two files of the folder and is left out where they are not there yet, so a
report can be written at any moment of a run.
"""

import base64
import html
import math
import os
import pathlib

from qwen_jax.errors import ConfigError, DataError
from qwen_jax.model import spec
from qwen_jax.pretrained.from_run import run_config
from qwen_jax.report.plots import draw_plots
from qwen_jax.report.records import (
    LABELS,
    Curves,
    numbers,
    read_json,
    read_jsonl,
    where_time_went,
)
from qwen_jax.train.telemetry.metrics import format_seconds


def write_report(run_dir: str | os.PathLike) -> pathlib.Path:
    """Writes report.html and plots/*.png into `run_dir`; returns the page's path.

    Reads what is there of config.json, versions.json, metrics.jsonl, events.jsonl,
    compression.json and .png, evaluation.json, samples.json, answers.json, export.json and the
    folders of later stages; what each holds is told in records.py.

    Raises:
      DataError: no such folder, nothing of a run in it, or a damaged JSON file. A torn last line of
        a .jsonl file is what a killed run leaves, and no error.
      ConfigError: matplotlib is not installed.
    """
    folder = pathlib.Path(run_dir)
    if not folder.is_dir():
        raise DataError("there is no such folder.", str(folder), "pass the folder of a run.")
    files = {
        name: read_json(folder / f"{name}.json")
        for name in (
            "config",
            "versions",
            "compression",
            "evaluation",
            "samples",
            "answers",
            "calibration",
            "export",
        )
    }
    steps, bad_metrics = read_jsonl(folder / "metrics.jsonl")
    events, bad_events = read_jsonl(folder / "events.jsonl")
    if not steps and all(content is None for content in files.values()):
        raise DataError(
            "nothing in this folder belongs to a run.",
            str(folder),
            "pass a folder that holds metrics.jsonl or config.json.",
        )
    curves = Curves(steps)
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
    (folder / "plots").mkdir(exist_ok=True)
    for name, png in plots.items():
        _write(folder / "plots" / f"{name}.png", png)

    def picture(name: str, caption: str) -> str:
        if name not in plots:
            return ""
        data = base64.b64encode(plots[name]).decode("ascii")
        return (
            f'<figure><img alt="{_text(caption)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{_text(caption)}</figcaption></figure>"
        )

    def learnt(prefix: str) -> str:
        return _row(*(picture(prefix + name, caption) for name, caption in _OF_A_STAGE.items()))

    sections = [
        ("", _tiles(curves, events, files["config"])),
        (
            "Loss",
            picture(
                "loss",
                "Training loss, every logged step thin and its running mean "
                "thick; held-out loss where it was measured.",
            )
            + _held_out(curves),
        ),
        (
            "Against counting",
            _against_counting(files["evaluation"])
            + picture("perplexity", "Held-out perplexity; lower is better."),
        ),
        ("Samples", _samples(files["samples"])),
        (
            "From preferences",
            _row(*(picture(name, _OF_A_STAGE[name]) for name in _OF_A_STAGE if name != "loss")),
        ),
        *((title, learnt(f"{stage}_")) for stage, title in _STAGES.items()),
        ("Answers, stage by stage", _any_table(files["answers"])),
        (
            "Optimisation",
            _row(
                picture("learning_rate", "Learning rate of each step."),
                picture(
                    "gradient_norm", "Norm of the gradient before clipping, and its running median."
                ),
            ),
        ),
        (
            "Speed",
            _row(
                picture("throughput", "Tokens per second, without evaluation and saving."),
                picture("data_wait", "Time a step waited for its batch."),
                picture("sampling", "Time a step sampled answers."),
            ),
        ),
        ("Where the time went", _where_time_went(where_time_went(steps, events)) + _hosts(curves)),
        (
            "Compression",
            picture("compression", "Text that a token holds: more is better.")
            + _any_table(files["compression"]),
        ),
        ("Export", _any_table(files["export"])),
        ("Configuration", _configuration(files["config"])),
        ("Versions", _any_table(files["versions"])),
        ("Events", _events(events)),
        (
            "Unreadable lines",
            _unreadable({"metrics.jsonl": bad_metrics, "events.jsonl": bad_events}),
        ),
    ]
    name = folder.resolve().name
    body = "".join(
        f"<section>{f'<h2>{title}</h2>' if title else ''}{content}</section>"
        for title, content in sections
        if content
    )
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(name)} · qwen_jax</title><style>{_STYLE}</style></head>"
        f"<body><header><h1>{_text(name)}</h1><p>{_text(_subtitle(files, curves))}</p>"
        f"</header>{body}</body></html>\n"
    )
    _write(folder / "report.html", page.encode("utf-8"))
    return folder / "report.html"


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
    "reward": "Reward of the sampled answers, before normalisation.",
    "kl": "How far the policy is from where it started; the penalty holds it.",
    "entropy": "How undecided the policy is.",
    "value": "Error of the value model.",
}


def _subtitle(files: dict, curves: Curves) -> str:
    config = files["config"] if isinstance(files["config"], dict) else {}
    wanted = (config.get("train") or {}).get("num_steps")
    steps = f"{curves.last_step:,}" + (f" of {wanted:,}" if isinstance(wanted, int) else "")
    devices = (files["versions"] or {}).get("devices")
    return f"qwen_jax run, {steps} steps" + (f", {devices}" if devices else "")


def _tiles(curves: Curves, events: list[dict], config: dict | None) -> str:
    losses = curves.curve("train/loss")[1]
    recent = losses[-max(1, len(losses) // 40) :]
    names = curves.eval_names()
    held_out = f"eval/{names[0]}/" if names else "eval//"
    note = names[0] if len(names) > 1 else ""
    tiles = [
        ("parameters", _count(_parameters(config)), ""),
        ("tokens seen", _count(curves.last("train/tokens")), ""),
        (
            "training loss",
            _fixed(float(recent.mean()), 3) if len(recent) else None,
            f"mean of the last {len(recent)} logged" if len(recent) > 1 else "",
        ),
        ("held-out loss", _fixed(curves.last(held_out + "loss"), 3), note),
        ("held-out perplexity", _fixed(curves.last(held_out + "perplexity"), 2), note),
        ("bits per byte", _fixed(curves.last(held_out + "bits_per_byte"), 3), note),
        ("tokens per second", _count(curves.median("perf/tokens_per_second")), _mfu(curves)),
        ("wall time", _seconds(curves.wall_seconds(events)), ""),
    ]
    shown = "".join(
        f'<div><span class="label">{_text(label)}</span><b>{_text(value)}</b>'
        f'<span class="note">{_text(note)}</span></div>'
        for label, value, note in tiles
        if value is not None
    )
    return f'<div class="tiles">{shown}</div>' if shown else ""


def _held_out(curves: Curves) -> str:
    names = curves.eval_names()
    if len(names) < 2:
        return ""
    columns = ("loss", "perplexity", "bits_per_byte")
    return _table(
        ["held-out text", *(LABELS.get(c, c) for c in columns)],
        [
            [name, *(_fixed(curves.last(f"eval/{name}/{c}"), 3) or "" for c in columns)]
            for name in names
        ],
    )


def _against_counting(evaluation) -> str:
    if not isinstance(evaluation, dict):
        return ""
    values = numbers(evaluation, "perplexity")
    sentence = ""
    if values.keys() >= {"model", "ngram"}:
        model, ngram = values["model"], values["ngram"]
        better = "lower" if model < ngram else "higher"
        factor = max(model, ngram) / min(model, ngram)
        sentence = (
            f"<p>On the same held-out text and with the same vocabulary, the model's "
            f"perplexity is {factor:.2f} times {better} than that of a 3-gram model "
            f"(interpolated modified Kneser-Ney) fitted to the same training text.</p>"
        )
    rows = {LABELS.get(k, k): v for k, v in evaluation.items() if isinstance(v, dict)}
    others = {k: v for k, v in evaluation.items() if not isinstance(v, dict)}
    return sentence + _any_table(rows) + _any_table(others)


def _samples(samples) -> str:
    parts = []
    for sample in samples or []:
        prompt, text = str(sample.get("prompt", "")), str(sample.get("text", ""))
        text = text[len(prompt) :] if prompt and text.startswith(prompt) else text
        settings = ", ".join(
            f"{key.replace('_', ' ')} {_value(value)}"
            for key, value in sample.items()
            if key not in ("prompt", "text")
        )
        parts.append(
            f'<pre class="sample"><b>{_text(prompt)}</b>{_text(text)}</pre>'
            f'<p class="note">{_text(settings)}</p>'
        )
    return (
        "<p>What was given is bold; the rest is the model's.</p>" + "".join(parts) if parts else ""
    )


_KINDS = {
    "train": "training",
    "sample": "sampling answers",
    "wait": "waiting for batches",
    "compile": "compiling",
    "restore": "restoring a checkpoint, or making the first state",
    "save": "standing still for a save",
    "evaluate": "evaluating on held-out text",
    "redo": "steps undone by going back from a spike",
    "other": "starting, and what is not measured",
    "down": "down between two lives, and steps done again",
}


def _where_time_went(seconds: dict[str, float]) -> str:
    """Goodput over all lives: the share of the time that kept steps and their samples took."""
    total = sum(seconds.values())
    if not total:
        return ""
    rows = [
        [_KINDS.get(kind, kind), format_seconds(value), f"{100 * value / total:.1f} %"]
        for kind, value in sorted(seconds.items(), key=lambda item: -item[1])
        if value > 0
    ]
    work = seconds["train"] + seconds.get("sample", 0.0)
    return (
        f"<p>Goodput {100 * work / total:.1f} %: the share of training in all of "
        "the time since the first start.</p>" + _table(["", "time", "share"], rows)
    )


def _hosts(curves: Curves) -> str:
    """Each host's own time a step: the one that stands out is waited for by all."""
    names = curves.named("host/", "/own_seconds")
    if len(names) < 2:
        return ""
    rows = [
        [name, f"{1e3 * curves.median(f'host/{name}/own_seconds'):.1f}"]
        for name in sorted(names, key=int)
    ]
    return _table(["process", "own time a step (ms, median)"], rows)


def _configuration(config) -> str:
    if not isinstance(config, dict):
        return ""
    groups = {"run": {k: v for k, v in config.items() if not isinstance(v, dict)}}
    groups |= {k: v for k, v in config.items() if isinstance(v, dict)}
    return (
        '<div class="columns">'
        + "".join(
            f"<div><h3>{_text(title)}</h3>{_any_table(group)}</div>"
            for title, group in groups.items()
            if group
        )
        + "</div>"
    )


def _events(events: list[dict]) -> str:
    if not events:
        return ""
    begin = min(event.get("time", math.inf) for event in events)
    rows = []
    for event in events:
        after = event.get("time", begin) - begin
        details = ", ".join(
            f"{key} {_value(value)}" for key, value in event.items() if key not in ("time", "event")
        )
        rows.append([f"+{format_seconds(after)}", str(event.get("event", "")), details])
    table = _table(["time", "event", ""], rows)
    if len(rows) <= 12:
        return table
    return f"<details><summary>{len(rows)} events</summary>{table}</details>"


def _unreadable(bad: dict[str, int]) -> str:
    return "".join(
        f"<p>{count} {'lines' if count > 1 else 'line'} of {name} could not be read and "
        "were left out.</p>"
        for name, count in bad.items()
        if count
    )


def _any_table(content) -> str:
    """A table of a dict of dicts, a list of dicts, or a dict of values."""
    if isinstance(content, dict) and content and all(isinstance(v, dict) for v in content.values()):
        content = [{"": name, **row} for name, row in content.items()]
    if isinstance(content, dict):
        return _table([], [[str(name), _value(value)] for name, value in content.items()])
    if isinstance(content, list) and content and all(isinstance(row, dict) for row in content):
        columns = list(dict.fromkeys(key for row in content for key in row))
        return _table(
            [LABELS.get(c, c.replace("_", " ")) for c in columns],
            [[_value(row.get(c, "")) for c in columns] for row in content],
        )
    return ""


def _table(head: list[str], rows: list[list[str]]) -> str:
    """Columns of numbers are set flush right; a table without a head is one of names and values."""
    if not rows:
        return ""
    right = [bool(head) and all(map(_is_number, column)) for column in zip(*rows, strict=True)]

    def cells(row, tag):
        return "".join(
            f"<{tag}{' class=number' if flush else ''}>{_text(cell)}</{tag}>"
            for cell, flush in zip(row, right, strict=True)
        )

    top = f"<thead><tr>{cells(head, 'th')}</tr></thead>" if head else ""
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'


def _row(*figures: str) -> str:
    return f'<div class="pair">{"".join(figures)}</div>' if any(figures) else ""


def _parameters(config) -> int | None:
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        return None
    try:
        return spec.count(run_config(config, pathlib.Path()))
    except (ConfigError, TypeError):  # the config of another version: the page can do without
        return None


def _mfu(curves: Curves) -> str:
    a, b = curves.median("perf/mfu_a"), curves.median("perf/mfu_b")
    return "" if a is None or b is None else f"MFU {a:.1%} (A), {b:.1%} (B)"


def _count(value: float | None) -> str | None:
    if value is None:
        return None
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:,.0f}"


def _fixed(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:,.{digits}f}"


def _seconds(value: float | None) -> str | None:
    return None if value is None else format_seconds(value)


def _value(value) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value, value)) or "none"
    return str(value)


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", "") or 0)
    except ValueError:
        return False
    return True


def _text(value) -> str:
    return html.escape(str(value))


def _write(path: pathlib.Path, content: bytes) -> None:
    """Whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


_STYLE = """
body{font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;
color:#1f2937;background:#fff;max-width:60rem;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.9rem;margin:0;overflow-wrap:anywhere}header p{color:#64748b;margin:.2rem 0 1.5rem}
h2{font-size:1.2rem;margin:2.6rem 0 .8rem;padding-bottom:.3rem;border-bottom:1px solid #e2e8f0}
h3{font-size:.95rem;margin:0 0 .3rem;color:#475569}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(12.5rem,1fr));gap:.75rem}
.tiles div{background:#f8fafc;border:1px solid #e2e8f0;border-radius:.5rem;padding:.7rem .9rem}
.tiles b{display:block;font-size:1.55rem;font-weight:600;font-variant-numeric:tabular-nums}
.label{color:#475569;font-size:.85rem}.note{color:#64748b;font-size:.8rem}
p.note{margin:.25rem 0 1.2rem}
figure{margin:0}img{max-width:100%;height:auto;display:block}
figcaption{color:#64748b;font-size:.85rem;margin:.3rem 0 .8rem}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(20rem,1fr));gap:1rem}
.columns{columns:22rem 2;column-gap:2rem}.columns>div{break-inside:avoid}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.88rem;min-width:min(100%,30rem);margin-bottom:.8rem}
.columns table{min-width:100%}td:first-child{white-space:nowrap}.columns td:first-child{width:50%}
th{text-align:left;color:#475569;font-weight:600}
td,th{padding:.28rem 1.6rem .28rem 0;border-bottom:1px solid #f1f5f9;vertical-align:top;
overflow-wrap:anywhere}
.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
pre.sample{background:#f8fafc;border-left:3px solid #2b6cb0;border-radius:0 .4rem .4rem 0;
padding:.8rem 1rem;margin:0;font:.85rem/1.5 ui-monospace,"DejaVu Sans Mono",monospace;
white-space:pre-wrap;overflow-wrap:anywhere}
summary{cursor:pointer;color:#2b6cb0}
@media print{body{max-width:none;padding:0}section{break-inside:avoid}}
"""
