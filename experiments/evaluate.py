"""Evaluates a model on benchmarks, and prints its scores next to the report's. Report: 2.6.

python -m experiments.evaluate --checkpoint=FOLDER --tasks=mmlu,ceval --data=FOLDER[,FOLDER]

Tasks read the files of the benchmarks' own distributions from --data; nothing is downloaded.
Prompts and scoring are those of a protocol: a bare name is "qwen", the released scripts'. Writes
--output: results.json (scores, standard errors, counts, hashes of data and prompts), times.json,
and samples/TASK.jsonl with every prompt, answer and verdict. To resume a killed evaluation, run the
same command again. A prompt that is longer than the model's context loses its beginning, and the
results count such prompts.

--prompts_only writes all prompts to --output/prompts.jsonl without a model; --preview prints the
first prompt of each task with its tokens, choices and stop strings. --server=URL evaluates a model
behind an OpenAI-compatible server instead of a checkpoint. --compare=A,B compares the outputs of
two evaluations, example by example.
"""

import dataclasses
import os
import pathlib
import re
import sys
import urllib.parse

from qwen_jax import exit_codes
from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.corpus.filters import task_items
from qwen_jax.errors import ConfigError
from qwen_jax.evaluate import compare
from qwen_jax.evaluate.checkpoint import run
from qwen_jax.evaluate.data_files import DataFolders
from qwen_jax.evaluate.prompts import questions
from qwen_jax.evaluate.prompts.preview import preview
from qwen_jax.evaluate.samples.sampling import Sampling
from qwen_jax.evaluate.server.client import Server
from qwen_jax.evaluate.summary import Decontamination, TrainingText
from qwen_jax.evaluate.table import table
from qwen_jax.evaluate.tasks import SUITES, TASKS, select
from qwen_jax.inference.warmup import mesh_over_all
from qwen_jax.parallel import distributed
from qwen_jax.ranges import ONE_OR_MORE
from qwen_jax.tokenizer.model_folder import find_tokenizer
from qwen_jax.utils.best_effort import keep_going
from qwen_jax.utils.jsonl import write_rows
from qwen_jax.utils.output import print_error


@dataclasses.dataclass(frozen=True)
class Config(Sampling):
    """The model, the tasks and their data; of completions, how they are sampled."""

    checkpoint: str = option(
        "", "model to evaluate: a run folder, or a released dense Qwen to Qwen3"
    )
    server: str = option(
        "",
        "URL of an OpenAI-compatible server to evaluate instead, such as http://127.0.0.1:8000",
        kind="url",
    )
    server_model: str = option("", "the model's name on the server; empty: its only one")
    server_key_variable: str = option(
        "OPENAI_API_KEY", "environment variable with the server's API key"
    )
    server_concurrency: int = option(8, "requests to the server at once", ONE_OR_MORE)
    tokenizer: str | None = option(
        None,
        "folder or file; None: the one in the model's folder, and for a server that prompts are "
        "sent as text",
    )
    allow_nonfinite: bool = option(False, "accept weights with NaN or infinity")
    tasks: tuple[str, ...] = option((), f"tasks or suites: {', '.join([*SUITES, *TASKS])}")
    data: tuple[str, ...] = option((), "folders with the files of the benchmarks")
    output: str | None = option(
        None, "folder for the results and samples; None: runs/evaluate/NAME of the model"
    )
    limit: int | None = option(
        None, "maximum examples of a task, spread evenly over it; None: all", ONE_OR_MORE
    )
    max_length: int | None = option(
        None,
        "maximum tokens of a prompt; longer ones lose their beginning; None: the context that the "
        "model was trained at, as in published scores. Serve and chat take the longest context by "
        "default (dynamic NTK: four times as long, YaRN), which this can set too",
        ONE_OR_MORE,
    )
    batch_size: int = option(
        16,
        "prompts per device that are scored, or completed, at once; a CPU scores one",
        ONE_OR_MORE,
    )
    unsafe: bool = option(
        False,
        "run programs of code tasks even where the kernel isolates neither files nor network",
    )
    tensor: int = option(
        1,
        "number of devices that weights are sharded over; prompts are split over groups of them, "
        "and all devices are used",
        ONE_OR_MORE,
    )
    prompts_only: bool = option(False, "write the prompts and stop")
    preview: bool = option(
        False,
        "print the first prompt of each task and stop; with a checkpoint or tokenizer, its tokens",
    )
    decontamination: str | None = option(
        None,
        "test_sets.npz of prepare_data; results then say which examples it has; None: the one of "
        "the checkpoint's training data, if there is one",
    )
    training_text: tuple[str, ...] = option(
        (),
        "shard folders of the training text, to be searched for the examples: results then count "
        "those of which 13 words occur there",
    )
    compare: tuple[str, ...] = option(
        (), "two outputs of evaluations to compare; writes the comparison to --output"
    )

    @property
    def folder(self) -> pathlib.Path:
        """The output folder. Each model has its own, because results of two do not mix."""
        if self.output is not None:
            return pathlib.Path(self.output)
        if self.server:
            name = f"{urllib.parse.urlsplit(self.server).netloc}-{self.server_model}".rstrip("-")
        else:
            name = pathlib.Path(self.checkpoint).resolve().name if self.checkpoint else ""
        return pathlib.Path("runs/evaluate", re.sub(r"[^\w.-]", "-", name))

    def __post_init__(self):
        super().__post_init__()
        modes = [name for name in ("prompts_only", "preview", "compare") if getattr(self, name)]
        if len(modes) > 1:
            flags_set = ", ".join(f"--{name}" for name in modes)
            raise ConfigError("these flags exclude each other.", flags_set, "set one of them.")
        if self.compare and len(self.compare) != 2:
            raise ConfigError(
                f"{len(self.compare)} folders to compare.",
                "--compare",
                "pass the outputs of two evaluations, as in --compare=A,B.",
            )
        if modes and not self.is_greedy:
            raise ConfigError(
                f"--{modes[0]} samples nothing.",
                "--samples, --temperature",
                f"leave them out, or leave out --{modes[0]}.",
            )
        if self.chat_template_kwargs and (self.prompts_only or self.compare):
            raise ConfigError(
                f"--{modes[0]} renders no chat template.",
                "--chat_template_kwargs",
                "leave it out; --preview renders it.",
            )
        if self.server and self.checkpoint:
            raise ConfigError(
                "a checkpoint and a server are set.", "--checkpoint, --server", "set one of them."
            )


@keep_going()
def main(config: Config) -> None:
    """Writes results, prompts, or a comparison."""
    if config.compare:
        first, second = config.compare
        print(compare.table(compare.compare(first, second, config.folder)))
        print(f"wrote {config.folder / 'compare.json'}")
        return
    _check(config)
    if config.prompts_only or config.preview:
        _prompts(config)
        return
    model: str | Server = config.checkpoint
    if config.server:
        model = Server(
            config.server,
            config.server_model,
            config.server_key_variable,
            config.server_concurrency,
            config.tokenizer,
        )
    try:
        results = run(
            model,
            config.tasks,
            data=config.data,
            output=config.folder,
            limit=config.limit,
            sampling=config,
            batch_size=config.batch_size,
            max_length=config.max_length,
            tokenizer=config.tokenizer,
            mesh=None if config.server else mesh_over_all(config.tensor),
            allow_nonfinite=config.allow_nonfinite,
            unsafe=config.unsafe,
            decontamination=_index(config),
            training_text=_training_text(config),
            log=flags.log,
        )
    except KeyboardInterrupt:
        print_error("stopped; run the same command again to resume")
        distributed.exit_process(exit_codes.INTERRUPTED)
    print(table(results))
    print(f"wrote {config.folder / 'index.html'}")


def _check(config: Config) -> None:
    """Raises ConfigError if a flag is missing."""
    example = "as in --tasks=mmlu --data=FOLDER; see --help."
    if not config.tasks:
        raise ConfigError("no tasks are set.", "--tasks", f"set some, {example}")
    if not config.data and any(task.files for task in select(config.tasks)):
        raise ConfigError("no data are set.", "--tasks, --data", f"set both, {example}")
    if not (config.checkpoint or config.server or config.prompts_only or config.preview):
        raise ConfigError(
            "no model is set.", "--checkpoint, --server", "set one of them; see --help."
        )


def _index(config: Config) -> Decontamination | None:
    """Returns the index of test sets that the training text was filtered with."""
    path = config.decontamination
    if path is None and config.checkpoint:
        path = task_items.index_of(config.checkpoint)
    return None if path is None else Decontamination(str(path), task_items.guarded(path))


def _training_text(config: Config) -> TrainingText | None:
    """Returns the training text that is searched for the examples, if any is set."""
    if not config.training_text:
        return None
    return TrainingText(config.training_text, task_items.occurring)


def _prompts(config: Config) -> None:
    data = DataFolders(config.data)
    work = questions.read_all(select(config.tasks), data, config.limit)
    for sentence in data.differing():
        flags.log(f"note: {sentence} Scores of another version may differ.")
    if config.preview:
        known = config.tokenizer or config.checkpoint
        tokenizer = find_tokenizer(config.checkpoint, config.tokenizer) if known else None
        color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        for one in work:
            one = one._replace(sampling=config)
            print(preview(one, tokenizer, color=color), end="\n\n", flush=True)
        return
    path = config.folder / "prompts.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(path, (row for one in work for row in questions.prompts(one)))
    print(f"wrote {path}")


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
