"""Training steps of Table 1's sizes on one accelerator, against a peer: tokens/s, MFU, memory.

Runs the step, the loop and the loader of experiments.pretrain on random tokens, without saving. The
first loss should be about the logarithm of the vocabulary size. Matmuls are in BF16, weights in
FP32, and AdamW's moments in --moment_dtype. The peer is transformers' Qwen2 with SDPA and
torch.compile on the same number of tokens.

    python -m benchmarks.aot.full_size --size=1.8b --peer_python=python3
    python -m benchmarks.aot.full_size --size=7b --moment_dtype=bfloat16 --remat=block \\
      --micro_batches=16
"""

import dataclasses
import json
import pathlib
import sys
import tempfile

import numpy as np

from benchmarks.common import timing, turns
from benchmarks.corpus.data import RandomTokens
from qwen_jax.cli import flags
from qwen_jax.config import DataConfig, MeshConfig, TrainConfig, option


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the comparison."""

    peer_python: str = option(
        "", "Python interpreter with torch and transformers; empty: measure only ours"
    )
    size: str = option("1.8b", "model size, a name in qwen_jax/sizes.py or a config.json")
    context_length: int = option(2048, "tokens per sequence")
    batch_size: int = option(32, "sequences per step")
    micro_batches: int = option(4, "micro-batches per step")
    remat: str = option("dots", "recomputation: none, dots (all but matmuls), block (all)")
    moment_dtype: str = option("float32", "dtype of AdamW's moments; bfloat16 halves their memory")
    steps: int = option(30, "steps to run; the first five are not counted")
    rounds: int = option(1, "measurements of ours and of the peer, alternating")
    trace: str = option("", "folder for a profile of the last three steps; empty: no profile")
    only: str = option("", '"ours": measure in this process and print JSON')
    output: str = option("", "JSON file for the results")


SMOKE = Config(size="tiny", context_length=16, batch_size=4, micro_batches=2, steps=12)
_WARM_UP = 5


def main(config: Config) -> None:
    """Prints the table and writes the JSON file."""
    if config.only:
        print(json.dumps(measure(config)))
        return
    settings = dataclasses.asdict(config) | {"only": "ours", "output": "", "peer_python": ""}
    ours = [
        sys.executable,
        "-m",
        "benchmarks.aot.full_size",
        *(f"--{name}={value}" for name, value in settings.items() if value != ""),
    ]

    def peers(measured: dict) -> dict[str, turns.Process]:
        peer = [config.peer_python, "benchmarks/peers/torch_step.py", json.dumps(measured["work"])]
        return {"transformers, torch.compile": (peer, {})} if config.peer_python else {}

    rows: dict[str, list[dict]] = {}
    for turn, name, row in turns.take(config.rounds, ours, peers):
        rows.setdefault(name, []).append(row)
        print(f"round {turn}: {name:28} {row['tokens_per_second']:10,.0f} tokens/s", flush=True)
    table = summary(rows)
    first = rows["ours"][0]
    print(
        f"\n{config.size}, {first['parameters']:,} parameters, {config.batch_size} x "
        f"{config.context_length} tokens per step in {config.micro_batches} micro-batches, remat "
        f"{config.remat}, moments {config.moment_dtype}, {first['machine']['device']}"
    )
    for name, row in table.items():
        print(
            f"{name:28} {row['tokens_per_second']:10,.0f} tokens/s  MFU {row['mfu']:.1%} "
            f"(noncausal {row['mfu_noncausal']:.1%})  peak {row['peak_gb']:.1f} GB  "
            f"ratio {row['ratio']:.2f}  loss {row['first_loss']:.3f}  ({row['versions']})"
        )
    if config.output:
        pathlib.Path(config.output).write_text(
            json.dumps(
                {"config": dataclasses.asdict(config), "table": table, "rounds": rows}, indent=1
            )
            + "\n"
        )


def summary(rows: dict[str, list[dict]]) -> dict[str, dict]:
    """Returns medians, MFU by our FLOP formulas, and our speedup over each peer."""
    first = rows["ours"][0]
    speeds = {
        name: float(np.median([row["tokens_per_second"] for row in measured]))
        for name, measured in rows.items()
    }
    return {
        name: {
            "tokens_per_second": speed,
            "ratio": speeds["ours"] / speed,
            "mfu": speed * first["flops_a"] / first["peak_flops"],
            "mfu_noncausal": speed * first["flops_b"] / first["peak_flops"],
            "peak_gb": rows[name][0]["peak_gb"],
            "first_loss": rows[name][0]["first_loss"],
            "versions": rows[name][0]["versions"],
        }
        for name, speed in speeds.items()
    }


def measure(config: Config) -> dict:
    """Measures our step in this process."""
    import jax

    from qwen_jax.data import shards
    from qwen_jax.data.document import Document
    from qwen_jax.data.loader import Loader
    from qwen_jax.model.spec import count, param_specs
    from qwen_jax.parallel.mesh import make_mesh
    from qwen_jax.parallel.sharding import batch_sharding, use_layout
    from qwen_jax.parallel.xla_options import compile_for
    from qwen_jax.train.language_model import make_objective
    from qwen_jax.train.loop import fit
    from qwen_jax.train.optimizer import make_optimizer
    from qwen_jax.train.state import abstract_state, make_state
    from qwen_jax.train.step import make_train_step
    from qwen_jax.train.supervised import abstract_batch
    from qwen_jax.train.telemetry import metrics
    from qwen_jax.train.telemetry.trace import traced

    recipe = _recipe(config)
    model, train = recipe.model, recipe.train
    mesh = make_mesh(recipe.mesh, devices=jax.devices()[:1])
    device = mesh.devices.flat[0]
    optimizer = make_optimizer(recipe.optimizer, train.num_steps)
    step = make_train_step(
        make_objective(model), optimizer, seed=0, micro_batches=train.micro_batches
    )
    tokens = train.batch_size * model.context_length
    with tempfile.TemporaryDirectory() as folder, use_layout(mesh):
        documents = -(-2 * tokens * train.num_steps // 20_000)  # 20,000 tokens each
        shards.write(
            (Document(str(i), f"{i}") for i in range(documents)),
            pathlib.Path(folder) / "random",
            _Tokens(model.vocab_size),
        )
        loader = Loader(
            DataConfig(sources=(f"{folder}/random/train",)),
            context_length=model.context_length,
            batch_size=train.batch_size,
            end_of_text=model.vocab_size - 1,
            seed=0,
        )
        sharding = batch_sharding(mesh)
        batch = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            abstract_batch(train.batch_size, model.context_length),
        )
        abstract = abstract_state(param_specs(model), optimizer, mesh, dtype="float32")
        compiled = compile_for(device.platform, step.lower(abstract, batch))
        state = make_state(0, param_specs(model), optimizer, abstract)
        reports, last = [], train.num_steps
        with (
            loader.iterate(0) as batches,
            traced(
                lambda step, state: jax.device_put(next(batches), sharding),
                (last - 2, last) if config.trace else (),
                pathlib.Path(config.trace),
                lambda line: print(line, file=sys.stderr),
            ) as next_batch,
        ):
            fit(state, next_batch, compiled, start_step=0, num_steps=last, report=reports.append)
    counted = reports[_WARM_UP:-3] if config.trace else reports[_WARM_UP:]
    seconds = float(np.median([report.seconds for report in counted]))
    flops_a, flops_b = metrics.flops_per_token(model)
    stats = device.memory_stats() or {}
    return {
        "tokens_per_second": tokens / seconds,
        "step_seconds": seconds,
        "wait_seconds": float(np.median([report.data_wait_seconds for report in counted])),
        "flops_a": flops_a,
        "flops_b": flops_b,
        "peak_flops": metrics.peak_flops(device)[0],
        "peak_gb": stats.get("peak_bytes_in_use", 0) / 1e9,
        "parameters": count(model),
        "first_loss": reports[0].metrics["train/loss"],
        "last_loss": reports[-1].metrics["train/loss"],
        "versions": f"jax {jax.__version__}",
        "machine": timing.machine(),
        "work": dataclasses.asdict(model)
        | {
            "batch_size": train.batch_size,
            "micro_batches": train.micro_batches,
            "moment_dtype": config.moment_dtype,
            "steps": train.num_steps,
            "warm_up": _WARM_UP,
        },
    }


def _recipe(config: Config):
    """Returns the recipe of experiments.pretrain for one device and config.steps steps."""
    from experiments import pretrain
    from qwen_jax.pretrained.load import model_config

    model = dataclasses.replace(
        model_config(config.size),
        context_length=config.context_length,
        remat=config.remat,
        compute_dtype="bfloat16",
    )
    recipe = pretrain.RECIPES["1.8b"]
    return dataclasses.replace(
        recipe,
        model=model,
        mesh=MeshConfig(fsdp=1),
        optimizer=dataclasses.replace(
            recipe.optimizer, warmup_steps=0, moment_dtype=config.moment_dtype
        ),
        train=TrainConfig(
            num_steps=config.steps, batch_size=config.batch_size, micro_batches=config.micro_batches
        ),
    )


class _Tokens(RandomTokens):
    """Random tokens for a vocabulary of the given size."""

    def __init__(self, vocab_size: int):
        self.vocab_size, self.end_of_text = vocab_size, vocab_size - 1

    def encode_batch(self, texts):
        return [ids % (self.vocab_size - 1) for ids in super().encode_batch(texts)]


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config(), "smoke": SMOKE})
