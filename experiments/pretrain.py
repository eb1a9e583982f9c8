"""Pretraining. Report: 2.4, Table 1.

Next-token prediction over a weighted mixture of token shards, AdamW, cosine schedule to 10 %.

On your own text:        python -m experiments.prepare_data --sources=mine=FOLDER --output=data/mine
                         python -m experiments.pretrain --recipe=1.8b --run_dir=runs/mine \\
                             --data.sources=data/mine/shards/mine/train
On a laptop, a minute:   the same with --recipe=smoke --model.vocab_size=32768
On from released weights: --init_from=FOLDER (or of another run; the optimizer begins anew).
A run that was interrupted goes on where it was when the same command is given again.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import signal
import sys
from collections.abc import Iterator

from qwen_jax import sizes
from qwen_jax.cli import flags
from qwen_jax.config import (
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    option,
)
from qwen_jax.data import shards
from qwen_jax.data.loader import Loader
from qwen_jax.errors import ConfigError
from qwen_jax.parallel import distributed
from qwen_jax.parallel.batch_rows import rows_here
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.pretrained.start import check_architecture, weights_of
from qwen_jax.pretrained.vocabulary import check_vocabulary
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.train.language_model import make_objective
from qwen_jax.train.loop import Stopped
from qwen_jax.train.supervised import HeldOut, language_evaluation, train


@dataclasses.dataclass(frozen=True)
class Config:
    """One pretraining run."""

    model: ModelConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    data: DataConfig = DataConfig()
    mesh: MeshConfig = MeshConfig()
    run_dir: str = option("runs/pretrain", "checkpoints, metrics and the report page")
    init_from: str | None = option(
        None, "weights to begin with: a released folder or a run; none: fresh"
    )


def _recipe(model: ModelConfig, tokens: float, *, micro_batches: int) -> Config:
    batch_size = 2048  # report Table 1: 4M tokens = 2048 sequences of 2048
    return Config(
        model=dataclasses.replace(
            model,
            context_length=2048,  # report 2.4
            compute_dtype="bfloat16",  # report 2.4
            remat="dots",
        ),  # ours: keeps matrix products, recomputes the rest
        optimizer=OptimizerConfig(
            peak_learning_rate=3.0e-4,  # report Table 1
            schedule="cosine",
            final_fraction=0.1,  # report 2.4
            beta1=0.9,
            beta2=0.95,
            epsilon=1e-8,  # report 2.4
            warmup_steps=2000,  # ours: the technical memo of Qwen-7B; the report does not say
            weight_decay=0.1,
            clip_norm=1.0,
        ),  # ours: stated in 3.1 for SFT; the memo agrees
        train=TrainConfig(
            num_steps=round(tokens / (batch_size * 2048)),  # report Table 1
            batch_size=batch_size,
            micro_batches=micro_batches,
            log_every=10,
            eval_every=1000,
            save_every=1000,
        ),
    )  # ours


# report Table 1: sizes and tokens. Micro-batches are those that experiments.plan found for v5p-256
# (128 chips; benchmarks/results/plan.md), where 7B takes --mesh.data=4 and 14B --mesh.data=16: a
# piece of a weight should keep whole vectors of 128. On v5e-16, 1.8B takes --model.remat=block
# --train.micro_batches=32. The mesh is a slice's, not a recipe's: ask experiments.plan for yours.
RECIPES = {
    "1.8b": _recipe(sizes.QWEN_1_8B, 2.2e12, micro_batches=1),
    "7b": _recipe(sizes.QWEN_7B, 2.4e12, micro_batches=2),
    "14b": _recipe(sizes.QWEN_14B, 3.0e12, micro_batches=4),
}
RECIPES["toy_256"] = Config(  # ours: what long_context.py shows the report's Table 3 on, on a CPU
    model=ModelConfig(  # 3.4M parameters
        vocab_size=2304,
        hidden_size=192,
        num_layers=6,
        num_heads=3,
        ffn_size=512,
        context_length=256,
        unroll_layers=6,
    ),
    optimizer=dataclasses.replace(
        RECIPES["1.8b"].optimizer, peak_learning_rate=3e-3, warmup_steps=100
    ),
    train=TrainConfig(num_steps=2000, batch_size=8, log_every=50, save_every=200),
    run_dir="runs/toy_256",
)
SMOKE = Config(
    model=dataclasses.replace(
        sizes.TINY, vocab_size=512, hidden_size=64, ffn_size=176, context_length=64
    ),
    optimizer=dataclasses.replace(
        RECIPES["1.8b"].optimizer, peak_learning_rate=3e-3, warmup_steps=10
    ),
    train=TrainConfig(
        num_steps=60, batch_size=16, log_every=10, eval_every=30, save_every=30, eval_batches=4
    ),
    run_dir="runs/smoke",
)


def main(config: Config) -> None:
    """Trains; a signal ends it with a checkpoint (exit code 0 for SIGTERM, 130 for Ctrl-C)."""
    if not config.data.sources:
        raise ConfigError(
            "no text to train on.",
            "--data.sources",
            "name shard folders; --help shows how to make them.",
        )
    # prepare_data leaves the tokenizer beside the shards.
    beside = pathlib.Path(config.data.sources[0].rpartition("=")[0] or config.data.sources[0])
    tokenizer = Tokenizer.from_file(config.data.tokenizer or beside.parent / shards.TOKENIZER)
    with ended_by_signal():
        pretrain(config, tokenizer)


@contextlib.contextmanager
def ended_by_signal() -> Iterator[None]:
    """A run that a signal ends says how to go on; exit code 0 for SIGTERM, 130 for Ctrl-C.

    Under a launcher SIGTERM means that a machine is taken away: the code asks to be started again.
    """
    try:
        yield
    except Stopped as stopped:
        print(f"{stopped}; give the same command again to go on", flush=True)
        if stopped.signal_number != signal.SIGTERM:
            sys.exit(130)
        sys.exit(distributed.AGAIN if os.environ.get(distributed.LAUNCHER) else 0)


def pretrain(config: Config, tokenizer: Tokenizer, emit=flags.emit):
    """The run itself; returns the last TrainState."""
    check_vocabulary(
        tokenizer,
        config.model,
        flag="--model.vocab_size, --data.tokenizer",
        fix=f"use --model.vocab_size={-(-tokenizer.vocab_size // 128) * 128}.",
    )
    if config.init_from:
        check_architecture(config.init_from, config.model)
    make_loader = functools.partial(
        Loader,
        context_length=config.model.context_length,
        end_of_text=tokenizer.end_of_text,
        vocab_size=config.model.vocab_size,
        tokenizer=tokenizer.fingerprint,
        seed=config.train.seed,
        rows=rows_here(make_mesh(config.mesh), config.train.batch_size),
    )
    loader = make_loader(config.data, batch_size=config.train.batch_size)
    tokens, epochs = loader.tokens_per_epoch, loader.epochs(config.train.num_steps)
    emit(
        "data: "
        + "; ".join(
            f"{name} {tokens[name]:,} tokens, read {epochs[name]:.2f} times"
            for name in loader.names
        )
    )
    held_out = []
    for source in config.data.eval_sources:
        text = make_loader(
            dataclasses.replace(config.data, sources=(source,)), batch_size=config.train.batch_size
        )
        held_out.append(
            HeldOut(
                name=text.names[0],
                bytes_per_token=text.bytes_per_token,
                batches=functools.partial(text.eval_batches, config.train.eval_batches),
            )
        )
    return train(
        config,
        training_stage="pretrain",
        emit=emit,
        tokenizer=tokenizer,
        batches=loader.iterate,
        initial=weights_of(config.init_from) if config.init_from else None,
        objective=make_objective(config.model, z_loss=config.train.z_loss),
        evaluate=language_evaluation(
            make_objective(config.model, training=False), tuple(held_out), emit
        ),
    )


if __name__ == "__main__":
    flags.run(main, __doc__, RECIPES | {"smoke": SMOKE})
