"""Which settings may change between the attempts of a run. docs/guides/resuming.md shows the table.

The names are flag names; one that ends with a dot stands for all flags that start with it. What is
in neither list may never change.
"""

import dataclasses
import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from qwen_jax.errors import ConfigError

# Settings that do not affect what a run computes.
MAY_CHANGE = (
    "train.log_every",
    "train.eval_every",
    "train.eval_batches",
    "train.save_every",
    "train.keep_checkpoints",
    "train.device_memory_gib",
    "train.on_spike",
    "train.sdc_check_every",
    "train.hang_seconds",
    "train.trace_steps",
    "train.wandb_project",
    "evaluate.",
    "mesh.",
    "run_dir",
    "restart_from_scratch",
    "allow_changes",
)
# Settings that may change with --allow_changes, from the restored step on.
ON_REQUEST = (
    "train.num_steps",
    "train.micro_batches",
    "train.z_loss",
    *(
        f"{optimizer}.{name}"
        for optimizer in ("optimizer", "value_optimizer")
        for name in (
            "peak_learning_rate",
            "schedule",
            "warmup_steps",
            "final_fraction",
            "beta1",
            "beta2",
            "epsilon",
            "weight_decay",
            "clip_norm",
        )
    ),
    "data.epochs",
    "data.eval_sources",
    "data.eval_conversations",
    "data.eval_pairs",
    "model.dropout",
    "model.remat",
    "model.unroll_layers",
    "model.attention",
    "ppo.kl_coefficient",
    "ppo.value_clip",
    "ppo.ratio_clip",
    "ppo.missing_eos_penalty",
    "grpo.beta",
    "grpo.epsilon",
)
# Why the others may not change, by the start of their names; the first that matches counts.
_REASONS = (
    ("model.", "the saved weights belong to this model"),
    ("lora.", "the saved weights belong to these adapters"),
    ("train.seed", "weights, dropout and the order of the data depend on it"),
    ("train.batch_size", "the examples of every batch depend on it"),
    ("data.", "the examples of every batch depend on it"),
    ("tokenizer", "the weights belong to this tokenizer"),
    ("init_from", "the run has started from these weights"),
    ("reward", "the run learns from these rewards"),
    ("optimizer.", "the saved moments depend on it"),
    ("value_optimizer.", "the saved moments depend on it"),
    ("", "it is part of what the run computes"),
)
_SHOWN = 200  # characters of a value in an error


@dataclasses.dataclass(frozen=True)
class Change:
    """A setting with another value than in the previous attempt."""

    name: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.name}: {difference(self.old, self.new)}"


def changes(
    found: Mapping[str, Any],
    wanted: Mapping[str, Any],
    defaults: Mapping[str, Any],
    *,
    compared_elsewhere: Collection[str],
) -> list[Change]:
    """Returns the changes that matter: of all settings but MAY_CHANGE.

    Args:
      found: settings of the previous attempt, by flag name.
      wanted: settings of this attempt.
      defaults: values of the settings that have one. A setting that an older version did not have
        has changed only if it is not at its default.
      compared_elsewhere: flags that name inputs, whose contents are compared (inputs.py).
    """
    return [
        Change(name, old, wanted.get(name))
        for name in sorted(found.keys() | wanted.keys())
        if (old := found[name] if name in found else defaults.get(name)) != wanted.get(name)
        and not _listed(name, MAY_CHANGE)
        and name not in compared_elsewhere
    ]


def check(changed: Iterable[Change], *, allowed: bool, where: str) -> None:
    """Raises ConfigError for changes that are refused.

    Args:
      allowed: whether --allow_changes is set.
      where: path of config.json.
    """
    never, on_request = [], []
    for change in changed:
        (on_request if on_request_only(change) else never).append(change)
    if never:
        raise ConfigError(
            "the run in this folder was started with different settings: "
            + "; ".join(f"{change} ({_reason(change.name)})" for change in never)
            + ".",
            where,
            "use the original settings to resume it, or another --run_dir for a new run.",
        )
    if on_request and not allowed:
        raise ConfigError(
            "the run in this folder was started with different settings: "
            + "; ".join(map(str, on_request))
            + ".",
            where,
            "add --allow_changes to continue with the new settings from the last checkpoint on, "
            "use the original settings, or another --run_dir for a new run.",
        )


def on_request_only(change: Change) -> bool:
    """Returns whether --allow_changes allows the change."""
    if change.name.endswith("clip_norm") and None in (change.old, change.new):
        return False  # the optimizer's state has another form
    return _listed(change.name, ON_REQUEST)


def difference(old: Any, new: Any) -> str:
    """Returns "was OLD, now NEW", shortened to the first part that differs."""
    if isinstance(old, list) and isinstance(new, list) and len(repr((old, new))) > _SHOWN:
        pairs = zip(old, new, strict=False)
        index = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(old), len(new)))
        a, b = (
            _shortened(repr(each[index]) if index < len(each) else "nothing", 0)
            for each in (old, new)
        )
        return f"item {index + 1} was {a}, now {b} ({len(old)} and {len(new)} items)"
    a, b = (_text(each) for each in (old, new))
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(min(a, b)))
    longest = max(len(a), len(b))
    start = 0 if longest <= _SHOWN else max(0, same - 40)
    return f"was {_shortened(a, start)}, now {_shortened(b, start)}"


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else repr(value)


def _shortened(text: str, start: int) -> str:
    end = start + _SHOWN
    return ("..." if start else "") + text[start:end] + ("..." if len(text) > end else "")


def _listed(name: str, names: tuple[str, ...]) -> bool:
    return any(name == each or each.endswith(".") and name.startswith(each) for each in names)


def _reason(name: str) -> str:
    if name.endswith("clip_norm"):
        return "with or without clipping, the optimizer's state has another form"
    return next(reason for start, reason in _REASONS if name.startswith(start))
