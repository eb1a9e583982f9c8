"""A run's folder: what it was asked to do, with what, and the refusal to go on as another run."""

import dataclasses
import importlib.metadata
import os
import pathlib
import platform
import subprocess
from typing import Any, Literal, NamedTuple

import jax

from qwen_jax.config import with_current_names
from qwen_jax.errors import ConfigError, TrainingError
from qwen_jax.utils.files import read_json, write_json

TrainingStage = Literal["pretrain", "sft", "reward_model", "dpo", "ppo"]


class Identity(NamedTuple):
    """What a run is, by these keys of its config.json; all others are its settings."""

    training_stage: TrainingStage
    parameters: str  # where its checkpoints have what it trains: "params", "policy.params"


def identity(raw: dict[str, Any]) -> Identity:
    """What the run of a config.json is. Those of older versions do not say; their settings tell."""
    if raw.keys() >= set(Identity._fields):
        return Identity(raw["training_stage"], raw["parameters"])
    data = raw.get("data") or {}
    if "ppo" in raw:
        return Identity("ppo", "policy.params")
    if "pairs" in data:
        return Identity("dpo" if "beta" in raw else "reward_model", "params")
    return Identity("sft" if "conversations" in data else "pretrain", "params")


# Settings that say how a run is watched, not what it computes: they may change on resume.
MAY_CHANGE = (
    "train.log_every",
    "train.eval_every",
    "train.eval_batches",
    "train.save_every",
    "train.keep_checkpoints",
    "train.device_memory_gib",
    "train.on_spike",
    "train.sdc_check_every",
    "train.trace_steps",
    "mesh.",
    "run_dir",
)


def flatten(config, prefix: str = "") -> dict[str, object]:
    """{"model.num_layers": 32, ...}: the names that flags have."""
    flat = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{prefix}{field.name}.")
        else:
            flat[prefix + field.name] = list(value) if isinstance(value, tuple) else value
    return flat


def prepare(
    folder: str | os.PathLike, config, *, training_stage: TrainingStage, parameters: str
) -> pathlib.Path:
    """Makes the folder, or finds it with the same config; writes config.json and versions.json.

    Args:
      training_stage, parameters: what the run is and where its state has the trained parameters;
        config.json holds both. A folder of an older version lacks them, so they are not compared.

    Raises:
      ConfigError: when the folder holds a run of another config, with every difference.
    """
    folder = pathlib.Path(folder)
    path = folder / "config.json"
    wanted = flatten(config)
    if path.exists():
        found = flatten_json(read_json(path))
        found = {name: value for name, value in found.items() if name not in Identity._fields}
        found = with_current_names(found, config, str(path))
        differences = [
            f"{name}: {found.get(name)!r} then, {wanted.get(name)!r} now"
            for name in sorted(found.keys() | wanted.keys())
            if found.get(name) != wanted.get(name) and not name.startswith(MAY_CHANGE)
        ]
        if differences:
            raise ConfigError(
                "the run in this folder was started with other settings: "
                + "; ".join(differences)
                + ".",
                str(path),
                "give the old settings to continue it, or another --run_dir to start anew.",
            )
    if jax.process_index() == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            what = Identity(training_stage, parameters)
            write_json(path, what._asdict() | dataclasses.asdict(config))
            write_json(folder / "versions.json", versions())
        except OSError as error:
            raise TrainingError(
                f"cannot write to the run folder: {error}.",
                str(folder),
                "choose a writable --run_dir with space left.",
            ) from error
    return folder


def flatten_json(nested: dict, prefix: str = "") -> dict[str, object]:
    """Like `flatten`, for what config.json holds."""
    flat = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            flat |= flatten_json(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def versions() -> dict[str, str]:
    """Python, packages, devices and the commit: what a figure must be read with."""
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
