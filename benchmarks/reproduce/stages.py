"""Real runs of the alignment stages, in folders that resume: reward model, PPO, GRPO. Report: 3.2.

Each starts from a released folder of the lab, and writes a run folder with its metrics.
"""

import dataclasses
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.reproduce import checker
from benchmarks.reproduce.lab import Lab
from experiments import grpo, ppo, reward_model
from qwen_jax.align.grpo.train import train_grpo
from qwen_jax.align.preference_report import measure
from qwen_jax.align.train_ppo import train_ppo
from qwen_jax.config import DataConfig, MeshConfig, ModelConfig, OptimizerConfig, TrainConfig
from qwen_jax.data.batches import eval_batches
from qwen_jax.data.chat.conversations import Counts
from qwen_jax.data.chat.pairs import PairRows, read_pairs
from qwen_jax.model import spec
from qwen_jax.model.value_head import scoring_specs
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.pretrained.huggingface import load_pretrained
from qwen_jax.pretrained.overrides import ModelOverrides
from qwen_jax.pretrained.start import scoring_weights_of, start
from qwen_jax.report import records
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.types import Params
from qwen_jax.utils.files import read_json, write_json
from qwen_jax.utils.jsonl import write_rows

Curves = dict[str, list[tuple[float, float]]]  # name -> points
LENGTH = 128  # tokens of a prompt with its response
CHECKER, WATCH = (f"benchmarks.reproduce.checker:{name}" for name in ("result", "watch"))
_TRUTH = "truth.json"  # written at the end of a run
_MODEL = ModelOverrides(compute_dtype="float32")
_CURVES = {  # metric -> its name in a figure
    "rollout/reward": "reward",
    "rollout/kl": "KL (nats per completion)",
    "rollout/entropy": "entropy (nats per token)",
    "rollout/length": "length (tokens)",
}


def write_once(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Writes a JSONL file if it is not there; returns its path."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_rows(path, rows)
    return str(path)


def constant_rate(rate: float, **changes: Any) -> OptimizerConfig:
    """Returns the report's AdamW with a constant learning rate, without weight decay."""
    return OptimizerConfig(
        peak_learning_rate=rate, schedule="constant", weight_decay=0.0, **changes
    )


def train_reward_model(
    lab: Lab,
    name: str,
    init_from: pathlib.Path,
    pairs: Sequence[Mapping[str, Any]],
    *,
    steps: int,
    rate: float = 5e-4,
    seed: int = 0,
    batch_size: int = 16,
) -> pathlib.Path:
    """Trains a reward model on pairs (rows with prompt, chosen, rejected); returns its folder."""
    folder = lab.folder / "runs" / name
    file = write_once(lab.folder / "pairs" / f"{name}.jsonl", pairs)
    config = reward_model.Config(
        model=_MODEL,
        train=_train(steps, batch_size, seed),
        init_from=str(init_from),
        run_dir=str(folder),
        optimizer=constant_rate(rate, warmup_steps=max(1, steps // 10)),
        data=reward_model.PairData(pairs=(file,), epochs=None, context_length=LENGTH),
    )
    reward_model.main(config)
    return folder


def pair_accuracy(
    lab: Lab,
    model: ModelConfig,
    tokenizer: Tokenizer,
    folder: pathlib.Path,
    pairs: Sequence[Mapping[str, Any]],
    name: str,
) -> list[float]:
    """Returns for each pair whether a reward model's run prefers the chosen response; ties 0.5.

    The order of the pairs is the same for every reward model, but not that of the argument.

    Args:
      name: of the file of pairs, which is written once.
    """
    abstract = spec.abstract(scoring_specs(model), "float32", make_mesh(MeshConfig()))
    params = scoring_weights_of(str(folder), seed=0)(abstract)
    file = write_once(lab.folder / "pairs" / f"held_out_{name}.jsonl", pairs)
    counts = Counts()
    rows = PairRows(read_pairs([file], counts), tokenizer, context_length=LENGTH, counts=counts)
    batches = eval_batches(rows, 64, len(rows))
    agreement = measure("pairs", params, batches, config=model, put=lambda batch: batch)
    return ((np.sign(agreement.margins) + 1) / 2).tolist()


def train_policy(
    lab: Lab,
    name: str,
    init_from: pathlib.Path,
    prompts: Sequence[Mapping[str, Any]],
    *,
    steps: int,
    seed: int,
    rate: float = 2e-4,
    batch_size: int = 32,
    reward_folder: pathlib.Path | None = None,
    objective: str = "ppo",
    pretrain: str = "",
    **settings: Any,
) -> tuple[Params, Curves]:
    """Trains a policy by PPO or GRPO; returns its parameters and its curves by name.

    Args:
      prompts: rows with "prompt" and, for the checker, "result".
      reward_folder: run folder of a reward model; None: the reward is the true checker's.
      objective: "ppo" or "grpo".
      pretrain: folder of token shards for the pretraining gradient of PPO.
      settings: changes to the report's settings (PPOConfig or GRPOConfig).
    """
    folder = lab.folder / "runs" / name
    file = write_once(lab.folder / "prompts" / f"{name}.jsonl", prompts)
    common: dict[str, Any] = {
        "model": _MODEL,
        "train": dataclasses.replace(_train(steps, batch_size, seed), log_every=1),
        "init_from": str(init_from),
        "run_dir": str(folder),
        "reward_functions": (WATCH if reward_folder else CHECKER,),
        "optimizer": constant_rate(rate, warmup_steps=0),
    }
    if objective == "ppo":
        config: Any = ppo.Config(
            **common,
            reward_model=str(reward_folder) if reward_folder else None,
            value_optimizer=constant_rate(5 * rate, warmup_steps=0),  # report 3.2.2
            ppo=dataclasses.replace(
                ppo.RECIPE.ppo, **{"pretrain_coefficient": 0.0, "max_new_tokens": 32} | settings
            ),
            data=ppo.PPOData(
                prompts=(file,),
                max_prompt_tokens=96,
                pretrain=DataConfig(sources=(pretrain,) if pretrain else ()),
            ),
        )
        run: Any = train_ppo
    else:
        config = grpo.Config(
            **common,
            grpo=dataclasses.replace(grpo.RECIPE.grpo, **{"max_new_tokens": 32} | settings),
            data=grpo.PromptData((file,), 96),
        )
        run = train_grpo
    if not (folder / _TRUTH).exists():
        # From the start, so that the checker sees every step.
        shutil.rmtree(folder, ignore_errors=True)
        checker.seen.clear()
        run(*start(config), log=lambda line: None)
        write_json(folder / _TRUTH, checker.seen)
    return load_pretrained(folder)[1], curves(folder)


def curves(folder: pathlib.Path) -> Curves:
    """Returns reward, truth, KL, entropy and length over the steps of a run."""
    found: Curves
    found, read = {}, records.Curves(records.read_jsonl(folder / "metrics.jsonl")[0])
    for key, name in _CURVES.items():
        x, y = read.curve(key)
        if len(x):
            found[name] = [(float(a), float(b)) for a, b in zip(x, y, strict=True)]
    truth = read_json(folder / _TRUTH, kind=list)
    return found | {"truth (share right)": [(float(i), x) for i, x in enumerate(truth, 1)]}


def _train(steps: int, batch_size: int, seed: int) -> TrainConfig:
    return TrainConfig(
        num_steps=steps,
        batch_size=batch_size,
        seed=seed,
        log_every=10,
        eval_every=None,
        save_every=steps,
        keep_checkpoints=1,
    )
