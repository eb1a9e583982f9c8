"""Runs of a folder as JSON, for the page of a server: the list, and one run with its curves.

A run that is in progress is read as far as it has been written.
"""

import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from qwen_jax.checkpoint import step_folders
from qwen_jax.errors import QwenJaxError
from qwen_jax.report import sections
from qwen_jax.report.records import Curves, current_name, is_number, read_json, read_jsonl
from qwen_jax.serve.errors import ApiError
from qwen_jax.utils import files
from qwen_jax.utils.folder_lock import NAME as LOCK
from qwen_jax.utils.folder_lock import STALE_SECONDS

MAX_RUNS, MAX_DEPTH = 500, 4
MAX_POINTS = 600  # of a curve
MAX_EVENTS = 500
_TAIL = 64 << 10  # bytes at the end of metrics.jsonl in which the last step is
_SKIPPED = {"checkpoints", "shards", "text", "plots", "tensorboard", "export", "samples"}
_REWARD = "a reward model gives scores, and does not chat"
_GROUPS = {  # prefixes of metrics -> title; the first that fits
    ("train/loss", "train/accuracy", "eval/"): "Loss and evaluation",
    ("rollout/", "policy/", "value/", "reward/"): "Reinforcement learning",
    ("train/", "optimizer/"): "Optimization",
    ("perf/",): "Speed",
}
_HIDDEN = ("time/", "host/")  # shown by the report as tables


class Runs:
    """The runs of a folder, at any depth up to MAX_DEPTH."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = pathlib.Path(folder)

    def handlers(self) -> dict[str, Callable[[dict[str, Any]], Any]]:
        """Returns the routes for serve.page.routes.Page."""
        return {"/page/runs": lambda _: self.list(), "/page/run": self.one}

    def checkpoints(self) -> dict[str, int]:
        """Returns the names of runs that can chat, each with its newest step, the newest first."""
        found = []
        for name, path in self._folders().items():
            step, why = _checkpoint(path)
            if step is not None and not why:
                found.append((_modified(path / "checkpoints" / str(step)), name, step))
        return {name: step for _, name, step in sorted(found, reverse=True)}

    def path(self, name: str) -> pathlib.Path:
        """Returns the folder of a run.

        Raises:
          ApiError: there is no such run (404).
        """
        path = self._folders().get(name)
        if path is None:
            raise ApiError(f"there is no run {name[:100]!r}.", "name", status=404, code="not_found")
        return path

    def list(self) -> dict[str, Any]:
        """Returns {"folder", "runs": [{name, stage, step, steps, active, age}, ...]}."""
        now, rows = time.time(), []
        for name, path in self._folders().items():
            config = _config(path)
            train = config.get("train")
            steps = train.get("num_steps") if isinstance(train, dict) else None
            rows.append(
                {
                    "name": name,
                    "stage": config.get("training_stage", ""),
                    "step": _last_step(path / "metrics.jsonl"),
                    "steps": steps if is_number(steps) else None,
                    "active": _is_active(path, now),
                    "age": max(0.0, now - max(map(_modified, _watched(path)))),
                }
            )
        rows.sort(key=lambda row: (not row["active"], row["age"]))
        return {"folder": str(self.folder), "runs": rows}

    def one(self, query: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a run, or {"unchanged": True} if nothing was written since the token `since`.

        Args:
          query: {"name", "since"}.
        """
        name = str(query.get("name", ""))
        path = self.path(name)
        step, why = _checkpoint(path)
        token = "/".join(f"{_modified(file):.6f}" for file in _watched(path)) + f"/{step}"
        if query.get("since") == token:
            return {"name": name, "unchanged": True}
        problems: list[str] = []

        def optional(file: str) -> Any:
            try:
                return read_json(path / f"{file}.json")
            except QwenJaxError as error:
                problems.append(str(error.what))
                return None

        records, bad = read_jsonl(path / "metrics.jsonl")
        events, bad_events = read_jsonl(path / "events.jsonl")
        if bad or bad_events:
            problems.append(f"{bad + bad_events} unreadable lines were skipped.")
        curves = Curves(records)
        points = {metric: _points(curves, metric) for metric in _metrics(records)}
        points = {metric: found for metric, found in points.items() if found[0]}
        return {
            "name": name,
            "token": token,
            "checkpoint": step,
            "model": name if step is not None and not why else None,
            "why": why,
            "curves": points,
            "groups": _grouped(points),
            "tables": _tables(curves, optional, path),
            "samples": _samples(optional("samples")),
            "events": [_event(event) for event in events[-MAX_EVENTS:]],
            "config": _flat(_config(path)),
            "problems": problems,
        }

    def _folders(self) -> dict[str, pathlib.Path]:
        """Returns the runs by name: their path below the folder."""
        found: dict[str, pathlib.Path] = {}
        for top, folders, names in os.walk(self.folder):
            path = pathlib.Path(top)
            relative = path.relative_to(self.folder)
            if "config.json" in names or "metrics.jsonl" in names or "results.json" in names:
                name = relative.as_posix() if relative.parts else self.folder.resolve().name
                found[name] = path
            deep = len(relative.parts) >= MAX_DEPTH or len(found) >= MAX_RUNS
            folders[:] = (
                [] if deep else sorted(f for f in folders if f not in _SKIPPED and f[0] != ".")
            )
        return found


def _watched(path: pathlib.Path) -> list[pathlib.Path]:
    names = ("metrics.jsonl", "events.jsonl", "config.json", "samples.json", "answers.json")
    return [path / name for name in (*names, "evaluation.json", "results.json", LOCK)]


def _modified(path: pathlib.Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _is_active(path: pathlib.Path, now: float) -> bool:
    """Returns whether a process writes to the run: its lock has a recent heartbeat."""
    return now - _modified(path / LOCK) < STALE_SECONDS


def _config(path: pathlib.Path) -> dict[str, Any]:
    try:
        found = files.read_json(path / "config.json", kind=object, fix="", finite=False)
    except (QwenJaxError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def _checkpoint(path: pathlib.Path) -> tuple[int | None, str]:
    """Returns the newest step of a run, and why one cannot chat with it ("" if one can)."""
    try:
        steps = step_folders.numbered(path / "checkpoints")
    except QwenJaxError as error:
        return None, error.what
    if not steps:
        return None, "no checkpoint yet"
    return steps[-1], _REWARD if _config(path).get("training_stage") == "reward_model" else ""


def _last_step(path: pathlib.Path) -> int | None:
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            continue
        if is_number(step):
            return int(step)
    return None


def _metrics(records: list[dict]) -> list[str]:
    """Returns the names of metrics, in order of appearance."""
    names = dict.fromkeys(current_name(key) for record in records for key in record)
    return [name for name in names if "/" in name and not name.startswith(_HIDDEN)]


def _points(curves: Curves, metric: str) -> tuple[list[int], list[float]]:
    """Returns steps and values, thinned to MAX_POINTS; the last one is always there."""
    x, y = curves.curve(metric)
    if len(x) > MAX_POINTS:
        keep = np.unique(np.linspace(0, len(x) - 1, MAX_POINTS).round().astype(int))
        x, y = x[keep], y[keep]
    return x.astype(int).tolist(), y.tolist()


def _grouped(points: Mapping[str, Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for metric in points:
        titles = (title for prefixes, title in _GROUPS.items() if metric.startswith(prefixes))
        found.setdefault(next(titles, "Other"), []).append(metric)
    order = [*_GROUPS.values(), "Other"]
    return {title: found[title] for title in order if title in found}


def _tables(
    curves: Curves, optional: Callable[[str], Any], path: pathlib.Path
) -> dict[str, list[dict]]:
    """Returns title -> rows, of what the run has."""
    found = {"Benchmarks while training": [], "Evaluation": [], "Responses by stage": []}
    for name in curves.eval_names("score"):
        x, y = curves.curve(f"eval/{name}/score")
        if len(x):
            row = {"benchmark": name, "step": int(x[-1]), "score (%)": float(y[-1])}
            error = curves.last(f"eval/{name}/score_stderr")
            found["Benchmarks while training"].append(row | {"standard error": error})
    evaluation = optional("evaluation")
    if isinstance(evaluation, dict):
        found["Evaluation"] = [
            {"": name, **row} for name, row in evaluation.items() if isinstance(row, dict)
        ]
    answers = optional("answers")
    if isinstance(answers, list):
        found["Responses by stage"] = answers
    found["Evaluated tasks"] = _results(path / "results.json")
    return {title: rows for title, rows in found.items() if rows}


def _results(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the scores of a folder of experiments.evaluate, one row a task."""
    try:
        content = files.read_json(path, kind=object, fix="", finite=False)
    except (QwenJaxError, OSError):
        return []
    tasks = content.get("tasks") if isinstance(content, dict) else None
    rows = []
    for name, record in tasks.items() if isinstance(tasks, dict) else ():
        if isinstance(record, dict):
            low, high = (record.get("interval") or (None, None))[:2]
            interval = f"{low:.1f} to {high:.1f}" if is_number(low) and is_number(high) else ""
            row = {"task": name, "questions": record.get("n"), "shots": record.get("shots")}
            rows.append(row | {"score (%)": record.get("score"), "95 % interval": interval})
    return rows


def _samples(samples: Any) -> list[dict[str, Any]]:
    found = []
    for sample in samples or []:
        prompt, text = str(sample.get("prompt", "")), str(sample.get("text", ""))
        text = text[len(prompt) :] if prompt and text.startswith(prompt) else text
        step = {"step": sample["step"]} if is_number(sample.get("step")) else {}
        found.append({"prompt": prompt, "text": text, **step})
    return found


def _event(event: Mapping[str, Any]) -> dict[str, Any]:
    when = event.get("time")
    shown = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when)) if is_number(when) else ""
    details = ", ".join(
        f"{key} {sections.format_value(value)}"
        for key, value in event.items()
        if key not in ("time", "event")
    )
    return {"time": shown, "event": str(event.get("event", "")), "details": details}


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested settings as {"model.num_layers": 4, ...}; what JSON lacks becomes text."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, float) and not math.isfinite(value):
            found[f"{prefix}{key}"] = str(value)
        else:
            found[f"{prefix}{key}"] = value
    return found
