"""What a run folder records: JSON files, JSON lines, and curves by name.

    metrics.jsonl     {"step": 10, "time": 1.7e9, "train/loss": 3.1, "eval/NAME/loss": 2.9, ...}
                      a line (train/telemetry/metrics.py): train/{loss,grad_norm,
                      learning_rate,tokens},
                      perf/{tokens_per_second,mfu,mfu_noncausal,goodput},
                      perf/data_wait_seconds or (PPO)
                      perf/{generation,scoring,update,data}_seconds (before: sample_seconds),
                      time/KIND (seconds of this life), host/PROCESS/host_seconds (a step),
                      eval/NAME/{loss,perplexity,bits_per_byte,accuracy}, rollout/{reward,kl,...}
    events.jsonl      {"time": 1.7e9, "event": "resume", ...anything} a line
    config.json       {"model": {...}, "train": {...}, ..., "run_dir": "..."}
    versions.json     {"python": "3.12.1", "devices": "1 x cpu", ...}
    samples.json      [{"prompt": "...", "text": "...", ...settings}]; text with or without prompt
    evaluation.json   {"model": {"perplexity": 9.1, "bits_per_byte": 1.2}, "ngram": {the same},
                      ...other models, "tokens": 12345, ...other facts}, on one held-out text
    compression.json  [{"language": "zh", "tokenizer": "ours", "bytes_per_token": 3.1, ...}]
                      (Row._asdict() of tokenizer/compression.py), or {ROW: {COLUMN: value}};
                      compression.png is its picture
    calibration.json  {NAME: [[confidence, share right, pairs], ...]} of a reward model's
                      last evaluation
    answers.json      [{"question": "...", "after SFT": "...", ...one answer by stage}]
    sft/ pmp/ reward/ ppo/   run folders of the stages that came after
    export.json       {"path": "...", "layout": "qwen2", "dtype": "bfloat16", ...any facts}

Times are seconds since 1970. Every file may be missing; keys that are not named here are shown too.
"""

import itertools
import math
import pathlib
from typing import Any

import numpy as np

from qwen_jax.errors import DataError
from qwen_jax.utils import files
from qwen_jax.utils.jsonl import read_rows

LABELS = {
    "model": "this model",
    "ngram": "3-gram, Kneser-Ney",
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte",
}

FORMER_NAMES = {  # metrics of older runs -> their names now
    "perf/mfu_a": "perf/mfu",
    "perf/mfu_b": "perf/mfu_noncausal",
    "policy/step_kl": "policy/approx_kl",
    "rollout/ended": "rollout/finished",
    "rollout/reward_normalised": "rollout/reward_normalized",
    "rollout/sampler_gap": "rollout/sampler_logprob_gap",
    "check/differing_numbers": "sdc/mismatched_elements",
}


def current_name(metric: str) -> str:
    """The name now of a metric that may come from an older run."""
    if metric.startswith("host/"):
        return metric.replace("/own_seconds", "/host_seconds")
    return FORMER_NAMES.get(metric, metric)


class Curves:
    """The records of metrics.jsonl by name. What was logged again after a restart replaces the
    earlier value."""

    def __init__(self, records: list[dict]):
        self._steps: dict[int, dict] = {}
        for record in records:
            if isinstance(record.get("step"), int):
                current = {current_name(name): value for name, value in record.items()}
                self._steps.setdefault(record["step"], {}).update(current)
        self.last_step = max(self._steps, default=0)

    def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values where `name` was logged; a value that is not finite is left out."""
        points = [
            (step, self._steps[step][name])
            for step in sorted(self._steps)
            if isinstance(self._steps[step].get(name), (int, float))
            and math.isfinite(self._steps[step][name])
        ]
        x, y = np.asarray(points, np.float64).reshape(-1, 2).T
        return x, y

    def last(self, name: str) -> float | None:
        y = self.curve(name)[1]
        return float(y[-1]) if len(y) else None

    def median(self, name: str) -> float | None:
        y = self.curve(name)[1]
        return float(np.median(y)) if len(y) else None

    def eval_names(self, metric: str = "loss") -> list[str]:
        """<name> of eval/<name>/<metric>, in the order of their first appearance."""
        return self.named("eval/", f"/{metric}")

    def named(self, prefix: str, suffix: str) -> list[str]:
        """What stands between `prefix` and `suffix` in the names, in the order of appearance."""
        return list(
            dict.fromkeys(
                key[len(prefix) : -len(suffix)]
                for step in sorted(self._steps)
                for key in self._steps[step]
                if key.startswith(prefix) and key.endswith(suffix)
            )
        )

    def wall_seconds(self, events: list[dict]) -> float | None:
        """From start to last record, without the time between an interruption and the resume."""
        times = [record["time"] for record in self._steps.values() if "time" in record]
        begins = [event["time"] for event in events if event.get("event") in ("start", "resume")]
        if not times:
            return None
        marks = sorted([(t, "record") for t in times] + [(t, "begin") for t in begins])
        return sum(
            after - before
            for (before, _), (after, kind) in itertools.pairwise(marks)
            if kind == "record"
        )


def where_time_went(records: list[dict], events: list[dict]) -> dict[str, float]:
    """Seconds by kind over all lives of a run (train/telemetry/goodput.py), and `down`: from a
    life's last record to the next life, with the steps that were lost and done again."""
    begins = sorted(
        event["time"]
        for event in events
        if event.get("event") in ("start", "resume") and "time" in event
    )
    found: dict[str, float] = {}
    before = None
    for begin, end in itertools.pairwise([*begins, math.inf]):
        life = [
            record
            for record in records
            if "time/train" in record and begin <= record.get("time", -1.0) < end
        ]
        if not life:
            continue
        last = life[-1]
        spent = {
            name[len("time/") :]: value for name, value in last.items() if name.startswith("time/")
        }
        if before is not None:
            found["down"] = found.get("down", 0.0) + max(
                last["time"] - sum(spent.values()) - before, 0.0
            )
        before = last["time"]
        for kind, seconds in spent.items():
            found[kind] = found.get(kind, 0.0) + seconds
    return found


def numbers(evaluation, key: str) -> dict[str, float]:
    """name -> value of `key`, for the entries of evaluation.json that have it."""
    if not isinstance(evaluation, dict):
        return {}
    return {
        name: float(row[key])
        for name, row in evaluation.items()
        if isinstance(row, dict)
        and isinstance(row.get(key), (int, float))
        and math.isfinite(row[key])
    }


def read_json(path: pathlib.Path) -> Any:
    """What the file holds; None where there is none.

    Raises:
      DataError: it is not JSON.
    """
    if not path.exists():
        return None
    fix = "remove it, or run the step that writes it again."
    return files.read_json(path, kind=object, fix=fix)


def read_jsonl(path: pathlib.Path) -> tuple[list[dict], int]:
    """The records, and how many lines before the last could not be read."""
    bad: list[DataError] = []
    records = [row for _, row in read_rows(path, bad=bad)] if path.exists() else []
    return records, len(bad)
