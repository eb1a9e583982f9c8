"""GRPO next to PPO on the quickstart's sums: the same model, prompts, reward and number of samples.

Starts from a run of experiments.quickstart. Both sample the same number of completions per step, at
one learning rate, without a pretraining gradient. A row is mean and standard deviation over the
seeds: the reward of the first and last tenth of the steps, KL and entropy at the end, and the
accuracy of greedy decoding on sums. Neither sees the held-out sums, nor the documentation, whose
loss shows how much the language model has forgotten. The first row is the initial model.

    python -m benchmarks.ppo.grpo_sums --start=runs/quickstart --output=benchmarks/results
"""

import dataclasses
import os
import pathlib
import platform
import time
from typing import Any

import jax
import numpy as np

from benchmarks.ppo.ppo_ablations import facts, markdown, of_curves
from experiments import grpo, quickstart_alignment
from qwen_jax.align.grpo.train import train_grpo
from qwen_jax.align.ppo_config import PPOData
from qwen_jax.align.train_ppo import train_ppo
from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.errors import ConfigError
from qwen_jax.pretrained.start import start as start_from
from qwen_jax.report.records import Curves, read_jsonl
from qwen_jax.tokenizer.bpe import Tokenizer

TRAIN = {"PPO": train_ppo, "GRPO": train_grpo}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the table."""

    start: str = option("runs/quickstart", "run folder of a finished quickstart")
    steps: int = option(60, "steps per run")
    warmup: int = option(10, "first steps of PPO, which train only the value model")
    batch_size: int = option(32, "completions per step")
    num_generations: int = option(8, "completions per prompt in GRPO; PPO has the report's 2")
    rate: float = option(2e-4, "learning rate of the policy")
    seeds: int = option(3, "runs with different random seeds per row")
    runs: str = option("runs/grpo_sums", "folder for the runs")
    output: str = option("", "folder for the table")


def main(config: Config) -> None:
    """Completes unfinished runs, then prints the table."""
    start = pathlib.Path(config.start)
    if not (start / "sft").is_dir():
        raise ConfigError("no fine-tuned model.", f"{start}/sft", "run experiments.quickstart.")
    tokenizer = Tokenizer.from_file(start / "tokenizer.tiktoken")
    before = facts(start, start / "sft", tokenizer)
    table = [{"": "the fine-tuned model"} | {key: f"{value:.3f}" for key, value in before.items()}]
    for name, train in TRAIN.items():
        measured = []
        for seed in range(config.seeds):
            folder = pathlib.Path(config.runs) / name.lower() / str(seed)
            train(*start_from(run_config(config, name, seed, folder)), log=lambda line: None)
            curves = Curves(read_jsonl(folder / "metrics.jsonl")[0])
            measured.append(of_curves(curves, 0) | facts(start, folder, tokenizer))
            shown = ", ".join(f"{key} {value:.3f}" for key, value in measured[-1].items())
            print(f"{name}, seed {seed}: {shown}", flush=True)
        table.append(
            {"": name}
            | {
                key: f"{np.mean([f[key] for f in measured]):.3f} "
                f"± {np.std([f[key] for f in measured]):.3f}"
                for key in measured[0]
            }
        )
    about = (
        f"{time.strftime('%Y-%m-%d')}, {platform.processor() or platform.machine()}, "
        f"{os.cpu_count()} CPU cores, Python {platform.python_version()}, jax {jax.__version__}; "
        f"{config.steps} steps of {config.batch_size} completions "
        f"({config.steps * config.batch_size:,} samples), policy learning rate {config.rate:g}, "
        f"{config.seeds} seeds (mean ± standard deviation)."
    )
    text = f"# GRPO next to PPO on sums\n\n{about}\n\n{markdown(table)}\n"
    print(text)
    if config.output:
        (pathlib.Path(config.output) / "grpo.md").write_text(text, encoding="utf-8")


def run_config(config: Config, name: str, seed: int, folder: pathlib.Path) -> Any:
    """Returns the quickstart's PPO config without a pretraining gradient, or GRPO's of the same."""
    base = quickstart_alignment.ppo_config(
        pathlib.Path(config.start),
        steps=config.steps,
        warmup=config.warmup,
        rate=config.rate,
        batch_size=config.batch_size,
    )
    train = dataclasses.replace(base.train, seed=seed, log_every=1, save_every=20)
    data = PPOData(prompts=base.data.prompts, max_prompt_tokens=base.data.max_prompt_tokens)
    if name == "PPO":
        settings = dataclasses.replace(base.ppo, pretrain_coefficient=0.0)
        return dataclasses.replace(base, run_dir=str(folder), ppo=settings, train=train, data=data)
    return grpo.Config(
        train=train,
        init_from=base.init_from,
        reward_functions=base.reward_functions,
        data=grpo.PromptData(data.prompts, data.max_prompt_tokens),
        grpo=dataclasses.replace(
            grpo.RECIPE.grpo,
            num_generations=config.num_generations,
            max_new_tokens=base.ppo.max_new_tokens,
        ),
        model=base.model,
        optimizer=base.optimizer,
        run_dir=str(folder),
    )


if __name__ == "__main__":
    jax.config.update("jax_compilation_cache_dir", "runs/compiled")
    flags.run(main, __doc__, {"grpo_sums": Config()})
