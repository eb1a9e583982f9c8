"""Instructions and tool use that a model writes, filtered by rules and people. Report: 3.4.

    python -m experiments.self_instruct --checkpoint=runs/chat --seeds=seed_tasks.jsonl \\
        --output=runs/self_instruct
    # read review.md, set "keep" to true or false in review.jsonl, and give the same command again:
    python -m experiments.sft \\
        --data.conversations=chat.jsonl,runs/self_instruct/conversations.jsonl ...

Round after round the model is shown seeds and some of its own earlier samples, and writes more:
instructions with answers, and questions with Thought, Action, Action Input, Observation and Final
Answer over some of the tools. Rules refuse what is like something before, malformed, too short or
long, or about images and files; rejected.jsonl has every refusal with its reason and place. People
judge the rest. To iterate, tune on what they kept and start anew with it: conversations.jsonl among
the --seeds, react.jsonl as --react_seeds; the report ended with about 2,000 samples.

asked.jsonl remembers every answer of the model: killed, the same command goes on, to the same end.
"""

import dataclasses
import hashlib
import pathlib
import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.data.chat.conversations import Counts
from qwen_jax.data.chat.react import read_tools
from qwen_jax.errors import ConfigError
from qwen_jax.inference import chat
from qwen_jax.inference.complete import Completer
from qwen_jax.inference.jsonl import fingerprint
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.inference.warmup import start_engine
from qwen_jax.pretrained.load import load_model
from qwen_jax.synthetic import react_seeds, review
from qwen_jax.synthetic.response_cache import Model, ResponseCache
from qwen_jax.synthetic.sample_rules import Rules
from qwen_jax.synthetic.self_instruct import (
    SelfInstruct,
    Settings,
    read_react_seeds,
    read_seeds,
)
from qwen_jax.utils.append_only import AppendOnly
from qwen_jax.utils.files import write_text
from qwen_jax.utils.format import format_seconds
from qwen_jax.utils.jsonl import write_rows


@dataclasses.dataclass(frozen=True)
class Config:
    """One run."""

    checkpoint: str = option("", "a run folder or a released one, taught ChatML")
    tokenizer: str | None = option(None, "a .tiktoken file; None: the one in the model's folder")
    seeds: tuple[str, ...] = option((), "tasks: self-instruct's, Alpaca's or conversations")
    tools: str | None = option(
        None, "a .json or .jsonl file; None: those of qwen_jax/synthetic/react_seeds.py"
    )
    react_seeds: tuple[str, ...] = option((), "worked examples of the tools; none: those, too")
    settings: Settings = Settings()
    rules: Rules = Rules()
    temperature: float = option(0.7, "of what the model writes (self-instruct)")
    top_p: float = option(0.9, "probability of the tokens that may be drawn")
    max_new_tokens: int = option(1024, "of an answer or a list")
    rows: int = option(16, "answers computed at once; changes none of them")
    context: int | None = option(
        None, "tokens of what is asked and said; None: as far as it makes sense"
    )
    keep_unreviewed: bool = option(
        False, "also keep samples that nobody has reviewed", alias="unjudged"
    )
    output: str = option("runs/self_instruct", "a folder; an interrupted run goes on in it")

    @property
    def sampling(self) -> SamplingParams:
        """The flags of an answer, checked."""
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


def main(config: Config) -> None:
    """Reads, generates, filters; then what people kept."""
    if not config.checkpoint:
        raise ConfigError("no model.", "--checkpoint", "name a folder; --help shows how.")
    if config.settings.instruction_lists and not config.seeds:
        raise ConfigError(
            "no seed tasks.",
            "--seeds",
            "name a file, or ask for tools alone: --settings.instruction_lists=0.",
        )
    made, stopped = generate(config, *read(config))
    write(config, made)
    if stopped:
        print("stopped; give the same command again to go on", file=sys.stderr, flush=True)
        sys.exit(130)


def read(config: Config) -> tuple[list, Sequence, Sequence]:
    """Seed tasks, tools, and worked examples of the tools."""
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
    """What the model wrote, and whether Ctrl-C ended it early."""
    made_from = {
        "seeds": hashlib.sha256(repr((seeds, tools, examples)).encode()).hexdigest()[:16],
        # More samples or rounds are the same run, longer.
        "settings": dataclasses.asdict(config.settings) | {"samples": None, "rounds": None},
        "rules": dataclasses.asdict(config.rules),
        **{
            name: getattr(config, name)
            for name in ("temperature", "top_p", "max_new_tokens", "context")
        },
    }
    former = pathlib.Path(config.output) / "asked.jsonl"  # of runs before it was renamed
    path = former if former.exists() else former.with_name("responses.jsonl")
    with AppendOnly(path, made_from) as file, ProgressBar() as bar:
        cache = ResponseCache(
            file, lambda: open_model(config, file), seed=config.settings.seed, progress=bar.show
        )
        made = SelfInstruct(config.settings, config.rules, cache, seeds, examples, tools)
        try:
            run_rounds(made, cache, config)
        except KeyboardInterrupt:
            return made, True
    return made, False


def write(config: Config, made: SelfInstruct) -> None:
    """Refusals, what people are to judge, and what they kept."""
    folder = pathlib.Path(config.output)
    write_rows(folder / "rejected.jsonl", made.rejected)
    print(f"{folder}/rejected.jsonl: {len(made.rejected):,} refusals; {made.counts}")
    rows = review.update(folder / "review.jsonl", made.samples)
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


def run_rounds(made: SelfInstruct, cache: ResponseCache, config: Config) -> None:
    """The rounds, with a line after each: samples, rejections by reason, time left."""
    begin, timed, target = time.monotonic(), 0, config.settings.samples
    before, had = 0, None  # samples; those before the first round that asked for anything
    for number in made.rounds():
        if cache.new:
            had = before if had is None else had
            timed += 1
            seconds, new = time.monotonic() - begin, len(made.samples) - had
            left = (config.settings.rounds - number) * seconds / timed
            if new:
                left = min(left, (target - len(made.samples)) * seconds / new)
            left = 0.0 if len(made.samples) >= target else left
            print(
                f"round {number}/{config.settings.rounds}: {len(made.samples):,} of {target:,} "
                f"samples, ETA {format_seconds(left)}; {made.counts}",
                flush=True,
            )
        before = len(made.samples)


def open_model(config: Config, file: AppendOnly) -> Model:
    """The engine, if it is the one that the record was begun with."""
    sampling = config.sampling
    model, params, tokenizer = load_model(config.checkpoint, config.tokenizer)
    file.check_made_from({"model": fingerprint(model, params), "tokenizer": tokenizer.fingerprint})
    context, sentence = chat.context(model, config.context)
    print(f"context: {sentence}", flush=True)
    if config.max_new_tokens >= context:
        raise ConfigError(
            f"{config.max_new_tokens} new tokens leave no room for a question in a "
            f"context of {context}.",
            "--max_new_tokens",
            "ask for fewer.",
        )
    engine = start_engine(
        params, model, tokenizer, rows=config.rows, context=context, cache_dtype=None
    )
    return Completer(engine, tokenizer, sampling).stream


class ProgressBar:
    """A bar for what is asked now, with the time left of it."""

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
            # Where nobody looks, a line in a while instead of one that moves.
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
