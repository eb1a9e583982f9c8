"""Self-instruct: generated instructions and tool use, filtered by rules and people. Report: 3.4.

    python -m experiments.self_instruct --checkpoint=runs/chat --seeds=seed_tasks.jsonl \\
        --output=runs/self_instruct
    # read review.md, set "keep" to true or false in review.jsonl, and run the same command again:
    python -m experiments.sft \\
        --data.conversations=chat.jsonl,runs/self_instruct/conversations.jsonl ...

In each round the model is prompted with seeds and some of its earlier samples, and generates new
samples: instructions with responses, and tool use with Thought, Action, Action Input, Observation
and Final Answer. Rules reject texts that are too similar to others, malformed, too short, too long,
or about images and files; rejected.jsonl lists each with its reason and location. People review the
rest.

--rounds=N closes the loop N times: generate, filter, review, fine-tune, evaluate, and again with
the fine-tuned model and the kept samples as seeds. It stops until people have reviewed a round,
unless --keep_unreviewed is set; the same command goes on.
    python -m experiments.self_instruct --checkpoint=runs/chat --settings.question_lists=32 \\
        --rounds=3 --sft.init_from=runs/base --sft.data.conversations=chat.jsonl \\
        --evaluate.tasks=tool_use,tool_use_no_call --evaluate.data=data/agents ...

By hand, fine-tune on the kept samples and start another run with conversations.jsonl added to
--seeds and react.jsonl as --react_seeds. The report collected about 2,000 samples.

responses.jsonl caches every response of the model. To resume a killed run, run the same command
again; it produces the same samples.
"""

import dataclasses
import hashlib
import pathlib
import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from experiments import evaluate as evaluation
from experiments import sft as fine_tuning
from qwen_jax import exit_codes
from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.data.chat.conversations import Counts
from qwen_jax.data.chat.react import read_tools
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.inference import chat
from qwen_jax.inference.complete import Completer
from qwen_jax.inference.jsonl import fingerprint
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.inference.warmup import start_engine
from qwen_jax.pretrained.load import load_model
from qwen_jax.ranges import ONE_OR_MORE, ZERO_OR_MORE, Checked, limits_of
from qwen_jax.synthetic import react_seeds, review
from qwen_jax.synthetic.response_cache import Model, ResponseCache
from qwen_jax.synthetic.sample_rules import Rules
from qwen_jax.synthetic.self_instruct import (
    SelfInstruct,
    Settings,
    read_react_seeds,
    read_seeds,
)
from qwen_jax.train.run_folder import flatten
from qwen_jax.utils.append_only import PATHS, AppendOnly
from qwen_jax.utils.best_effort import keep_going
from qwen_jax.utils.files import read_json, write_json, write_text
from qwen_jax.utils.format import format_seconds
from qwen_jax.utils.jsonl import read_rows, write_rows


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """Settings of a self-instruct run."""

    checkpoint: str = option(
        "", "model to query: a run folder or a released model that was trained on ChatML"
    )
    tokenizer: str | None = option(None, "folder or file; None: the one in the checkpoint's folder")
    seeds: tuple[str, ...] = option(
        (), "files of seed tasks (self-instruct or Alpaca format) or of conversations"
    )
    tools: str | None = option(
        None, ".json or .jsonl file of tools; None: those of qwen_jax/synthetic/react_seeds.py"
    )
    react_seeds: tuple[str, ...] = option(
        (), "files of worked examples of the tools; empty: those of react_seeds.py"
    )
    settings: Settings = Settings()
    rules: Rules = Rules()
    temperature: float = option(
        0.7, "sampling temperature (self-instruct)", limits_of(SamplingParams, "temperature")
    )
    top_p: float = option(
        0.9, "nucleus sampling: probability mass to sample from", limits_of(SamplingParams, "top_p")
    )
    max_new_tokens: int = option(1024, "maximum tokens per response", ONE_OR_MORE)
    rows: int = option(
        16, "maximum responses decoded at once; does not change the responses", ONE_OR_MORE
    )
    context: int | None = option(
        None,
        "maximum tokens of a conversation and its response; None: the longest supported",
        ONE_OR_MORE,
    )
    keep_unreviewed: bool = option(
        False, "also keep samples that have not been reviewed", alias="unjudged"
    )
    output: str = option("runs/self_instruct", "output folder; a killed run resumes in it")
    rounds: int = option(
        0, "times to generate, review, fine-tune and evaluate; 0: only generate", ZERO_OR_MORE
    )
    # For --rounds. Of sft, init_from and data.conversations are what each round begins with.
    sft: fine_tuning.Config = fine_tuning.RECIPE
    evaluate: evaluation.Config = evaluation.Config()

    @property
    def sampling(self) -> SamplingParams:
        """The sampling parameters from the flags, validated."""
        return SamplingParams.named(
            "--{}",
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
        )


RECIPE = Config()
SMOKE = dataclasses.replace(
    RECIPE,
    max_new_tokens=32,
    output="runs/self_instruct_smoke",
    settings=Settings(
        samples=4, rounds=2, instruction_lists=2, question_lists=2, seeds_shown=1, generated_shown=1
    ),
)


@keep_going()
def main(config: Config) -> None:
    """Generates and filters samples, then writes the files for review; with rounds, goes on."""
    if not config.checkpoint:
        raise ConfigError("no model is set.", "--checkpoint", "pass the folder of a chat model.")
    if config.settings.instruction_lists and not config.seeds:
        raise ConfigError(
            "no seed tasks are set.",
            "--seeds",
            "pass a file, or generate only tool use with --settings.instruction_lists=0.",
        )
    check_rounds(config)
    if not config.rounds:
        generate_and_write(config)
        return
    records: list[dict] = []
    for number in range(1, config.rounds + 1):
        finished = run_round(config, number, records)
        write_json(pathlib.Path(config.output) / "rounds.json", records)
        if not finished:
            return


def check_rounds(config: Config) -> None:
    """Raises ConfigError if a flag of a round has no effect."""
    before = flatten(Config())
    changed = [
        f"--{name}"
        for name, value in flatten(config).items()
        if name.startswith(("sft.", "evaluate.")) and value != before[name]
    ]
    if changed and not config.rounds:
        raise ConfigError(
            "nothing is trained or evaluated without rounds.",
            ", ".join(changed),
            "set --rounds, or leave these flags out.",
        )
    own = {"--sft.run_dir", "--evaluate.checkpoint", "--evaluate.output"} & set(changed)
    if own:
        raise ConfigError(
            "each round has its own.", ", ".join(sorted(own)), "leave it out; --output has all."
        )


def generate_and_write(config: Config) -> SelfInstruct:
    """Generates samples and writes them for review; exits if Ctrl-C interrupted it."""
    generator, stopped = generate(config, *read(config))
    write(config, generator)
    if stopped:
        print("stopped; run the same command again to resume", file=sys.stderr, flush=True)
        sys.exit(exit_codes.INTERRUPTED)
    return generator


def run_round(config: Config, number: int, records: list[dict]) -> bool:
    """Generates, trains and evaluates; appends the round's record.

    Returns:
      Whether it is finished; if not, its samples have to be reviewed.
    """
    folder = pathlib.Path(config.output) / f"round_{number}"
    before = [folder.with_name(f"round_{each}") for each in range(1, number)]
    own = dataclasses.replace(
        config,
        rounds=0,
        sft=fine_tuning.RECIPE,
        evaluate=evaluation.Config(),
        output=str(folder),
        checkpoint=str(before[-1] / "sft") if before else config.checkpoint,
        tokenizer=None if before else config.tokenizer,
        react_seeds=_react_seeds(config, before),
        settings=dataclasses.replace(config.settings, seed=config.settings.seed + number - 1),
    )
    generator = generate_and_write(own)
    rows = [row for _, row in read_rows(folder / "review.jsonl")]
    waiting = sum(row["keep"] is None for row in rows)
    if waiting and not config.keep_unreviewed:
        print(
            f'{waiting} samples of round {number} are not reviewed: set "keep" in '
            f"{folder}/review.jsonl, and run the same command again"
        )
        return False
    kept = [str(each / "conversations.jsonl") for each in [*before, folder]]
    kept = [path for path in kept if pathlib.Path(path).stat().st_size]
    proposed = len(generator.samples) + len(generator.rejected)
    record: dict = {"round": number, "proposed": proposed, "passed": len(generator.samples)}
    record["kept"] = sum(row["keep"] is not False for row in rows)
    if not kept and not config.sft.data.conversations:
        raise DataError(
            f"round {number} kept no sample.", str(folder / "rejected.jsonl"), "use a better model."
        )
    data = dataclasses.replace(
        config.sft.data, conversations=(*config.sft.data.conversations, *kept)
    )
    run_dir = str(folder / "sft")
    start = config.sft.init_from or config.checkpoint
    fine_tuning.main(dataclasses.replace(config.sft, init_from=start, data=data, run_dir=run_dir))
    if config.evaluate.tasks:
        found = dataclasses.replace(
            config.evaluate, checkpoint=run_dir, output=str(folder / "evaluate")
        )
        evaluation.main(found)
        tasks = read_json(folder / "evaluate" / "results.json")["tasks"]
        record["scores"] = {key: one["score"] for key, one in tasks.items()}
    records.append(record)
    print(f"round {number}: {record}", flush=True)
    return True


def _react_seeds(config: Config, before: Sequence[pathlib.Path]) -> tuple[str, ...]:
    """Returns files of worked examples: those of the flags, and what earlier rounds kept."""
    files = [str(each / "react.jsonl") for each in before]
    files = [path for path in files if pathlib.Path(path).stat().st_size]
    if files and not config.react_seeds:  # those of react_seeds.py stay
        path = pathlib.Path(config.output) / "worked_examples.jsonl"
        write_rows(
            path,
            (
                {"question": one.question, "tools": list(one.tools), "answer": one.answer}
                for one in react_seeds.EXAMPLES
            ),
        )
        files.insert(0, str(path))
    return (*config.react_seeds, *files)


def read(config: Config) -> tuple[list, Sequence, Sequence]:
    """Reads the seed tasks, the tools and the worked examples of tool use."""
    counts = Counts()
    seeds = [seed for path in config.seeds for seed in read_seeds(path, counts)]
    tools = read_tools(config.tools) if config.tools else react_seeds.TOOLS
    examples = [seed for path in config.react_seeds for seed in read_react_seeds(path)]
    examples = examples or list(react_seeds.EXAMPLES)
    print(
        f"seed tasks: {counts}; {len(tools)} tools with {len(examples)} worked examples", flush=True
    )
    return seeds, tools, examples


def generate(
    config: Config, seeds: list, tools: Sequence, examples: Sequence
) -> tuple[SelfInstruct, bool]:
    """Runs the rounds; returns the samples and whether Ctrl-C interrupted the run."""
    made_from = {
        "seeds": hashlib.sha256(repr((seeds, tools, examples)).encode()).hexdigest()[:16],
        # A run may be extended with more samples or rounds.
        "settings": dataclasses.asdict(config.settings) | {"samples": None, "rounds": None},
        "rules": dataclasses.asdict(config.rules),
        **{
            name: getattr(config, name)
            for name in ("temperature", "top_p", "max_new_tokens", "context")
        },
    }
    former = pathlib.Path(config.output) / "asked.jsonl"  # former name of the file
    path = former if former.exists() else former.with_name("responses.jsonl")
    with AppendOnly(path, made_from) as file, ProgressBar() as bar:
        cache = ResponseCache(
            file, lambda: open_model(config, file), seed=config.settings.seed, progress=bar.show
        )
        generator = SelfInstruct(config.settings, config.rules, cache, seeds, examples, tools)
        try:
            run_rounds(generator, cache, config)
        except KeyboardInterrupt:
            return generator, True
    return generator, False


def write(config: Config, generator: SelfInstruct) -> None:
    """Writes the rejected texts, the files for review, and the kept samples."""
    folder = pathlib.Path(config.output)
    write_rows(folder / "rejected.jsonl", generator.rejected)
    print(
        f"{folder}/rejected.jsonl: {len(generator.rejected):,} rejected texts; {generator.counts}"
    )
    rows = review.update(folder / "review.jsonl", generator.samples)
    write_text(folder / "review.md", review.render(rows))
    kept = review.collect(
        rows,
        folder / "conversations.jsonl",
        folder / "react.jsonl",
        keep_unreviewed=config.keep_unreviewed,
    )
    print(
        f"{folder}/review.jsonl, review.md: {len(rows):,} samples\n"
        f"{folder}/conversations.jsonl: {kept}",
        flush=True,
    )


def run_rounds(generator: SelfInstruct, cache: ResponseCache, config: Config) -> None:
    """Runs the rounds; prints samples, rejections by reason and ETA after each round."""
    begin, timed, target = time.monotonic(), 0, config.settings.samples
    before, had = 0, None  # samples so far; samples before the first round that queried the model
    for number in generator.rounds():
        if cache.new:
            had = before if had is None else had
            timed += 1
            seconds, new = time.monotonic() - begin, len(generator.samples) - had
            left = (config.settings.rounds - number) * seconds / timed
            if new:
                left = min(left, (target - len(generator.samples)) * seconds / new)
            left = 0.0 if len(generator.samples) >= target else left
            print(
                f"round {number}/{config.settings.rounds}: {len(generator.samples):,} of "
                f"{target:,} samples, ETA {format_seconds(left)}; {generator.counts}",
                flush=True,
            )
        before = len(generator.samples)


def open_model(config: Config, file: AppendOnly) -> Model:
    """Starts the engine.

    Raises:
      ConfigError: the cache is from another model, or the context is too short.
    """
    sampling = config.sampling
    model, params, tokenizer = load_model(config.checkpoint, config.tokenizer)
    names = {"model": config.checkpoint, "tokenizer": config.tokenizer or config.checkpoint}
    file.check_provenance(
        {
            "model": fingerprint(model, params),
            "tokenizer": tokenizer.fingerprint,
            PATHS: names,
        }
    )
    context, sentence = chat.context(model, config.context)
    print(f"context: {sentence}", flush=True)
    if config.max_new_tokens >= context:
        raise ConfigError(
            f"{config.max_new_tokens} new tokens leave no room for a prompt in a "
            f"context of {context}.",
            "--max_new_tokens",
            f"use fewer than {context}.",
        )
    engine = start_engine(
        params, model, tokenizer, max_num_seqs=config.rows, context=context, cache_dtype=None
    )
    return Completer(engine, tokenizer, sampling).stream


class ProgressBar:
    """A progress bar with ETA for the current stage."""

    def __init__(self):
        self._bar: tqdm | None = None

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, stage: str, done: int, total: int) -> None:
        if self._bar is None or self._bar.desc != f"{stage}: ":
            if self._bar is not None:
                self._bar.close()
            # Without a terminal, print a line every 30 seconds instead of a moving bar.
            self._bar = tqdm(
                total=total,
                initial=done - 1,
                desc=stage,
                leave=False,
                mininterval=0.5 if sys.stderr.isatty() else 30,
            )
        self._bar.update(done - self._bar.n)
        if done == total:
            self._bar.close()
            self._bar = None


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": RECIPE, "smoke": SMOKE})
