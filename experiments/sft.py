"""Supervised fine-tuning in ChatML. Report: 3.1.

The loss is on the assistant's answers alone; system and user turns, and the names of roles, are
masked. Conversations are packed into rows without seeing one another.

    python -m experiments.sft --init_from=runs/base --run_dir=runs/chat \\
        --data.conversations=a.jsonl,b.json --data.eval_conversations=c.jsonl
    ... --lora.rank=16 --optimizer.peak_learning_rate=2e-4   # adapters beside frozen weights
    ... --preview=3      # shows three examples, what is learnt in green, and trains nothing

Adapters (LoRA, not in the report) need a fraction of the memory; export adds them to the weights.
The recipe's learning rate is for the weights themselves: adapters take about a hundred times it.

Formats: messages (role, content), ShareGPT (conversations), Alpaca (instruction, input, output);
.json or .jsonl, also .gz.
"""

import dataclasses
import functools
from typing import Literal

from experiments.pretrain import ended_by_signal
from qwen_jax.cli import flags
from qwen_jax.config import MeshConfig, OptimizerConfig, TrainConfig, option
from qwen_jax.data.chat.conversations import Counts, read_conversations
from qwen_jax.data.chat.preview import preview
from qwen_jax.data.chat.sft_rows import PackedRows, encode
from qwen_jax.errors import ConfigError
from qwen_jax.model.lora import LoRAConfig
from qwen_jax.pretrained.overrides import ModelOverrides
from qwen_jax.pretrained.start import start, start_of
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.train.language_model import make_objective
from qwen_jax.train.supervised import HeldOut, language_evaluation
from qwen_jax.train.supervised_rows import held_out_batches, train_on
from qwen_jax.utils.jsonl import names_of


@dataclasses.dataclass(frozen=True)
class SFTData:
    """Which conversations, and how they become rows."""

    conversations: tuple[str, ...] = option((), ".json and .jsonl files")
    eval_conversations: tuple[str, ...] = option((), "held out, one evaluation each")
    mask: Literal["assistant", "original"] = option(
        "assistant", "original: every turn's markers too"
    )
    packed: bool = option(True, "several conversations to a row, none seeing another")
    context_length: int | None = option(None, "tokens of a row; none: the model's")


@dataclasses.dataclass(frozen=True)
class Config:
    """One fine-tuning run."""

    train: TrainConfig
    init_from: str = option("", "a run folder or a released Qwen folder")
    tokenizer: str | None = option(None, "a .tiktoken file; none: the one in init_from")
    data: SFTData = SFTData()
    model: ModelOverrides = ModelOverrides()  # all else of the model is that of init_from
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoRAConfig = LoRAConfig()  # adapters beside the weights; off without a rank
    mesh: MeshConfig = MeshConfig()
    run_dir: str = option("runs/sft", "checkpoints, metrics and the report page")
    preview: int = option(0, "examples to show instead of training")


RECIPE = Config(
    data=SFTData(context_length=2048),  # report 3.1.2
    model=ModelOverrides(
        dropout=0.1,  # report 3.1.2
        remat="dots",  # ours: keeps matrix products, recomputes the rest
    ),
    optimizer=OptimizerConfig(
        peak_learning_rate=2e-6,
        warmup_steps=1430,  # report 3.1.2
        schedule="constant",  # ours: the report says nothing of what follows the warm-up
        beta1=0.9,
        beta2=0.95,
        epsilon=1e-8,  # report 3.1.2
        weight_decay=0.1,
        clip_norm=1.0,
    ),  # report 3.1.2
    train=TrainConfig(
        num_steps=4000,
        batch_size=128,  # report 3.1.2
        log_every=10,
        eval_every=200,
        save_every=200,
    ),
)  # ours
SMOKE = dataclasses.replace(
    RECIPE,
    data=SFTData(),
    model=ModelOverrides(dropout=0.1, compute_dtype="float32"),  # report 3.1.2
    optimizer=dataclasses.replace(RECIPE.optimizer, peak_learning_rate=2e-3, warmup_steps=10),
    train=TrainConfig(
        num_steps=40, batch_size=8, log_every=10, eval_every=20, save_every=20, eval_batches=4
    ),
    run_dir="runs/sft_smoke",
)
RECIPES = {"default": RECIPE, "smoke": SMOKE}
RECIPES |= dict.fromkeys(("1.8b", "7b", "14b"), "default")  # former names: init_from has the size


def main(config: Config) -> None:
    """Shows examples, or trains; a signal ends it with a checkpoint."""
    if not config.data.conversations:
        raise ConfigError(
            "no conversations to learn from.",
            "--data.conversations",
            "name .json or .jsonl files; --help says which formats.",
        )
    config, tokenizer = start(config, config.data.context_length)
    rows, examples = make_rows(config.data.conversations, config, tokenizer)
    for example in examples[: config.preview]:
        print(preview(example, tokenizer), end="\n\n")
    if not config.preview:
        with ended_by_signal():
            finetune(config, rows, tokenizer)


def make_rows(
    paths: tuple[str, ...],
    config: Config,
    tokenizer: Tokenizer,
    emit=flags.emit,
):
    """The packed rows of some files and their examples, after saying what became of the data."""
    counts, length = Counts(), config.model.context_length
    examples = list(
        encode(
            read_conversations(paths, counts),
            tokenizer,
            context_length=length,
            counts=counts,
            mask=config.data.mask,
        )
    )
    rows = PackedRows(examples, context_length=length, packed=config.data.packed)
    emit(f"data: {counts}")
    emit(
        f"rows: {len(rows):,} of {length} tokens, {100 * rows.efficiency:.1f} % full, "
        f"{sum(float(example.weights[1:].sum()) for example in examples):,.0f} tokens are learnt"
    )
    return rows, examples


def finetune(
    config: Config,
    rows: PackedRows,
    tokenizer: Tokenizer,
    emit=flags.emit,
):
    """The run itself; returns the last TrainState."""
    held_out = []
    paths = config.data.eval_conversations
    for name, path in zip(names_of(paths), paths, strict=True):
        eval_rows, examples = make_rows((path,), config, tokenizer, emit)
        text = sum(len(tokenizer.decode(e.tokens[e.weights > 0]).encode()) for e in examples)
        learnt = sum(float(e.weights[1:].sum()) for e in examples)
        held_out.append(
            HeldOut(
                name=name,
                bytes_per_token=text / learnt,
                batches=functools.partial(
                    held_out_batches, eval_rows, config, config.train.eval_batches
                ),
            )
        )
    emit(f"{config.train.batch_size * config.train.num_steps / len(rows):.2f} passes over the data")
    return train_on(
        rows,
        config,
        training_stage="sft",
        emit=emit,
        tokenizer=tokenizer,
        **start_of(config),
        objective=make_objective(config.model, z_loss=config.train.z_loss),
        evaluate=language_evaluation(
            make_objective(config.model, training=False), tuple(held_out), emit
        ),
    )


if __name__ == "__main__":
    flags.run(main, __doc__, RECIPES)
