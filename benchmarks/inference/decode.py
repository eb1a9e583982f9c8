"""Tokens per second of answers and time to the first token, against transformers, in one run.

Ours and the peer's processes take turns, because a machine's speed drifts. Random weights, prompts
of 32 tokens and answers of a fixed length, from the prompts to the last token. Time to the first
token: one prompt of 1000 tokens.

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
    """One comparison."""

    peer_python: str = option("", "an interpreter with torch and transformers; empty: ours alone")
    size: str = option("toy_8m", "by sizes.by_name; or toy_110m")
    dtype: str = option("float32", "of weights, cache and products; or bfloat16")
    batches: tuple[int, ...] = option((1, 8, 32), "rows that decode together")
    new_tokens: int = option(64, "per row")
    prompt: int = option(1000, "tokens, of the time to the first one")
    rounds: int = option(3, "ours and the peer's in turn")
    only: str = option("", '"ours": one measurement as JSON, in this process')
    output: str = option("", "a JSON file for the table")


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

    rows: dict[str, list[dict]] = {}
    for _, name, row in turns.take(config.rounds, command, peers):
        rows.setdefault(name, []).append(row)
    print(
        f"{config.size}, {rows['ours'][0]['parameters']:,} parameters, {config.dtype}; medians "
        f"of {config.rounds} rounds; " + "; ".join(r[-1]["versions"] for r in rows.values())
    )
    table = {}
    for name in rows["ours"][0]["results"]:
        table[name] = {
            who: float(np.median([r["results"][name] for r in measured]))
            for who, measured in rows.items()
        }
        unit = "s" if name.startswith("first") else "tokens/s"
        line = "  ".join(f"{who} {value:10,.3f} {unit}" for who, value in table[name].items())
        if "transformers" in table[name]:
            ratio = table[name]["ours"] / table[name]["transformers"]
            line += f"  ahead {1 / ratio if unit == 's' else ratio:5.2f} x"
        print(f"{name:24} {line}")
    if config.output:
        pathlib.Path(config.output).write_text(
            json.dumps({"table": table, "rounds": rows}, indent=1) + "\n"
        )


def measure(config: Config) -> dict:
    """The engine's speed, as a user of step() meets it."""
    import jax

    from qwen_jax import sizes
    from qwen_jax.inference.engine import Engine
    from qwen_jax.inference.request import Request
    from qwen_jax.inference.sampling import SamplingParams
    from qwen_jax.model.spec import count, init_params

    model = dataclasses.replace(
        sizes.by_name(config.size), compute_dtype=config.dtype, param_dtype=config.dtype
    )
    params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(0))
    draw, results = np.random.default_rng(0), {}

    def requests(number, length, new, **settings):
        return [
            Request(
                tuple(draw.integers(0, model.vocab_size, length).tolist()),
                SamplingParams(new, seed=i, **settings),
            )
            for i in range(number)
        ]

    for batch in config.batches:
        engine = Engine(params, model, rows=batch, slots=32 + config.new_tokens)
        for name, settings in (("greedy", {}), ("top-p", {"temperature": 1.0, "top_p": 0.9})):
            speeds = []
            for _ in range(3):  # the first compiles
                for request in requests(batch, 32, config.new_tokens, **settings):
                    engine.submit(request)
                begin = time.perf_counter()
                while engine.busy:
                    engine.step()
                speeds.append(batch * config.new_tokens / (time.perf_counter() - begin))
            results[f"batch {batch:2}, {name}"] = max(speeds[1:])
    engine = Engine(params, model, rows=1, slots=config.prompt + 32)
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
