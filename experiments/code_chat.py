"""Code-Qwen-Chat: supervised fine-tuning in several stages. Report: 4.2.

Each stage fine-tunes the model of the stage before, in RUN_DIR/stage-1, RUN_DIR/stage-2, ...; the
first starts from --init_from. Every stage has the same settings, a new optimizer and its own data.

Pod, from the run of experiments.code_qwen:
    python -m launch.tpu_pod --name=chat --zone=ZONE --type=v5p-64 -- code_chat --recipe=7b \\
        --init_from=runs/code --run_dir=runs/code_chat \\
        --stages=general.jsonl+code.jsonl,code_checked.jsonl
Laptop, a minute:
    python -m experiments.code_chat --recipe=smoke --init_from=runs/smoke \\
        --stages=a.jsonl+b.jsonl,b.jsonl
A stage is one or more files, joined by +. Formats: those of experiments.sft. To resume, run the
same command again: it goes on in the stage that was interrupted. Chat with the last stage:
    python -m experiments.chat --checkpoint=runs/code_chat/stage-2

Open in the report, and chosen here: the stages and their data (first general conversations with
code among them, then only code whose tests pass, since programs that run can be checked and chosen;
docs/guides/code_and_math.md); 2,000 steps a stage; rows of 8,192 tokens, as in 4.2's pretraining,
and 32 of them, as many tokens as in 3.1.2; weight decay, dropout and clipping (those of 3.1.2).

Expect pass@1 on HumanEval and MBPP (report Tables 10 and 11): 43.3 and 44.2 (7B), 66.4 and 52.4
(14B), after training on the report's own data, which is not public.
"""

import dataclasses
import pathlib

from qwen_jax.align.train_sft import SFTData
from qwen_jax.cli import flags
from qwen_jax.config import MeshConfig, OptimizerConfig, TrainConfig, option
from qwen_jax.errors import ConfigError
from qwen_jax.evaluate.in_training import TaskEvaluation
from qwen_jax.model.lora import LoRAConfig
from qwen_jax.pretrained.overrides import ModelOverrides
from qwen_jax.ranges import Checked

from . import sft


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """Settings of all stages."""

    train: TrainConfig
    stages: tuple[str, ...] = option(
        (), "files of conversations, one entry a stage; write a.jsonl+b.jsonl for several files"
    )
    init_from: str = option("", "model to train: a run folder or a released Qwen folder")
    tokenizer: str | None = option(
        None, "folder or file; None: the one in the folder of --init_from"
    )
    data: SFTData = SFTData()
    model: ModelOverrides = ModelOverrides()  # changes to the model of init_from
    optimizer: OptimizerConfig = OptimizerConfig()
    evaluate: TaskEvaluation = TaskEvaluation()
    mesh: MeshConfig = MeshConfig()
    run_dir: str = option("runs/code_chat", "folder of the stages' run folders")
    allow_changes: bool = option(
        False, "resume with another learning rate, number of steps, ... (docs/guides/resuming.md)"
    )


def _recipe(peak_learning_rate: float) -> Config:
    steps = 2000  # ours
    return Config(
        data=SFTData(context_length=8192),  # ours: as in continued pretraining
        model=sft.RECIPE.model,  # report 3.1.2: dropout 0.1
        optimizer=dataclasses.replace(
            sft.RECIPE.optimizer,  # report 4.2: as in 4.2's pretraining, and 3.1.2
            peak_learning_rate=peak_learning_rate,  # report 4.2
            warmup_steps=round(0.03 * steps),  # report 4.2
            schedule="constant",  # report 4.2
        ),
        train=TrainConfig(
            num_steps=steps,
            batch_size=32,  # ours: 262,144 tokens, as in 3.1.2
            log_every=10,  # ours
            eval_every=200,  # ours
            save_every=200,  # ours
        ),
    )


RECIPES = {"7b": _recipe(1e-5), "14b": _recipe(2e-6)}  # report 4.2
SMOKE = dataclasses.replace(
    RECIPES["7b"],
    data=SFTData(),
    model=sft.SMOKE.model,
    optimizer=dataclasses.replace(RECIPES["7b"].optimizer, peak_learning_rate=2e-3, warmup_steps=1),
    train=sft.SMOKE.train,
    run_dir="runs/code_chat_smoke",
)


def stage_configs(config: Config) -> list[sft.Config]:
    """Returns the config of experiments.sft of each stage, in order.

    Raises:
      ConfigError: no stage is set, or conversations are set in another way.
    """
    if not config.stages:
        raise ConfigError(
            "no stages are set.",
            "--stages",
            "pass a file of conversations for each stage; --help has an example.",
        )
    if config.data.conversations:
        raise ConfigError(
            "the conversations of every stage are set in --stages.",
            "--data.conversations",
            "move the files to --stages, and remove this flag.",
        )
    shared = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in ("stages", "data", "init_from", "run_dir")
    }
    found, start = [], config.init_from
    for number, files in enumerate(config.stages, start=1):
        folder = str(pathlib.Path(config.run_dir) / f"stage-{number}")
        data = dataclasses.replace(config.data, conversations=tuple(files.split("+")))
        found.append(
            sft.Config(**shared, lora=LoRAConfig(), data=data, init_from=start, run_dir=folder)
        )
        start = folder
    return found


def main(config: Config) -> None:
    """Trains the stages one after the other; finished ones are left as they are."""
    stages = stage_configs(config)
    for number, stage in enumerate(stages, start=1):
        flags.log(
            f"stage {number} of {len(stages)}: {', '.join(stage.data.conversations)}, from "
            f"{stage.init_from}"
        )
        sft.main(stage)


if __name__ == "__main__":
    flags.run(main, __doc__, RECIPES | {"smoke": SMOKE})
