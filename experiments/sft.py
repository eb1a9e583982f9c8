"""Supervised fine-tuning in ChatML. Report: 3.1.

Trains a base model on conversations. The loss is on the assistant's turns only; system and user
turns, and the names of roles, are masked. Conversations are packed into rows; attention is limited
to each conversation.

Laptop, a minute, from the smoke run of experiments.pretrain:
    python -m experiments.sft --recipe=smoke --init_from=runs/smoke \\
        --data.conversations=a.jsonl --data.eval_conversations=b.jsonl
Pod:
    python -m launch.tpu_pod --name=sft --zone=ZONE --type=v5p-64 -- sft \\
        --init_from=runs/base --run_dir=runs/chat --data.conversations=a.jsonl,b.json
Adapters (LoRA, not in the report) on one GPU; their learning rate is about a hundred times that of
full fine-tuning. experiments.convert merges them into the weights:
    ... --lora.rank=16 --optimizer.peak_learning_rate=2e-4
Show three examples, trained tokens in green, without training:
    ... --preview=3

Formats: messages (role, content), ShareGPT (conversations), Alpaca (instruction, input, output),
prompt and completion, question and answer; .json or .jsonl, also .gz. What is read of a row, and
what skips it, is in docs/guides/chat_data.md. The model is that of --init_from, of any size.

Length: 4,000 steps of 262,144 tokens. Its duration has not been measured yet.
Expect: the report has no result for SFT alone; 3.3 has benchmarks and human evaluation of the
aligned models.
"""

import dataclasses
import sys

from qwen_jax.align.train_sft import SFTData, read_conversation_data, train_sft, with_eval_fraction
from qwen_jax.cli import flags
from qwen_jax.config import MeshConfig, OptimizerConfig, TrainConfig, option
from qwen_jax.data.chat.preview import preview
from qwen_jax.errors import ConfigError
from qwen_jax.evaluate.in_training import TaskEvaluation, prepare
from qwen_jax.model.lora import LoRAConfig
from qwen_jax.pretrained.overrides import ModelOverrides
from qwen_jax.pretrained.start import start
from qwen_jax.ranges import ZERO_OR_MORE, Checked
from qwen_jax.report import report_at_end
from qwen_jax.train.resilience.exit import exit_on_signal


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """Settings of a fine-tuning run."""

    train: TrainConfig
    init_from: str = option(
        "", "model to train: a run folder or a released Qwen folder", kind="stored"
    )
    tokenizer: str | None = option(
        None, "folder or file; None: the one in the folder of --init_from"
    )
    data: SFTData = SFTData()
    model: ModelOverrides = ModelOverrides()  # changes to the model of init_from
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoRAConfig = LoRAConfig()  # adapters; off if rank is None
    evaluate: TaskEvaluation = TaskEvaluation()
    mesh: MeshConfig = MeshConfig()
    run_dir: str = option(
        "runs/sft", "run folder for checkpoints, metrics and the report page", kind="stored"
    )
    restart_from_scratch: bool = option(
        False, "move the files of an earlier run in run_dir to before-N/ and begin again, once"
    )
    allow_changes: bool = option(
        False, "resume with another learning rate, number of steps, ... (docs/guides/resuming.md)"
    )
    preview: int = option(
        0, "number of examples to show instead of training; 0: train", ZERO_OR_MORE
    )


RECIPE = Config(
    data=SFTData(context_length=2048),  # report 3.1.2
    model=ModelOverrides(
        dropout=0.1,  # report 3.1.2
        remat="dots",  # ours: saves matmul outputs, recomputes the rest
    ),
    optimizer=OptimizerConfig(
        peak_learning_rate=2e-6,  # report 3.1.2
        warmup_steps=1430,  # report 3.1.2
        schedule="constant",  # ours: the report does not specify it
        beta1=0.9,  # report 3.1.2
        beta2=0.95,  # report 3.1.2
        epsilon=1e-8,  # report 3.1.2
        weight_decay=0.1,  # report 3.1.2
        clip_norm=1.0,  # report 3.1.2
    ),
    train=TrainConfig(
        num_steps=4000,  # report 3.1.2
        batch_size=128,  # report 3.1.2
        log_every=10,  # ours
        eval_every=200,  # ours
        save_every=200,  # ours
    ),
)
SMOKE = dataclasses.replace(
    RECIPE,
    data=SFTData(),
    model=ModelOverrides(
        dropout=0.1,  # report 3.1.2
        compute_dtype="float32",
    ),
    optimizer=dataclasses.replace(RECIPE.optimizer, peak_learning_rate=2e-3, warmup_steps=10),
    train=TrainConfig(
        num_steps=40, batch_size=8, log_every=10, eval_every=20, save_every=20, eval_batches=4
    ),
    run_dir="runs/sft_smoke",
)
RECIPES = {"default": RECIPE, "smoke": SMOKE}
RECIPES |= dict.fromkeys(("1.8b", "7b", "14b"), "default")  # former names; init_from sets the size


def main(config: Config) -> None:
    """Previews examples, or trains the model. On a signal, saves a checkpoint and exits."""
    if not config.data.conversations:
        raise ConfigError(
            "no conversations are set.",
            "--data.conversations",
            "pass .json or .jsonl files; --help lists the formats.",
        )
    started, tokenizer = start(config, config.data.context_length)
    started = with_eval_fraction(started)
    data = read_conversation_data(started, tokenizer, flags.log)
    for example in data.examples[: config.preview]:
        print(preview(example, tokenizer, color=sys.stdout.isatty()), end="\n\n")
    if config.preview:
        return
    benchmarks = prepare(
        config.evaluate, started.model, config.train, tokenizer, config.mesh, flags.log
    )
    with exit_on_signal(), report_at_end(config.run_dir, flags.log):
        train_sft(started, data, tokenizer, benchmarks=benchmarks, log=flags.log)


if __name__ == "__main__":
    flags.run(main, __doc__, RECIPES)
