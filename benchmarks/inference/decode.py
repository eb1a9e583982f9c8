"""Generated tokens per second and time to first token, against transformers in the same run.

Our process and the peer's alternate, because a machine's speed drifts. Weights are random.
Throughput is measured with prompts of 32 tokens and completions of fixed length, including prefill.
Time to first token is measured with one prompt of 1000 tokens.

    python -m benchmarks.inference.decode --peer_python=.venv-peers/bin/python --size=toy_8m
"""

import dataclasses
import json
import pathlib
import sys
import time

import numpy as np

from benchmarks.common import turns
from qwen_jax.cli import flags
from qwen_jax.config import option


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the comparison."""

    peer_python: str = option(
        "", "Python interpreter with torch and transformers; empty: measure only ours"
    )
    size: str = option("toy_8m", "model size, a name in qwen_jax/sizes.py or a config.json")
    dtype: str = option("float32", "dtype of weights, KV cache and matmuls: float32 or bfloat16")
    batches: tuple[int, ...] = option((1, 8, 32), "batch sizes: sequences decoded together")
    new_tokens: int = option(64, "tokens generated per sequence")
    prompt: int = option(1000, "prompt length in tokens, for the time to the first token")
    rounds: int = option(3, "measurements of ours and of the peer, alternating")
    only: str = option("", '"ours": print one measurement as JSON, in this process')
    output: str = option("", "JSON file for the table")


def main(config: Config) -> None:
    """Prints the table."""
    if config.only:
        print(json.dumps(measure(config)))
        return
    command = [
        sys.executable,
        "-m",
        "benchmarks.inference.decode",
        "--only=ours",
        f"--size={config.size}",
        f"--dtype={config.dtype}",
        f"--new_tokens={config.new_tokens}",
        f"--batches={','.join(map(str, config.batches))}",
        f"--prompt={config.prompt}",
    ]

    def peers(measured: dict) -> dict[str, turns.Process]:
        settings = measured["size"] | {
            "batches": config.batches,
            "new_tokens": config.new_tokens,
            "prompt": config.prompt,
            "dtype": config.dtype,
        }
        peer = [config.peer_python, "benchmarks/peers/hf_generate.py", json.dumps(settings)]
        return {"transformers": (peer, {})} if config.peer_python else {}

    rounds: dict[str, list[dict]] = {}
    for _, name, measured in turns.take(config.rounds, command, peers):
        rounds.setdefault(name, []).append(measured)
    print(
        f"{config.size}, {rounds['ours'][0]['parameters']:,} parameters, {config.dtype}; medians "
        f"of {config.rounds} rounds; " + "; ".join(r[-1]["versions"] for r in rounds.values())
    )
    table = {}
    for name in rounds["ours"][0]["results"]:
        table[name] = {
            who: float(np.median([r["results"][name] for r in measured]))
            for who, measured in rounds.items()
        }
        unit = "s" if name.startswith("first") else "tokens/s"
        line = "  ".join(f"{who} {value:10,.3f} {unit}" for who, value in table[name].items())
        if "transformers" in table[name]:
            ratio = table[name]["ours"] / table[name]["transformers"]
            line += f"  ahead {1 / ratio if unit == 's' else ratio:5.2f} x"
        print(f"{name:24} {line}")
    if config.output:
        pathlib.Path(config.output).write_text(
            json.dumps({"table": table, "rounds": rounds}, indent=1) + "\n"
        )


def measure(config: Config) -> dict:
    """Measures the engine's speed from the caller's side of step()."""
    import jax

    from qwen_jax.inference.engine import Engine
    from qwen_jax.inference.request import Request
    from qwen_jax.inference.sampling import SamplingParams
    from qwen_jax.model.spec import count, init_params
    from qwen_jax.pretrained.load import model_config

    model = dataclasses.replace(
        model_config(config.size), compute_dtype=config.dtype, param_dtype=config.dtype
    )
    params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(0))
    rng, results = np.random.default_rng(0), {}

    def requests(number, length, new, **settings):
        return [
            Request(
                tuple(rng.integers(0, model.vocab_size, length).tolist()),
                SamplingParams(new, seed=i, **settings),
            )
            for i in range(number)
        ]

    for batch in config.batches:
        engine = Engine(params, model, max_num_seqs=batch, max_model_len=32 + config.new_tokens)
        for name, settings in (("greedy", {}), ("top-p", {"temperature": 1.0, "top_p": 0.9})):
            speeds = []
            for _ in range(3):  # the first run compiles
                for request in requests(batch, 32, config.new_tokens, **settings):
                    engine.submit(request)
                begin = time.perf_counter()
                while engine.busy:
                    engine.step()
                speeds.append(batch * config.new_tokens / (time.perf_counter() - begin))
            results[f"batch {batch:2}, {name}"] = max(speeds[1:])
    engine = Engine(params, model, max_num_seqs=1, max_model_len=config.prompt + 32)
    times = []
    for request in requests(4, config.prompt, 1):
        engine.submit(request)
        begin = time.perf_counter()
        while engine.busy:
            engine.step()
        times.append(time.perf_counter() - begin)
    results[f"first token of {config.prompt}"] = min(times[1:])
    return {
        "results": results,
        "parameters": count(model),
        "versions": f"jax {jax.__version__}",
        "size": dataclasses.asdict(model),
    }


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
