"""Sections of the page: each renders one or two files as HTML, or '' if they are missing."""

import math
import pathlib

import numpy as np

from qwen_jax.errors import ConfigError
from qwen_jax.model import spec
from qwen_jax.pretrained.from_run import run_config
from qwen_jax.report.elements import any_table, escaped, format_value, table
from qwen_jax.report.records import LABELS, Curves, is_number, numbers
from qwen_jax.report.times import DOWN, Attempt, breakdown, wall_seconds
from qwen_jax.utils.format import format_seconds


def subtitle(files: dict, curves: Curves) -> str:
    config = files["config"] if isinstance(files["config"], dict) else {}
    train = config.get("train")
    wanted = train.get("num_steps") if isinstance(train, dict) else None
    steps = f"{curves.last_step:,}" + (f" of {wanted:,}" if is_number(wanted) else "")
    devices = (files["versions"] or {}).get("devices")
    return f"qwen_jax run, {steps} steps" + (f", {devices}" if devices else "")


def tiles(curves: Curves, attempts: list[Attempt], config: dict | None) -> str:
    def recent(name: str) -> np.ndarray:
        values = curves.curve(name)[1]
        return values[-max(1, len(values) // 40) :]

    loss, reward, kl, accuracy = map(
        recent, ("train/loss", "rollout/reward", "rollout/kl", "train/accuracy")
    )
    names = curves.eval_names()
    held_out = f"eval/{names[0]}/" if names else "eval//"
    train = config.get("train") if isinstance(config, dict) else None
    batches = train.get("eval_batches") if isinstance(train, dict) else None
    note = f"{names[0]}, at most {batches:,} batches" if names and is_number(batches) else ""
    tiles = [
        ("parameters", _count(_parameters(config)), ""),
        ("training tokens", _count(curves.last("train/tokens")), ""),
        (
            "training loss",
            _mean(loss),
            f"mean of the last {len(loss)} logged steps" if len(loss) > 1 else "",
        ),
        ("reward", _mean(reward), "per completion"),
        ("KL", _mean(kl), "nats from the reference"),
        ("training accuracy", _mean(accuracy), "of pairs"),
        ("held-out loss", _fixed(curves.last(held_out + "loss"), 3), note),
        ("held-out perplexity", _fixed(curves.last(held_out + "perplexity"), 2), note),
        ("bits per byte", _fixed(curves.last(held_out + "bits_per_byte"), 3), note),
        ("tokens per second", _count(curves.median("perf/tokens_per_second")), _mfu(curves)),
        (
            "wall time",
            _seconds(wall_seconds(attempts)),
            f"of {len(attempts)} attempts" if len(attempts) > 1 else "",
        ),
    ]
    cells = "".join(
        f'<div><span class="label">{escaped(label)}</span><b>{escaped(value)}</b>'
        f'<span class="note">{escaped(note)}</span></div>'
        for label, value, note in tiles
        if value is not None
    )
    return f'<div class="tiles">{cells}</div>' if cells else ""


def _mean(values: np.ndarray) -> str | None:
    return _fixed(float(values.mean()), 3) if len(values) else None


def held_out(curves: Curves) -> str:
    names = curves.eval_names()
    if len(names) < 2:
        return ""
    columns = ("loss", "perplexity", "bits_per_byte")
    return table(
        ["held-out text", *(LABELS.get(c, c) for c in columns)],
        [
            [name, *(_fixed(curves.last(f"eval/{name}/{c}"), 3) or "" for c in columns)]
            for name in names
        ],
    )


def benchmarks(curves: Curves) -> str:
    names = curves.eval_names("score")
    rows = []
    for name in names:
        x, y = curves.curve(f"eval/{name}/score")
        error = curves.last(f"eval/{name}/score_stderr")
        if len(y):
            rows.append([name, f"{x[-1]:,.0f}", _fixed(float(y[-1]), 1), _fixed(error, 1) or ""])
    return table(["benchmark", "step", "score (%)", "standard error"], rows) if rows else ""


def ngram_comparison(evaluation) -> str:
    if not isinstance(evaluation, dict):
        return ""
    values = numbers(evaluation, "perplexity")
    sentence = ""
    if values.keys() >= {"model", "ngram"}:
        model, ngram = values["model"], values["ngram"]
        comparison = "lower" if model < ngram else "higher"
        factor = max(model, ngram) / min(model, ngram)
        sentence = (
            f"<p>On all of the held-out text (above: its first batches) and with the same "
            f"vocabulary, the model's perplexity is {factor:.2f} times {comparison} than that of a "
            f"3-gram model (interpolated modified Kneser-Ney) fitted to the same training text.</p>"
        )
    rows = {LABELS.get(k, k): v for k, v in evaluation.items() if isinstance(v, dict)}
    others = {k: v for k, v in evaluation.items() if not isinstance(v, dict)}
    return sentence + any_table(rows) + any_table(others)


def samples(samples) -> str:
    parts = []
    for sample in samples or []:
        prompt, text = str(sample.get("prompt", "")), str(sample.get("text", ""))
        text = text[len(prompt) :] if prompt and text.startswith(prompt) else text
        settings = ", ".join(
            f"{key.replace('_', ' ')} {format_value(value)}"
            for key, value in sample.items()
            if key not in ("prompt", "text")
        )
        parts.append(
            f'<pre class="sample"><b>{escaped(prompt)}</b>{escaped(text)}</pre>'
            f'<p class="note">{escaped(settings)}</p>'
        )
    return "<p>Prompts are bold, completions are not.</p>" + "".join(parts) if parts else ""


_TIME_KINDS = {
    "train": "training",
    "sample": "rollouts (generation and scoring)",
    "wait": "waiting for data",
    "compile": "compilation",
    "restore": "checkpoint restore or initialization",
    "save": "checkpoint saving (blocking)",
    "evaluate": "evaluation",
    "redo": "steps rolled back after a loss spike",
    "other": "startup and unmeasured time",
    "lost": "steps after the last checkpoint of an attempt that was killed",
    DOWN: "between attempts",
}


def time_table(attempts: list[Attempt]) -> str:
    """Returns goodput over all attempts (time in kept steps and rollouts), and time by kind."""
    seconds = breakdown(attempts)
    total = sum(seconds.values())
    if not total or "train" not in seconds:  # earlier versions did not record it
        return ""
    rows = [
        [_TIME_KINDS.get(kind, kind), format_seconds(value), f"{100 * value / total:.1f} %"]
        for kind, value in sorted(seconds.items(), key=lambda item: -item[1])
        if value > 0
    ]
    work = seconds["train"] + seconds.get("sample", 0.0)
    text = f"Goodput {100 * work / total:.1f} %: the fraction of time since the first start spent "
    text += "in training."
    if len(attempts) > 1:
        text += (
            f" The {len(attempts)} attempts took {format_seconds(total - seconds[DOWN])} (the wall "
            f"time above), and {format_seconds(seconds[DOWN])} passed between them."
        )
    return f"<p>{text}</p>" + table(["", "time", "fraction"], rows)


def hosts(curves: Curves) -> str:
    """Returns a table of host time per step and process; a slow process delays all others."""
    names = curves.named("host/", "/host_seconds")
    if len(names) < 2:
        return ""
    rows = [
        [name, f"{1e3 * median:.1f}"]
        for name in sorted(names, key=int)
        if (median := curves.median(f"host/{name}/host_seconds")) is not None
    ]
    return table(["process", "host time per step (ms, median)"], rows)


def configuration(config) -> str:
    if not isinstance(config, dict):
        return ""
    # "parameters" is a path in checkpoints, not a setting.
    run = {k: v for k, v in config.items() if not isinstance(v, dict) and k != "parameters"}
    groups = {"run": run}
    groups |= {k: v for k, v in config.items() if isinstance(v, dict)}
    return (
        '<div class="columns">'
        + "".join(
            f"<div><h3>{escaped(title)}</h3>{any_table(group)}</div>"
            for title, group in groups.items()
            if group
        )
        + "</div>"
    )


def event_table(events: list[dict], attempts: list[Attempt]) -> str:
    """Returns the events with their times since the first attempt began, as wall time counts.

    The event "start" is logged later: before it come initialization and compilation.
    """
    if not events:
        return ""
    start = min(event.get("time", math.inf) for event in events)
    start = min([start, *(attempt.start for attempt in attempts)])
    rows = []
    for event in events:
        after = event.get("time", start) - start
        details = ", ".join(
            f"{key} {format_value(value)}"
            for key, value in event.items()
            if key not in ("time", "event")
        )
        rows.append([f"+{format_seconds(after)}", str(event.get("event", "")), details])
    content = table(["time", "event", ""], rows)
    if len(rows) <= 12:
        return content
    return f"<details><summary>{len(rows)} events</summary>{content}</details>"


def unreadable(bad: dict[str, int]) -> str:
    return "".join(
        f"<p>{count} unreadable {'lines' if count > 1 else 'line'} of {name} skipped.</p>"
        for name, count in bad.items()
        if count
    )


def _parameters(config) -> int | None:
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        return None
    try:
        return spec.count(run_config(config, pathlib.Path()))
    except ConfigError:  # a config of another version; the tile is optional
        return None


def _mfu(curves: Curves) -> str:
    mfu, noncausal = curves.median("perf/mfu"), curves.median("perf/mfu_noncausal")
    return "" if mfu is None or noncausal is None else f"MFU {mfu:.1%} (noncausal {noncausal:.1%})"


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
