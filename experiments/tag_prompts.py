"""Tags prompts, plots the tags, and selects a balanced subset of the prompts. Report: 3.2.1.

    python -m experiments.tag_prompts --prompts=a.jsonl,b.json --output=runs/tags
    ... --choose=2000                # also select prompts, complex and diverse ones first
    ... --choose=2000 --by=weight    # sample; rare tags are as likely as common ones
    ... --recipe=model --checkpoint=runs/chat --alpha=20     # a chat model assigns tags
    ... --recipe=model --checkpoint=runs/chat --num_tags=6600   # so many tags

Use the selection as prompts for rollouts, or for responses that people compare:
    python -m experiments.ppo --data.prompts=runs/tags/chosen.jsonl ...
    python -m experiments.generate --input=runs/tags/chosen.jsonl --settings.n=2 \\
        --output=answers.jsonl ...

Prompts are conversations (the last response is dropped) or objects with a "prompt"; duplicates are
removed. OUTPUT/tags.jsonl has one line {"prompt": ..., "tags": [...]} per prompt, appended during
tagging. To resume a killed run, run the same command again. --tags=FILE reads existing tags.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Literal

from tqdm import tqdm

from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.data.chat.conversations import Counts, Turn
from qwen_jax.data.chat.prompts import choose_diverse, choose_weighted, read_prompt_turns, text_of
from qwen_jax.errors import ConfigError
from qwen_jax.inference import chat
from qwen_jax.inference.complete import Completer
from qwen_jax.inference.jsonl import fingerprint
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.inference.warmup import start_engine
from qwen_jax.pretrained.load import load_model
from qwen_jax.ranges import FRACTION, ONE_OR_MORE, SEED, ZERO_OR_MORE, Checked
from qwen_jax.report.plots import draw_tags
from qwen_jax.synthetic.model_tagger import ModelTagger
from qwen_jax.synthetic.tag_rules import tag_by_rules
from qwen_jax.synthetic.tags import Tagger, Tags, alpha_for, merge_rare, read_tags, tag_all
from qwen_jax.utils.append_only import PATHS, AppendOnly
from qwen_jax.utils.best_effort import keep_going
from qwen_jax.utils.files import write_bytes
from qwen_jax.utils.jsonl import write_rows


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """Settings of a tagging run."""

    prompts: tuple[str, ...] = option((), ".json and .jsonl files of prompts")
    output: str = option("runs/tags", "folder for tags.jsonl, tags.png and chosen.jsonl")
    tagger: Literal["rules", "model"] = option(
        "rules", "rules: match patterns; model: query --checkpoint"
    )
    tags: str | None = option(
        None, "existing tag file to read instead of tagging; None: tag --prompts"
    )
    alpha: int = option(1, "minimum prompts per tag; rarer tags are merged or dropped", ONE_OR_MORE)
    num_tags: int | None = option(
        None,
        "number of tags to aim at (report: about 6,600); replaces --alpha: rarer tags are merged "
        "or dropped until so many are left",
        ONE_OR_MORE,
    )
    choose: int | None = option(
        None,
        "number of prompts to select for chosen.jsonl; None: no selection",
        ONE_OR_MORE,
    )
    by: Literal["order", "weight"] = option(
        "order", "order: InsTag's order, best first; weight: weighted sampling"
    )
    balance: float = option(
        1.0,
        "tag balance of --by=weight; 0: tags at their frequency, 1: all equally likely",
        FRACTION,
    )
    complexity: float = option(
        1.0,
        "weight of the number of tags of a prompt in --by=weight; 0: ignored",
        ZERO_OR_MORE,
    )
    seed: int = option(0, "random seed of --by=weight", SEED)
    checkpoint: str = option(
        "", "model of --tagger=model: a run folder or a released model trained on ChatML"
    )
    tokenizer: str | None = option(None, "folder or file; None: the one in the checkpoint's folder")
    rows: int = option(
        16, "maximum prompts that the model tags at once; does not change the tags", ONE_OR_MORE
    )
    context: int | None = option(
        None,
        "maximum tokens of a prompt and its tags; None: the longest supported",
        ONE_OR_MORE,
    )
    max_new_tokens: int = option(128, "maximum tokens per response of the model", ONE_OR_MORE)


RECIPE = Config()
RECIPES = {
    "rules": RECIPE,
    "model": dataclasses.replace(RECIPE, tagger="model", alpha=20),
}  # InsTag's threshold
SMOKE = dataclasses.replace(RECIPE, output="runs/tags_smoke", choose=2)


@keep_going()
def main(config: Config) -> None:
    """Tags the prompts, plots the tags and writes a selection."""
    if not config.prompts:
        raise ConfigError("no prompts are set.", "--prompts", "pass .json or .jsonl files.")
    if config.tagger == "model" and not (config.tags or config.checkpoint):
        raise ConfigError("no model is set.", "--checkpoint", "pass the folder of a chat model.")
    prompts, counts = read(config.prompts)
    print(f"{len(prompts):,} prompts: {counts}", flush=True)
    if config.choose is not None and not 1 <= config.choose <= len(prompts):
        raise ConfigError(
            f"cannot select {config.choose} of {len(prompts)} prompts.",
            "--choose",
            f"use a number from 1 to {len(prompts)}.",
        )
    tags = tag(config, list(prompts))
    chosen = choose(config, tags) if config.choose else []
    folder = pathlib.Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "tags.png", draw_tags(tags, chosen))
    print(f"{folder}/tags.png")
    if chosen:
        write([prompts[text] for text in chosen], folder / "chosen.jsonl")
        print(
            f"{folder}/chosen.jsonl: {len(chosen):,} prompts; "
            f"{len({tag for text in chosen for tag in tags[text]}):,} distinct tags, "
            f"{sum(len(tags[text]) for text in chosen) / len(chosen):.2f} per prompt"
        )


def read(paths: tuple[str, ...]) -> tuple[dict[str, list[Turn]], Counts]:
    """Reads the prompts without duplicates, keyed by their text."""
    prompts, counts = {}, Counts()
    for where, turns in read_prompt_turns(paths, counts):
        if prompts.setdefault(text_of(turns), turns) is not turns:
            counts.kept -= 1
            counts.skip("duplicate prompt", where)
    return prompts, counts


def tag(config: Config, prompts: list[str]) -> Tags:
    """Creates or reads the tags of each prompt, and merges rare tags."""
    file = config.tags or pathlib.Path(config.output) / "tags.jsonl"
    if config.tags is None:
        create_tags(config, prompts, pathlib.Path(config.output) / "tags.jsonl")
    counts = Counts()
    tags = read_tags(file, prompts, counts)
    alpha = config.alpha
    if config.num_tags is not None:
        alpha = alpha_for(tags, config.num_tags)
        print(f"--num_tags={config.num_tags}: --alpha={alpha} instead of {config.alpha}")
    merged = merge_rare(tags, alpha=alpha)
    found = {tag for given in merged.tags.values() for tag in given}
    print(
        f"{file}: {counts}; {len(found):,} tags, "
        f"{sum(map(len, merged.tags.values())) / len(tags):.2f} per prompt; "
        f"{len(merged.into):,} rare or equivalent tags merged, {len(merged.dropped):,} dropped"
    )
    return merged.tags


def create_tags(config: Config, prompts: list[str], path: pathlib.Path) -> None:
    """Tags the prompts that the file does not contain yet; shows a progress bar."""
    made_from = {"tagger": config.tagger}
    if config.tagger == "model":
        made_from |= {"max_new_tokens": config.max_new_tokens, "context": config.context}
    with AppendOnly(path, made_from) as file, tqdm(total=len(prompts), unit=" prompts") as bar:
        missing = len({row.get("prompt") for row in file.rows} & set(prompts)) < len(prompts)
        tagger, report = tag_by_rules, None
        if config.tagger == "model" and missing:
            tagger, report = open_tagger(config, file.check_provenance)
        # Batches are small, to write the file often, but large enough to fill the engine.
        batch = 1000 if report is None else 8 * config.rows
        tag_all(tagger, prompts, file, batch=batch, progress=bar.update)
    if report is not None:
        print(f"responses: {report}")


def open_tagger(config: Config, check: Callable[[dict], None]) -> tuple[Tagger, Counts]:
    """Starts the engine; returns a tagger and its counts of valid and invalid responses."""
    sampling = SamplingParams.named("--{}", max_new_tokens=config.max_new_tokens)
    model, params, tokenizer = load_model(config.checkpoint, config.tokenizer)
    names = {"model": config.checkpoint, "tokenizer": config.tokenizer or config.checkpoint}
    check(
        {
            "model": fingerprint(model, params),
            "tokenizer": tokenizer.fingerprint,
            PATHS: names,
        }
    )
    context, sentence = chat.context(model, config.context)
    print(f"context: {sentence}", flush=True)
    engine = start_engine(
        params, model, tokenizer, max_num_seqs=config.rows, context=context, cache_dtype=None
    )
    tagger = ModelTagger(Completer(engine, tokenizer, sampling).texts)
    return tagger, tagger.counts


def choose(config: Config, tags: Tags) -> list[str]:
    """Returns the selected prompts."""
    choices = {
        "order": choose_diverse,
        "weight": functools.partial(
            choose_weighted, seed=config.seed, balance=config.balance, complexity=config.complexity
        ),
    }
    return choices[config.by](tags, config.choose)


def write(prompts: list[list[Turn]], path: pathlib.Path) -> None:
    """Atomically writes JSONL for experiments.ppo and experiments.generate.

    Rows always have "messages", because experiments.generate treats a "prompt" as plain text.
    """
    write_rows(
        path,
        (
            {"messages": [{"role": role, "content": text} for role, text in turns]}
            for turns in prompts
        ),
    )


if __name__ == "__main__":
    flags.run(main, __doc__, RECIPES | {"smoke": SMOKE})
