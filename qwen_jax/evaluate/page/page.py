"""OUTPUT/index.html: the table of scores, the parts of each task, and a reader of samples.

Everything that comes from a model or from data is escaped here, or is in scripts (chunks.py) whose
values the page shows as text.
"""

import html
import math
import pathlib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from qwen_jax.evaluate.page.chunks import literal
from qwen_jax.evaluate.page.claims import claims
from qwen_jax.evaluate.table import REPORTED, mean_name, reported
from qwen_jax.evaluate.task import Task
from qwen_jax.evaluate.tasks import MEANS
from qwen_jax.utils.files import atomic_write

_COUNTS = ("truncated", "ties", "abstained", "errors", "separate", "dropped")
_SHARES = ("ended", "repetition_4", "distinct_1", "distinct_2")


def write(folder: pathlib.Path, results: Mapping[str, Any], tasks: Mapping[str, Task]) -> None:
    """Writes the page of an evaluation next to its results.

    Args:
      folder: the evaluation's output, with the folder `page` of chunks.write.
      results: the content of results.json.
      tasks: key -> task of each result.
    """
    with atomic_write(folder / "index.html") as file:
        file.write(page(results, tasks).encode("utf-8", "replace"))


def page(results: Mapping[str, Any], tasks: Mapping[str, Task]) -> str:
    """Returns the page."""
    name = str(results.get("checkpoint") or results.get("server") or "engine")
    template = resources.files("qwen_jax.evaluate.page").joinpath("page.html")
    parts = {
        "TITLE": _text(f"Evaluation of {name}"),
        "ABOUT": _facts(_about(results)),
        "TABLE": _table(results, tasks),
        "TASKS": "".join(_task(key, one, tasks[key]) for key, one in results["tasks"].items()),
        "CLAIMS": _claims({tasks[key].source for key in results["tasks"]}),
        "KEYS": literal(list(results["tasks"])),
    }
    text = template.read_text(encoding="utf-8")
    # One pass: a value that contains the name of a part stays as it is.
    pieces = text.split("@@")
    return "".join(parts[one] if at % 2 else one for at, one in enumerate(pieces))


def _claims(tables: set[str]) -> str:
    """Returns what the report says about the tables that the tasks are of."""
    lines = [f"<li>{_text(f'{one.table}: {one}.')}</li>" for one in claims() if one.table in tables]
    if not lines:
        return ""
    head = "<section><h2>What the report says of these tables, recomputed from its rows</h2>"
    return f"{head}<ul>{''.join(lines)}</ul></section>"


def _about(results: Mapping[str, Any]) -> dict[str, Any]:
    shown = {key: value for key, value in results.items() if not isinstance(value, dict)}
    versions = ", ".join(f"{name} {value or '-'}" for name, value in results["versions"].items())
    return shown | {"versions": versions}


def _table(results: Mapping[str, Any], tasks: Mapping[str, Task]) -> str:
    head = ("task", "shots", "n", "score", "95 % interval", "", "floor", "ceiling", *REPORTED)
    rows = []
    for key, one in results["tasks"].items():
        low, high = one["interval"]
        floor = max(one["floors"].values(), default=None)
        published = tasks[key].published
        count = f"{one['n']:,}" + (f" of {one['of']:,}" if one["n"] < one["of"] else "")
        cells = [
            f'<td><a href="#{_text(_anchor(key))}">{_text(key)}</a></td>',
            _number(f"{one['shots']}"),
            _number(count),
            _number(f"<b>{one['score']:.1f}</b>"),
            _number(f"{low:.1f} to {high:.1f}"),
            f"<td>{_bar(one['score'], one['interval'], floor, one.get('ceiling'))}</td>",
            _number(_points(floor)),
            _number(_points(one.get("ceiling"))),
            *(_number(_points(one)) for one in reported(published, tasks[key].chat)),
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    for name, one in results.get("means", {}).items():
        low, high = one["interval"]
        mean = MEANS[name]
        chat = tasks[one["tasks"][0]].chat
        cells = [
            f"<td>{_text(mean_name(name, one))}</td>",
            _number(""),
            _number(f"{one['n']:,}"),
            _number(f"<b>{one['score']:.1f}</b>"),
            _number(f"{low:.1f} to {high:.1f}"),
            f"<td>{_bar(one['score'], one['interval'])}</td>",
            *(_number("") for _ in ("floor", "ceiling")),
            *(_number(_points(score)) for score in reported(mean.published, chat)),
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    for key, why in results.get("not_run", {}).items():
        text = f"<td colspan={len(head) - 1}>{_text(f'not run: {why}')}</td>"
        rows.append(f"<tr><td>{_text(key)}</td>{text}</tr>")
    top = "".join(
        f"<th{'' if one in ('task', '') else ' class=number'}>{_text(one)}</th>" for one in head
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _task(key: str, record: Mapping[str, Any], task: Task) -> str:
    """The section of a task."""
    title = f"{key} ({record['source']}, protocol {record['protocol']})"
    parts = [
        f'<section id="{_text(_anchor(key))}" class="task"><h2>{_text(title)}</h2>',
        f'<p><button data-task="{_text(key)}">Read the {_count(record):,} samples</button></p>',
        _facts(_task_facts(record, task)),
    ]
    if passes := record.get("pass@k"):
        rows = {f"pass@{k}": one for k, one in passes.items()}
        parts.append(f"<h3>{record['samples']:,} samples of each question</h3>{_bars(rows)}")
    if record["groups"]:
        parts.append(f"<h3>Groups</h3>{_bars(record['groups'])}")
    if subjects := record.get("subjects"):
        parts.append(
            f"<details><summary>{len(subjects)} subjects</summary>{_bars(subjects)}</details>"
        )
    if task.published:
        names = sorted(task.published, key=lambda name: -task.published[name])
        rows = {name: {"score": task.published[name]} for name in names}
        rows = {"this evaluation": {**record, "own": True}} | rows
        rows = dict(sorted(rows.items(), key=lambda pair: -pair[1]["score"]))
        parts.append(
            f"<details><summary>{len(names)} published scores</summary>{_bars(rows)}</details>"
        )
    return "".join([*parts, "</section>"])


def _count(record: Mapping[str, Any]) -> int:
    return record["n"] * record.get("samples", 1)


def _task_facts(record: Mapping[str, Any], task: Task) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "score": f"{record['score']:.2f} ± {record['stderr']:.2f} (standard error)",
        "mean over": record["average"],
    }
    facts |= {name: f"{record[name]:,}" for name in _COUNTS if record.get(name)}
    facts |= {
        name.replace("_", " "): f"{100 * record[name]:.1f} %"
        for name in _SHARES
        if record.get(name) is not None
    }
    if record.get("mean_completion_tokens") is not None:
        facts["mean completion"] = f"{record['mean_completion_tokens']:.1f} tokens"
    for name in record:
        if name.startswith("score_"):
            facts[name.replace("_", " ")] = f"{record[name]:.2f}"
    facts |= {f"floor: {name}": f"{value:.1f}" for name, value in record["floors"].items()}
    if record.get("ceiling") is not None:
        facts["ceiling: right completions"] = f"{record['ceiling']:.1f}"
    if record.get("rules"):
        facts["rules"] = ", ".join(f"{name} ({n:,})" for name, n in record["rules"].items())
    if record.get("stops"):
        facts["stop strings"] = " ".join(map(repr, record["stops"]))
    if (guarded := record.get("decontamination")) is not None:
        lacking = guarded["not_in_index"]
        facts["kept out of the training text"] = f"{guarded['in_index']:,} of {record['n']:,}" + (
            f"; not {', '.join(guarded['first_not_in_index'])}" + " ..." * (lacking > 20)
            if lacking
            else ""
        )
    if (text := record.get("training_text")) is not None:
        names = ", ".join(text["first"]) + " ..." * (text["examples"] > len(text["first"]))
        facts["in the training text"] = f"{text['examples']:,} of {record['n']:,}" + (
            f"; {names}" if names else ""
        )
    if not task.checked:
        facts["note"] = "not checked against published data"
    facts["grader"] = f"{record['grader']['name']} {record['grader']['sha256'][:12]}"
    facts["prompts"] = f"SHA-256 {record['prompts_sha256'][:12]}"
    return facts


def _bars(rows: Mapping[str, Mapping[str, Any]]) -> str:
    lines = []
    for name, one in rows.items():
        own = ' class="own"' if one.get("own") else ""
        n = f"{one['n']:,}" if "n" in one else ""
        lines.append(
            f"<tr{own}><td>{_text(name)}</td>{_number(n)}{_number(_points(one['score']))}"
            f"<td>{_bar(one['score'], one.get('interval'))}</td></tr>"
        )
    return f'<table class="bars"><tbody>{"".join(lines)}</tbody></table>'


def _bar(
    score: float, interval: Any = None, floor: float | None = None, ceiling: float | None = None
) -> str:
    """A score from 0 to 100 as a picture, with its interval."""
    parts = [f'<i style="width:{_percent(score)}"></i>']
    if interval is not None:
        low, high = interval
        parts.append(f'<s style="left:{_percent(low)};width:{_percent(high - low)}"></s>')
    for name, value in (("floor", floor), ("ceiling", ceiling)):
        if value is not None:
            parts.append(f'<u class="{name}" title="{name}" style="left:{_percent(value)}"></u>')
    return f'<span class="bar">{"".join(parts)}</span>'


def _percent(value: float) -> str:
    return f"{min(100.0, max(0.0, value if math.isfinite(value) else 0.0)):.2f}%"


def _facts(facts: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<dt>{_text(name)}</dt><dd>{_text('-' if value is None else value)}</dd>"
        for name, value in facts.items()
    )
    return f"<dl>{rows}</dl>"


def _number(content: str) -> str:
    return f'<td class="number">{content}</td>'


def _points(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _anchor(key: str) -> str:
    return f"task-{key}"


def _text(value: Any) -> str:
    return html.escape(str(value))
