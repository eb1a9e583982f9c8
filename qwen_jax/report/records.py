"""The records of a run folder: JSON files, JSON Lines files, and curves by metric name.

    metrics.jsonl     one {"step": 10, "time": 1.7e9, "train/loss": 3.1, "eval/NAME/loss": 2.9, ...}
                      per line (train/telemetry/metrics.py): train/{loss,grad_norm,
                      learning_rate,tokens},
                      perf/{tokens_per_second,mfu,mfu_noncausal,goodput},
                      perf/data_wait_seconds or (PPO)
                      perf/{generation,scoring,update,data}_seconds (formerly sample_seconds),
                      time/KIND (seconds of this attempt), host/PROCESS/host_seconds (per step),
                      eval/NAME/{loss,perplexity,bits_per_byte}, of pairs
                      eval/NAME/accuracy (fraction whose chosen response has the higher reward) and
                      eval/NAME/margin (its mean lead in reward, nats), of benchmarks
                      eval/NAME/{score,score_stderr} (percent), rollout/{reward,kl,...}
    events.jsonl      one {"time": 1.7e9, "event": "resume", ...other values} per line
    config.json       {"model": {...}, "train": {...}, ..., "run_dir": "..."}
    versions.json     {"python": "3.12.1", "devices": "1 x cpu", ...}
    samples.json      [{"prompt": "...", "text": "...", ...settings}]; text may include the prompt
    evaluation.json   {"model": {"perplexity": 9.1, "bits_per_byte": 1.2}, "ngram": {same keys},
                      ...other models, "tokens": 12345, ...other values}, all on one held-out text
    compression.json  [{"language": "zh", "tokenizer": "ours", "bytes_per_token": 3.1, ...}]
                      (Row._asdict() of tokenizer/compression.py), or {ROW: {COLUMN: value}};
                      compression.png is its plot
    calibration.json  {NAME: [[confidence, accuracy, pairs], ...]} from the last evaluation of a
                      reward model
    answers.json      [{"question": "...", "after SFT": "...", ...one response per stage}]
    sft/ pmp/ reward/ ppo/ grpo/   run folders of later training stages
    export.json       {"path": "...", "layout": "qwen2", "dtype": "bfloat16", ...other values}

Times are Unix timestamps in seconds. Every file may be missing. Other keys are also shown.
"""

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

FORMER_NAMES = {  # former name of a metric -> current name
    "perf/mfu_a": "perf/mfu",
    "perf/mfu_b": "perf/mfu_noncausal",
    "policy/step_kl": "policy/approx_kl",
    "rollout/ended": "rollout/finished",
    "rollout/reward_normalised": "rollout/reward_normalized",
    "rollout/sampler_gap": "rollout/sampler_logprob_gap",
    "check/differing_numbers": "sdc/mismatched_elements",
}


def current_name(metric: str) -> str:
    """Returns the current name of a metric; older runs may use a former name."""
    if metric.startswith("host/"):
        return metric.replace("/own_seconds", "/host_seconds")
    return FORMER_NAMES.get(metric, metric)


class Curves:
    """The records of metrics.jsonl by metric name.

    A value that is logged again after a restart replaces the earlier value.
    """

    def __init__(self, records: list[dict]):
        self._steps: dict[int, dict] = {}
        for record in records:
            if is_number(record.get("step")) and record["step"] == int(record["step"]) >= 0:
                current = {current_name(name): value for name, value in record.items()}
                self._steps.setdefault(int(record["step"]), {}).update(current)
        self.last_step = max(self._steps, default=0)

    def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the steps and finite values of a metric."""
        points = [
            (step, self._steps[step][name])
            for step in sorted(self._steps)
            if is_number(self._steps[step].get(name))
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
        """Returns each <name> in eval/<name>/<metric>, in order of first appearance."""
        return self.named("eval/", f"/{metric}")

    def named(self, prefix: str, suffix: str) -> list[str]:
        """Returns the part of metric names between prefix and suffix, in order of appearance."""
        return list(
            dict.fromkeys(
                key[len(prefix) : -len(suffix)]
                for step in sorted(self._steps)
                for key in self._steps[step]
                if key.startswith(prefix) and key.endswith(suffix)
            )
        )


def numbers(evaluation, key: str) -> dict[str, float]:
    """Returns {name: positive value of `key`} for the entries of evaluation.json that have it."""
    if not isinstance(evaluation, dict):
        return {}
    return {
        name: float(row[key])
        for name, row in evaluation.items()
        if isinstance(row, dict) and is_number(row.get(key)) and row[key] > 0
    }


def is_number(value) -> bool:
    """Returns whether a value can be drawn: a finite number, in the range of float32."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e38


def read_json(path: pathlib.Path) -> Any:
    """Returns the content of a JSON file, or None if the file does not exist.

    Raises:
      DataError: the file is not valid JSON, or not what its name promises.
    """
    if not path.exists():
        return None
    fix = "remove the file, or run the step that writes it again."
    content = files.read_json(path, kind=object, fix=fix, finite=False)
    form, fits = _FORMS[path.stem]
    if content is not None and not fits(content):
        raise DataError(f"{path.name} is not {form}.", str(path), fix)
    return content


def _is_rows(content) -> bool:
    return isinstance(content, list) and all(isinstance(row, dict) for row in content)


def _is_calibration(content) -> bool:
    return isinstance(content, dict) and all(
        isinstance(bins, list)
        and bins
        and all(
            isinstance(row, list) and len(row) == 3 and all(map(is_number, row)) for row in bins
        )
        and min(row[2] for row in bins) >= 0 < max(row[2] for row in bins)
        for bins in content.values()
    )


_OBJECT = "a JSON object", lambda content: isinstance(content, dict)
_ROWS = "a list of JSON objects", _is_rows
_TABLE = (
    "a JSON object or a list of JSON objects",
    lambda content: isinstance(content, dict) or _is_rows(content),
)
_FORMS = {  # name of a file -> its form in words, and whether a content has it
    "config": _OBJECT,
    "versions": _OBJECT,
    "evaluation": _OBJECT,
    "export": _OBJECT,
    "samples": _ROWS,
    "answers": _ROWS,
    "compression": _TABLE,
    "calibration": ("{name: [[confidence, accuracy, pairs], ...]}", _is_calibration),
}


def read_jsonl(path: pathlib.Path) -> tuple[list[dict], int]:
    """Returns the records and the number of unreadable lines, ignoring a truncated last line.

    A record whose time is not a number is unreadable.
    """
    bad: list[DataError] = []
    rows = [row for _, row in read_rows(path, bad=bad)] if path.exists() else []
    records = [row for row in rows if is_number(row.get("time", 0.0))]
    return records, len(bad) + len(rows) - len(records)
