"""Memory of a PPO run with four models: predicted against measured peak.

Each run is experiments.ppo in a separate process: the 8.4M-parameter model with random weights as
policy, reference, value and reward model, 16 prompts of up to 64 tokens, two completions of up to
64 tokens each, FP32, one device. The peak is the process's peak memory during the steps, minus its
memory after compilation and before any weights were loaded. Linux only.

    python -m benchmarks.ppo.ppo_memory
"""

import dataclasses
import json
import pathlib
import random
import re
import sys
import tempfile
from typing import Any

from benchmarks.common import turns
from benchmarks.train.train_step import from_status, settled_memory
from qwen_jax.cli import flags
from qwen_jax.config import option

RUNS = {"full models": [], "adapters of rank 16": ["--rank=16"]}
_UNITS = {"MiB": 2**20, "GiB": 2**30}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the measured runs."""

    size: str = option("toy_8m", "model size, a name in qwen_jax/sizes.py or a config.json")
    prompts: int = option(16, "prompts per step, with two completions each")
    new_tokens: int = option(64, "maximum tokens of a completion, and of a prompt")
    steps: int = option(5, "PPO steps per run")
    rank: int | None = option(None, "rank of the LoRA adapters; None: full models")
    only: str = option(
        "", "folder made by `write`: print one measurement of it as JSON, in this process"
    )
    output: str = option("", "JSON file for the table")


def main(config: Config) -> None:
    """Prints the table."""
    if config.only:
        print(json.dumps(measure(config, pathlib.Path(config.only))))
        return
    command = [
        sys.executable,
        "-m",
        "benchmarks.ppo.ppo_memory",
        *(
            f"--{name}={getattr(config, name)}"
            for name in ("size", "prompts", "new_tokens", "steps")
        ),
    ]
    table = {}
    with tempfile.TemporaryDirectory() as folder:
        write(config, pathlib.Path(folder))
        for name, changes in RUNS.items():
            measured = turns.run([*command, *changes, f"--only={folder}"], turns.HUGE)
            table[name] = measured
            print(
                f"{name:20} predicted {measured['predicted'] / 1e6:7.1f} MB, reached "
                f"{measured['peak'] / 1e6:7.1f} MB: {measured['predicted'] / measured['peak']:.2f}",
                flush=True,
            )
    if config.output:
        pathlib.Path(config.output).write_text(json.dumps(table, indent=1) + "\n")


def write(config: Config, folder: pathlib.Path) -> None:
    """Writes the folders of a language model and a reward model, and a file of prompts."""
    import jax
    import jax.numpy as jnp

    from qwen_jax.checkpoint.checkpointer import Checkpointer
    from qwen_jax.model.spec import init_from, param_specs
    from qwen_jax.model.value_head import scoring_specs
    from qwen_jax.pretrained.from_run import save_run
    from qwen_jax.pretrained.load import model_config
    from qwen_jax.tokenizer.bpe import Tokenizer
    from qwen_jax.types import TrainState

    model = model_config(config.size)
    tokenizer = Tokenizer({bytes([byte]): byte for byte in range(256)})
    base, reward = jax.jit(
        lambda key: [
            init_from(specs(model), key, "float32") for specs in (param_specs, scoring_specs)
        ]
    )(jax.random.key(0))
    save_run(folder / "base", model, base, tokenizer=tokenizer)
    checkpoints = Checkpointer(folder / "reward" / "checkpoints", keep=1)
    checkpoints.save(0, TrainState(step=jnp.int32(0), params=reward, opt_state=()), {})
    checkpoints.close()
    (folder / "reward" / "config.json").write_text(
        json.dumps(
            {
                "training_stage": "reward_model",
                "parameters": "params",
                "model": dataclasses.asdict(model),
            }
        )
    )
    rng = random.Random(0)
    with open(folder / "prompts.jsonl", "w") as file:
        for _ in range(4 * config.prompts):
            text = "".join(rng.choices("abcdefgh", k=config.new_tokens // 2))
            conversation = [("system", "."), ("user", text), ("assistant", ".")]
            file.write(
                json.dumps(
                    {
                        "messages": [
                            {"role": role, "content": content} for role, content in conversation
                        ]
                    }
                )
                + "\n"
            )


def measure(config: Config, folder: pathlib.Path) -> dict:
    """Returns a run's predicted bytes, and its measured peak from the second step on."""
    from experiments import ppo
    from qwen_jax.align.train_ppo import train_ppo
    from qwen_jax.config import MeshConfig
    from qwen_jax.model.lora import LoRAConfig
    from qwen_jax.pretrained.load import model_config
    from qwen_jax.pretrained.overrides import ModelOverrides
    from qwen_jax.pretrained.start import start

    config_of_run = dataclasses.replace(
        ppo.RECIPE,
        init_from=f"{folder}/base",
        reward_model=f"{folder}/reward",
        run_dir=f"{folder}/rank_{config.rank}",
        model=ModelOverrides.of(model_config(config.size)),
        lora=LoRAConfig(rank=config.rank),
        mesh=MeshConfig(fsdp=1),
        data=ppo.PPOData(prompts=(f"{folder}/prompts.jsonl",), max_prompt_tokens=config.new_tokens),
        ppo=dataclasses.replace(
            ppo.RECIPE.ppo, value_warmup_steps=1, max_new_tokens=config.new_tokens
        ),
        train=dataclasses.replace(
            ppo.RECIPE.train, num_steps=config.steps, save_every=None, batch_size=2 * config.prompts
        ),
    )
    config_of_run, tokenizer = start(config_of_run)
    measured: dict[str, Any] = {"log": []}

    def log(line: str) -> None:
        measured["log"].append(line)
        if number := re.match(r"memory: ([\d.]+) (GiB|MiB)", line):
            measured["predicted"] = float(number[1]) * _UNITS[number[2]]
        if line.startswith("compiled in"):  # weights are loaded after this line
            measured["before"] = settled_memory()
        if line.startswith("step 1/"):  # memory that only loading uses does not count
            settled_memory()
            pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        if line.startswith(f"step {config.steps}/"):  # before the checkpoint is written
            measured["peak"] = from_status("VmHWM") - measured["before"]

    train_ppo(config_of_run, tokenizer, log=log)
    return measured


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
