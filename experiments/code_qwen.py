"""Code-Qwen: continued pretraining on code and text. Report: 4.1, 4.2.

Continues a base model with next-token prediction in sequences of 8,192 tokens. Adam's moments begin
at zero; the learning rate warms up over 3 % of the steps and then stays constant.

Data: repositories in their own order, without the benchmarks' tests, more of chosen languages, and
text next to them (docs/guides/code_and_math.md):
    python -m experiments.prepare_data --recipe=code --output=data/code --tokenizer=runs/base \\
        --sources=code=code:repositories,text=text:books \\
        --mixture.weights=code:python=2 --filters.test_sets=benchmarks
Pod of 128 chips, from the 7B base:
    python -m launch.tpu_pod --name=code --zone=ZONE --type=v5p-256 -- code_qwen --recipe=7b \\
        --init_from=runs/base --run_dir=runs/code --mesh.data=2 --mesh.context=2 \\
        --data.sources=data/code/shards/code/train=0.85,data/code/shards/text/train=0.15
Laptop, a minute, from the smoke run of experiments.pretrain:
    python -m experiments.code_qwen --recipe=smoke --init_from=runs/smoke \\
        --data.sources=data/mine/shards/mine/train
Then: experiments.code_chat.

Open in the report, and chosen here: the shares of code and text (0.85 and 0.15, Code Llama's); the
optimizer (new: the base's cosine has ended, and released folders have no moments); the packing
(documents are joined and split at 8,192 tokens, so that a file sees the files before it); batch
(the 4M tokens of Table 1), weight decay and clipping (those of 3.1.2); the rotary base (10,000, as
in the base model).

Hardware and hours: benchmarks/results/plan.md has the compiled estimates for v5p-256; no full size
has run yet.
Expect pass@1 on HumanEval and MBPP (report Tables 10 and 11): 40.2 and 41.8 (7B), 45.1 and 51.4
(14B), after training on the report's own data, which is not public.
"""

import dataclasses

from qwen_jax.cli import flags
from qwen_jax.config import DataConfig, MeshConfig, OptimizerConfig, TrainConfig, option
from qwen_jax.evaluate.in_training import TaskEvaluation, prepare
from qwen_jax.pretrained.overrides import ModelOverrides
from qwen_jax.pretrained.start import initial_weights_of, start
from qwen_jax.ranges import Checked
from qwen_jax.report import report_at_end
from qwen_jax.train.pretrain import check_sources, pretrain
from qwen_jax.train.resilience.exit import exit_on_signal

_TOKENS = 90e9  # report 4.1
_LENGTH = 8192  # report 4.2
_BATCH = 512  # ours: 4M tokens, as in Table 1
_STEPS = round(_TOKENS / (_BATCH * _LENGTH))


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """Settings of continued pretraining. The tokenizer is that of init_from."""

    optimizer: OptimizerConfig
    train: TrainConfig
    init_from: str = option("", "base model: a run folder or a released Qwen folder", kind="stored")
    data: DataConfig = DataConfig()
    model: ModelOverrides = ModelOverrides()  # changes to the model of init_from
    evaluate: TaskEvaluation = TaskEvaluation()
    mesh: MeshConfig = MeshConfig()
    run_dir: str = option(
        "runs/code", "run folder for checkpoints, metrics and the report page", kind="stored"
    )
    restart_from_scratch: bool = option(
        False, "move the files of an earlier run in run_dir to before-N/ and begin again, once"
    )
    allow_changes: bool = option(
        False, "resume with another learning rate, number of steps, ... (docs/guides/resuming.md)"
    )

    @property
    def tokenizer(self) -> str | None:
        """The file of --data.tokenizer; None: the tokenizer in the folder of init_from."""
        return self.data.tokenizer


def _recipe(peak_learning_rate: float, *, micro_batches: int) -> Config:
    return Config(
        data=DataConfig(context_length=_LENGTH),
        model=ModelOverrides(
            compute_dtype="bfloat16",  # report 2.4
            remat="dots",  # ours: saves matmul outputs, recomputes the rest
        ),
        optimizer=OptimizerConfig(
            peak_learning_rate=peak_learning_rate,  # report 4.2
            warmup_steps=round(0.03 * _STEPS),  # report 4.2
            schedule="constant",  # report 4.2: no decay
            beta1=0.9,  # report 4.2
            beta2=0.95,  # report 4.2
            epsilon=1e-8,  # report 4.2
            weight_decay=0.1,  # ours: stated in 3.1.2 for SFT
            clip_norm=1.0,  # ours: stated in 3.1.2 for SFT
        ),
        train=TrainConfig(
            num_steps=_STEPS,
            batch_size=_BATCH,
            micro_batches=micro_batches,
            log_every=10,  # ours
            eval_every=500,  # ours
            save_every=500,  # ours
        ),
    )


# The micro-batches are those of the layouts in benchmarks/results/plan.md.
RECIPES = {
    "7b": _recipe(3e-5, micro_batches=2),  # report 4.2
    "14b": _recipe(6e-5, micro_batches=4),  # report 4.2
}
SMOKE = dataclasses.replace(
    RECIPES["7b"],
    data=DataConfig(context_length=128),
    model=ModelOverrides(compute_dtype="float32"),
    optimizer=dataclasses.replace(RECIPES["7b"].optimizer, peak_learning_rate=1e-3, warmup_steps=2),
    train=TrainConfig(
        num_steps=60, batch_size=8, log_every=10, eval_every=30, save_every=30, eval_batches=4
    ),
    run_dir="runs/code_smoke",
)


def main(config: Config) -> None:
    """Trains the model. A signal saves a checkpoint; exit code 0 (SIGTERM) or 130 (Ctrl-C)."""
    check_sources(config.data)
    started, tokenizer = start(config, config.data.context_length)
    benchmarks = prepare(
        config.evaluate, started.model, config.train, tokenizer, config.mesh, flags.log
    )
    with exit_on_signal(), report_at_end(config.run_dir, flags.log):
        pretrain(
            started, tokenizer, **initial_weights_of(started), benchmarks=benchmarks, log=flags.log
        )


if __name__ == "__main__":
    flags.run(main, __doc__, RECIPES | {"smoke": SMOKE})
