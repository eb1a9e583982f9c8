"""The model card (README.md) of an exported model: where it is from, and how it was trained."""

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import qwen_jax
from qwen_jax.errors import CheckpointError, ConfigError, DataError
from qwen_jax.pretrained.export.folder import CARD, CARD_MARK
from qwen_jax.pretrained.from_run import is_run
from qwen_jax.train.attempts import inputs
from qwen_jax.train.run_folder import flatten_json, identity
from qwen_jax.utils.files import read_json
from qwen_jax.utils.hub import is_adapter, name_of

# Training stage -> (what it is called, its section of the report).
_STAGES = {
    "pretrain": ("pretraining", "2.4"),
    "sft": ("supervised fine-tuning", "3.1"),
    "reward_model": ("a reward model", "3.2.1"),
    "dpo": ("direct preference optimization", None),
    "ppo": ("reinforcement learning with PPO", "3.2.2"),
    "grpo": ("reinforcement learning with GRPO", None),
}
_RECIPE = (
    "train.num_steps",
    "train.batch_size",
    "data.context_length",
    "data.epochs",
    "optimizer.peak_learning_rate",
    "optimizer.schedule",
    "optimizer.warmup_steps",
    "optimizer.weight_decay",
    "model.dropout",
    "lora.rank",
    "lora.alpha",
    "ppo.kl_coefficient",
    "grpo.beta",
    "beta",
    "train.seed",
)
_LICENSE = re.compile(r"^license: *(\S+) *$", re.MULTILINE)


def model_card(
    source: str | os.PathLike,
    *,
    name: str,
    license: str | None = None,
    results: str | None = None,
    step: int | None = None,
    change: str = "",
) -> str:
    """Returns the text of a model card.

    Args:
      source: the folder that is exported, a run or a released one.
      name: name of the exported model.
      license: the license, as the Hub writes it (apache-2.0); None: that on the card of the parent,
        if it has one.
      results: results.json of experiments.evaluate, whose scores are listed; None: no scores.
      step: step of the run's checkpoint; None: not shown.
      change: what is not as in the parent, in words; "": nothing is to be said.

    Raises:
      ConfigError, DataError: `results` is not the file of an evaluation.
    """
    folder = pathlib.Path(source)
    raw = {} if is_adapter(folder) else read_json(folder / "config.json", error=CheckpointError)
    of_run = is_run(raw)
    parent = raw.get("init_from") if of_run else str(folder)
    parent = parent if isinstance(parent, str) and parent else None
    license = license or (parent and _license_of(pathlib.Path(parent))) or None
    stage = identity(raw).training_stage if of_run else None
    lines = [*_front_matter(stage, parent, license), CARD_MARK, "", f"# {name}", ""]
    lines += _origin(stage, raw, parent, step)
    lines += [f"Changed: {change}.", ""] if change else []
    if of_run:
        lines += _recipe(raw) + _data(folder)
    if results is not None:
        lines += _scores(results)
    lines += ["## License", "", license or "Not stated. The terms of the parent model apply.", ""]
    return "\n".join(lines)


def _front_matter(stage: str | None, parent: str | None, license: str | None) -> list[str]:
    """Returns the YAML that the Hub reads."""
    task = "text-classification" if stage == "reward_model" else "text-generation"
    lines = ["---", *([f"license: {license}"] if license else []), "library_name: transformers"]
    lines += [f"pipeline_tag: {task}"]
    if parent is not None and name_of(parent) != parent:  # the Hub knows only its own names
        lines.append(f"base_model: {name_of(parent)}")
    return [*lines, "tags:", "- qwen_jax", *([f"- {stage}"] if stage else []), "---", ""]


def _origin(
    stage: str | None, raw: Mapping[str, Any], parent: str | None, step: int | None
) -> list[str]:
    shown = "none: random weights" if parent is None else _short(parent)
    if stage is None:
        return [f"Converted by qwen_jax {qwen_jax.__version__} from {shown}.", ""]
    title, section = _STAGES[stage]
    lora = raw.get("lora") or {}
    how = ", with LoRA adapters merged into its parent" if lora.get("rank") is not None else ""
    lines = [
        f"- Stage: {title}{how}" + (f" (Qwen technical report, {section})" if section else ""),
        f"- Parent: {shown}",
        f"- Trained with qwen_jax {qwen_jax.__version__}"
        + ("" if step is None else f", {step:,} steps"),
    ]
    return [*lines, ""]


def _recipe(raw: Mapping[str, Any]) -> list[str]:
    settings = flatten_json(dict(raw))
    if settings.get("lora.rank") is None:  # alpha has a default, but no effect
        settings.pop("lora.alpha", None)
    rows = [
        f"| `{name}` | {settings[name]} |" for name in _RECIPE if settings.get(name) is not None
    ]
    return ["## Recipe", "", "| setting | value |", "|---|---|", *rows, ""]


def _data(folder: pathlib.Path) -> list[str]:
    rows = [
        f"| `{each.role}` | {_short(each.path)} | `{each.digest[:16]}` |"
        for each in inputs.read(folder)
        if each.path
    ]
    if not rows:
        return []
    return ["## Data", "", "| flag | name | SHA-256 |", "|---|---|---|", *rows, ""]


def _scores(results: str) -> list[str]:
    try:
        tasks = read_json(results, error=DataError)["tasks"]
        rows = [
            f"| {key} | {one['shots']} | {one['n']:,} | {one['score']:.1f} "
            f"| {one['interval'][0]:.1f} to {one['interval'][1]:.1f} | {_protocol(key, one)} |"
            for key, one in tasks.items()
        ]
    except (KeyError, TypeError, IndexError) as error:
        raise ConfigError(
            f"this is not the result of an evaluation: {type(error).__name__} {error}.",
            f"--results={results}",
            "pass the results.json that experiments.evaluate wrote.",
        ) from None
    head = "| benchmark | shots | n | score (%) | 95 % interval | protocol |"
    return ["## Scores", "", head, "|---|---|---|---|---|---|", *rows, ""]


def _protocol(key: str, record: Mapping[str, Any]) -> str:
    """Returns how a benchmark was scored: the name of its protocol, and the prompts' hash."""
    parts = [str(record["protocol"])] if record.get("protocol") else []
    if prompts := record.get("prompts_sha256"):
        parts.append(f"prompts {str(prompts)[:12]}")
    return ", ".join(parts).replace("|", "/") or key


def _license_of(folder: pathlib.Path) -> str | None:
    """Returns the license on a folder's card."""
    path = folder / CARD
    if not path.is_file():
        return None
    match = _LICENSE.search(path.read_text(encoding="utf-8", errors="replace")[:4096])
    return match[1] if match else None


def _short(path: str) -> str:
    """Returns a path as a card shows it: a name on the Hub, or the last two parts of the path."""
    if (name := name_of(path)) != path:
        return name
    return "/".join(json.dumps(part)[1:-1] for part in pathlib.Path(path).parts[-2:] if part != "/")
