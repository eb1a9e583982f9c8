"""Seconds per PPO step and phase, against Tunix's PPO; both alternate in one run.

The batch has 32 completions (16 prompts, two completions each), with prompts and completions of 64
tokens. The 8.4M-parameter model has random weights, in FP32, on one device. No completion ends
early, so both sides do the same work. Both update the policy and the value model once. The reward
is a cheap Python function, and there is no pretraining gradient. Generation is also compared with
the same decoder in a Python loop. CPU seconds are the total of all threads: the cost of a step when
other programs share the cores.

    python -m venv .venv-tunix && .venv-tunix/bin/pip install google-tunix  # once
    python -m benchmarks.ppo.ppo --peer_python=.venv-tunix/bin/python
"""

import dataclasses
import json
import pathlib
import subprocess
import sys
import time

import numpy as np

from benchmarks.common import turns
from qwen_jax.cli import flags
from qwen_jax.config import option

PHASES = ("generation", "scoring", "updates")
DECODERS = {
    "compiled": "one compiled loop",
    "python_donated": "the same step in a Python loop",
    "python_copied": "..., weights not prepacked, cache not donated",
    "python_sorted": "..., and top-p by sorting",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the comparison."""

    peer_python: str = option("", "Python interpreter with google-tunix; empty: measure only ours")
    size: str = option("toy_8m", "model size, a name in qwen_jax/sizes.py or a config.json")
    prompts: int = option(16, "prompts per step")
    samples: int = option(2, "completions per prompt")
    prompt_tokens: int = option(64, "tokens per prompt")
    new_tokens: int = option(64, "tokens per completion")
    top_p: float = option(0.9, "nucleus sampling: probability mass to sample from (report 3.2.2)")
    warm_up: int = option(2, "untimed steps per round")
    steps: int = option(5, "timed steps per round")
    rounds: int = option(3, "measurements of ours and of the peer, alternating")
    only: str = option("", '"ours": print one measurement as JSON, in this process')
    output: str = option("", "JSON file for the table")


def main(config: Config) -> None:
    """Prints the table."""
    if config.only:
        print(json.dumps(measure(config)))
        return
    rows = measure_all(config, missing := why_missing(config.peer_python))
    table = {name: summary(measured) for name, measured in rows.items()}
    last = rows["ours"][-1]
    print(
        f"\n{config.size}, {last['parameters']:,} parameters, float32; {config.prompts} x "
        f"{config.samples} completions, {config.prompt_tokens} + {config.new_tokens} tokens, top-p "
        f"{config.top_p}; medians of {config.rounds} x {config.steps} steps"
    )
    print_table(table)
    if missing:
        print(f"Tunix was not measured: {missing}")
    if config.output:
        pathlib.Path(config.output).write_text(
            json.dumps(
                last["machine"]
                | {"config": dataclasses.asdict(config), "table": table, "rounds": rows},
                indent=1,
            )
            + "\n"
        )


def why_missing(python: str) -> str:
    """Returns why the peer cannot be measured; empty if it can."""
    if not python:
        return "no --peer_python"
    try:
        process = subprocess.run(
            [python, "-c", "import tunix.rl.ppo.ppo_learner"], capture_output=True, text=True
        )
    except OSError as error:
        return f"--peer_python={python}: {error.strerror}"
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or ["it cannot be imported"])[-1]
        return f"{reason}; {python} -m pip install google-tunix"
    return ""


def measure_all(config: Config, missing: str) -> dict[str, list[dict]]:
    """Returns the measurements of ours and the peers, one per round."""
    settings = {
        name: getattr(config, name)
        for name in (
            "size",
            "prompts",
            "samples",
            "prompt_tokens",
            "new_tokens",
            "top_p",
            "warm_up",
            "steps",
        )
    }
    ours = [
        sys.executable,
        "-m",
        "benchmarks.ppo.ppo",
        "--only=ours",
        *(f"--{name}={value}" for name, value in settings.items()),
    ]

    def peers(measured: dict) -> dict[str, turns.Process]:
        if missing:
            return {}
        peer = [
            config.peer_python,
            "benchmarks/peers/tunix_ppo.py",
            json.dumps(settings | measured["settings"]),
        ]
        return {"Tunix": (peer, {}), "Tunix, huge pages": (peer, turns.HUGE)}

    rows: dict[str, list[dict]] = {}
    for turn, name, row in turns.take(config.rounds, ours, peers):
        rows.setdefault(name, []).append(row)
        seconds = float(np.median([sum(parts.values()) for parts in row["parts"]]))
        print(f"round {turn}: {name:17} {seconds:7.3f} s per step", flush=True)
    return rows


def summary(measured: list[dict]) -> dict:
    """Returns the median, minimum and maximum of full steps, their phases and the decoders."""
    times = {
        "step": [sum(x.values()) for row in measured for x in row["parts"]],
        "cpu": [x for row in measured for x in row["cpu"]],
    }
    times |= {part: [x[part] for row in measured for x in row["parts"]] for part in PHASES}
    times |= {
        name: [x for row in measured for x in row["decoders"][name]]
        for name in DECODERS
        if "decoders" in measured[0]
    }
    return {"versions": measured[-1]["versions"]} | {
        name: {"median": float(np.median(x)), "min": min(x), "max": max(x)}
        for name, x in times.items()
    }


def print_table(table: dict) -> None:
    """Prints a line per side with its times and our speedup."""
    print(
        f"{'seconds':19}{'per step':>8}{'(min, max)':>19}"
        + "".join(f"{part:>12}" for part in PHASES)
        + "      speedup   CPU seconds"
    )
    for name, row in table.items():
        step, speedup = row["step"], row["step"]["median"] / table["ours"]["step"]["median"]
        print(
            f"{name:19}{step['median']:8.3f}  ({step['min']:7.3f}, {step['max']:7.3f})"
            + "".join(f"{row[part]['median']:12.3f}" for part in PHASES)
            + f"{speedup:11.2f} x {row['cpu']['median']:12.3f}   {row['versions']}"
        )
    print("generation only:")
    for name, label in DECODERS.items():
        times = table["ours"][name]
        print(
            f"  {label:46} {times['median']:7.3f} ({times['min']:7.3f}, {times['max']:7.3f})"
            f"{times['median'] / table['ours']['compiled']['median']:10.2f} x"
        )


def measure(config: Config) -> dict:
    """Measures our steps, then the decoders; returns the times and the peer's settings."""
    import jax

    from benchmarks.common.timing import machine
    from benchmarks.ppo.ppo_steps import RECIPE, TimedSteps
    from qwen_jax.model.spec import count
    from qwen_jax.pretrained.load import model_config

    model = dataclasses.replace(model_config(config.size), compute_dtype="float32")
    steps = TimedSteps(
        model,
        prompts=config.prompts,
        samples=config.samples,
        prompt_tokens=config.prompt_tokens,
        new_tokens=config.new_tokens,
        top_p=config.top_p,
    )
    timed = [(steps.take(number), steps.cpu) for number in range(config.warm_up + config.steps)]
    parts, cpu = zip(*timed[config.warm_up :], strict=True)
    adam = RECIPE.optimizer
    settings = {
        name: getattr(model, name)
        for name in (
            "vocab_size",
            "hidden_size",
            "num_layers",
            "num_heads",
            "ffn_size",
            "rope_base",
            "norm_epsilon",
        )
    }
    settings |= {
        name: getattr(RECIPE.ppo, name)
        for name in ("temperature", "kl_coefficient", "value_clip", "ratio_clip", "gae_lambda")
    }
    settings |= {name: getattr(adam, name) for name in ("beta1", "beta2", "epsilon", "clip_norm")}
    settings |= {
        "policy_rate": adam.peak_learning_rate,
        "value_rate": RECIPE.value_optimizer.peak_learning_rate,
    }
    return {
        "parts": parts,
        "cpu": cpu,
        "decoders": decoders(config, model, steps.state.policy.params),
        "settings": settings,
        "parameters": count(model),
        "versions": f"jax {jax.__version__}",
        "machine": machine(),
    }


def decoders(config: Config, model, params) -> dict[str, list[float]]:
    """Returns seconds from prompts to completions on the host, for our loop and Python loops."""
    from benchmarks.inference.generation_loop import PythonLoop
    from qwen_jax.inference.decode import generate
    from qwen_jax.inference.decoder.weights import for_decoding

    new = config.new_tokens
    donated = PythonLoop(model, new_tokens=new, donate=True)
    copied = PythonLoop(model, new_tokens=new, donate=False)
    sorting = PythonLoop(model, new_tokens=new, donate=False, sort=True)
    prepacked = for_decoding(params, config=model)
    calls = {
        "compiled": lambda prompts: generate(
            params, prompts, config=model, max_new_tokens=new, temperature=1.0, top_p=config.top_p
        ),
        "python_donated": lambda prompts: donated(prepacked, prompts, top_p=config.top_p),
        "python_copied": lambda prompts: copied(params, prompts, top_p=config.top_p),
        "python_sorted": lambda prompts: sorting(params, prompts, top_p=config.top_p),
    }
    shape = (config.prompts * config.samples, config.prompt_tokens)
    rng, times = np.random.default_rng(1), {name: [] for name in calls}
    for _ in range(1 + config.steps):  # the first call compiles
        prompts = rng.integers(0, model.vocab_size, shape, dtype=np.int32)
        for name, call in calls.items():
            begin = time.perf_counter()
            completions = call(prompts)
            times[name].append(time.perf_counter() - begin)
            assert np.shape(completions) == (shape[0], new), np.shape(completions)
    return {name: seconds[1:] for name, seconds in times.items()}


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
