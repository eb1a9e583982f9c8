"""The contents of a run folder's config.json and versions.json."""

import dataclasses
import importlib.metadata
import pathlib
import platform
import subprocess
from typing import Any, Literal, NamedTuple, get_args

import jax

from qwen_jax.errors import ConfigError

TrainingStage = Literal["pretrain", "sft", "reward_model", "dpo", "ppo", "grpo"]


class Identity(NamedTuple):
    """The keys of config.json that identify a run; all others are settings."""

    training_stage: TrainingStage
    parameters: str  # path of the trained parameters in checkpoints: "params", "policy.params"


def identity(raw: dict[str, Any]) -> Identity:
    """Returns the identity stored in a config.json. For files written by older versions, infers it
    from the settings.

    Raises:
      ConfigError: the file names a training stage that this version does not know.
    """
    if raw.keys() >= set(Identity._fields):
        found = Identity(raw["training_stage"], raw["parameters"])
        if found.training_stage not in get_args(TrainingStage) or not isinstance(found[1], str):
            raise ConfigError(
                f"unknown training stage {str(found.training_stage)[:60]!r}, or no parameters.",
                "config.json",
                "restore the file that the run wrote, or use the version in its versions.json.",
            )
        return found
    data = raw.get("data")
    data = data if isinstance(data, dict) else {}
    if "ppo" in raw:
        return Identity("ppo", "policy.params")
    if "pairs" in data:
        return Identity("dpo" if "beta" in raw else "reward_model", "params")
    return Identity("sft" if "conversations" in data else "pretrain", "params")


def flatten(config, prefix: str = "") -> dict[str, object]:
    """Returns {"model.num_layers": 32, ...}; the keys are flag names."""
    flat = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{prefix}{field.name}.")
        else:
            flat[prefix + field.name] = list(value) if isinstance(value, tuple) else value
    return flat


def defaults(config) -> dict[str, object]:
    """Returns the value of each field in runs without it, by flag name, as in `flatten`.

    That is the field's default, if it has one, or the value that config.option calls `formerly`.
    """
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= {f"{field.name}.{name}": each for name, each in defaults(value).items()}
        else:
            default = field.metadata.get("formerly", dataclasses.MISSING)
            default = field.default if default is dataclasses.MISSING else default
            if default is dataclasses.MISSING:
                continue
            found[field.name] = list(default) if isinstance(default, tuple) else default
    return found


def flatten_json(nested: dict, prefix: str = "") -> dict[str, object]:
    """Like `flatten`, but for the contents of config.json."""
    flat = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            flat |= flatten_json(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def versions() -> dict[str, str]:
    """Returns the versions that a run's results depend on: Python, packages, devices, commit."""
    packages = (
        "qwen_jax",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "grain",
        "tiktoken",
        "numpy",
    )
    found = {
        "python": platform.python_version(),
        "machine": platform.platform(),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    root = pathlib.Path(__file__).resolve().parents[2]
    try:
        found["commit"] = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        found["commit"] = "unknown"
    return found
