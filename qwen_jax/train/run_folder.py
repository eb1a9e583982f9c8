"""Writes a run folder's config.json and versions.json; checks that a run resumes unchanged."""

import dataclasses
import importlib.metadata
import os
import pathlib
import platform
import subprocess
from typing import Any, Literal, NamedTuple, get_args

import jax

from qwen_jax.config import with_current_names
from qwen_jax.errors import ConfigError, TrainingError
from qwen_jax.utils.files import read_json, write_json

TrainingStage = Literal["pretrain", "sft", "reward_model", "dpo", "ppo"]


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
    data = raw.get("data") if isinstance(raw.get("data"), dict) else {}
    if "ppo" in raw:
        return Identity("ppo", "policy.params")
    if "pairs" in data:
        return Identity("dpo" if "beta" in raw else "reward_model", "params")
    return Identity("sft" if "conversations" in data else "pretrain", "params")


# Settings that do not affect what a run computes; they may change on resume.
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
    """Returns {"model.num_layers": 32, ...}; the keys are flag names."""
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
    """Creates the folder, or checks that an existing one has the same config; writes config.json
    and versions.json.

    Args:
      training_stage, parameters: the stage, and the path of the trained parameters in the state;
        written to config.json. They are not compared, because folders of older versions lack both.

    Raises:
      ConfigError: the folder belongs to a run with different settings; lists every difference.
      TrainingError: the folder cannot be written.
    """
    folder = pathlib.Path(folder)
    path = folder / "config.json"
    wanted = flatten(config)
    if path.exists():
        found = flatten_json(read_json(path))
        found = {name: value for name, value in found.items() if name not in Identity._fields}
        found = with_current_names(found, config, str(path))
        differences = [
            f"{name}: was {found.get(name)!r}, now {wanted.get(name)!r}"
            for name in sorted(found.keys() | wanted.keys())
            if found.get(name) != wanted.get(name) and not name.startswith(MAY_CHANGE)
        ]
        if differences:
            raise ConfigError(
                "the run in this folder was started with different settings: "
                + "; ".join(differences)
                + ".",
                str(path),
                "use the original settings to resume it, or another --run_dir for a new run.",
            )
    if jax.process_index() == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            run_identity = Identity(training_stage, parameters)
            write_json(path, run_identity._asdict() | dataclasses.asdict(config))
            write_json(folder / "versions.json", versions())
        except OSError as error:
            raise TrainingError(
                f"cannot write to the run folder: {error}.",
                str(folder),
                "choose a writable --run_dir on a disk with free space.",
            ) from error
    return folder


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
