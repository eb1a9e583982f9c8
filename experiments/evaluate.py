"""Evaluates a model on benchmarks, and prints its scores next to the report's. Report: 2.6.

python -m experiments.evaluate --checkpoint=FOLDER --tasks=mmlu,ceval --data=FOLDER[,FOLDER]

Tasks read the files of the benchmarks' own distributions from --data; nothing is downloaded.
Prompts and scoring are those of a protocol: a bare name is "qwen", the released scripts'. Writes
--output: results.json (scores, standard errors, counts, hashes of data and prompts), times.json,
and samples/TASK.jsonl with every prompt, answer and verdict. To resume a killed evaluation, run the
same command again. A prompt that is longer than the model's context loses its beginning, and the
results count such prompts.

--prompts_only writes all prompts to --output/prompts.jsonl without a model; --preview prints the
first prompt of each task.
"""

import dataclasses
import pathlib
import sys

from qwen_jax import exit_codes
from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.errors import ConfigError
from qwen_jax.evaluate import harness
from qwen_jax.evaluate.checkpoint import run
from qwen_jax.evaluate.data_files import DataFolders
from qwen_jax.evaluate.table import table
from qwen_jax.evaluate.tasks import SUITES, TASKS, select
from qwen_jax.inference.warmup import mesh_of
from qwen_jax.ranges import ONE_OR_MORE, Checked
from qwen_jax.utils.best_effort import keep_going
from qwen_jax.utils.jsonl import write_rows
from qwen_jax.utils.output import print_error


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """The model, the tasks and their data."""

    checkpoint: str = option(
        "", "model to evaluate: a run folder, or a folder in the Qwen or Qwen2 layout"
    )
    tokenizer: str | None = option(None, ".tiktoken file; None: the one in the model's folder")
    allow_nonfinite: bool = option(False, "accept weights with NaN or infinity")
    tasks: tuple[str, ...] = option((), f"tasks or suites: {', '.join([*SUITES, *TASKS])}")
    data: tuple[str, ...] = option((), "folders with the files of the benchmarks")
    output: str = option("runs/evaluate", "folder for the results and samples")
    limit: int | None = option(
        None, "maximum examples of a task, spread evenly over it; None: all", ONE_OR_MORE
    )
    max_length: int | None = option(
        None,
        "maximum tokens of a prompt; longer ones lose their beginning; None: the model's context "
        "length",
        ONE_OR_MORE,
    )
    batch_size: int = option(
        16, "prompts per device that are scored at once; a CPU scores one", ONE_OR_MORE
    )
    tensor: int = option(1, "number of devices that weights are sharded over", ONE_OR_MORE)
    prompts_only: bool = option(False, "write the prompts and stop")
    preview: bool = option(False, "print the first prompt of each task and stop")

    def __post_init__(self):
        super().__post_init__()
        if self.prompts_only and self.preview:
            raise ConfigError(
                "--prompts_only and --preview exclude each other.",
                "--prompts_only, --preview",
                "set one of them.",
            )


@keep_going()
def main(config: Config) -> None:
    """Writes results, or the prompts alone."""
    if not config.tasks or not config.data:
        raise ConfigError(
            "no tasks or no data are set.",
            "--tasks, --data",
            "set both, as in --tasks=mmlu --data=FOLDER; see --help.",
        )
    if config.prompts_only or config.preview:
        data = DataFolders(config.data)
        work = [harness.read(task, data, config.limit) for task in select(config.tasks)]
        if config.preview:
            for one in work:
                print(f"=== {one.task.key}\n{one.prompt(one.examples[0])}", flush=True)
            return
        path = pathlib.Path(config.output) / "prompts.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_rows(path, (row for one in work for row in harness.prompts(one)))
        print(f"wrote {path}")
        return
    try:
        results = run(
            config.checkpoint,
            config.tasks,
            data=config.data,
            output=config.output,
            limit=config.limit,
            batch_size=config.batch_size,
            max_length=config.max_length,
            tokenizer=config.tokenizer,
            mesh=mesh_of(config.tensor),
            allow_nonfinite=config.allow_nonfinite,
            log=flags.log,
        )
    except KeyboardInterrupt:
        print_error("stopped; run the same command again to resume")
        sys.exit(exit_codes.INTERRUPTED)
    print(table(results))
    print(f"wrote {pathlib.Path(config.output) / 'results.json'}")


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
