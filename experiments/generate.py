"""What a model says: to one prompt, or to a file of them.

python -m experiments.generate --checkpoint=runs/quickstart --prompt="class Queue("
python -m experiments.generate --checkpoint=runs/mine --input=questions.jsonl --output=answers.jsonl

A line of the file is {"prompt": ...} or {"messages": [...]}, with settings of its own if it likes
({"prompt": "Once", "temperature": 0, "id": 7}); --help has their names, after --settings. Bad lines
are named before anything runs. The answers are in the order of the input. A run that was killed
goes on where it was when the same command is given again, and ends with the same file.
"""

import dataclasses
import functools
import sys

from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.errors import ConfigError
from qwen_jax.inference import chat, jsonl
from qwen_jax.inference.complete import continuations
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.inference.warmup import mesh_of, start_engine
from qwen_jax.pretrained.load import load_model


@dataclasses.dataclass(frozen=True)
class Config:
    """What to answer, and how."""

    checkpoint: str = option("", "a run folder, or a folder in the Qwen or Qwen2 layout")
    tokenizer: str | None = option(None, "a .tiktoken file; None: the one in the model's folder")
    prompt: str = option("", "empty: the beginning of a document")
    input: str | None = option(None, "a JSONL file, in place of --prompt")
    output: str | None = option(None, "the JSONL file to write")
    settings: SamplingParams = jsonl.DEFAULTS
    rows: int = option(8, "answers computed at once; changes none of them")
    context: int | None = option(
        None, "tokens of a prompt and its answer; None: as far as it makes sense"
    )
    cache_dtype: str | None = option(None, "of keys and values; None: the compute dtype")
    tensor: int = option(1, "devices that the weights and the cache are cut over")

    def __post_init__(self):
        if (self.input is None) != (self.output is None) or self.input and self.prompt:
            raise ConfigError(
                "neither one prompt nor a file of them.",
                "--prompt, --input, --output",
                "give --prompt alone, or --input and --output.",
            )


def main(config: Config) -> None:
    """Loads, generates, prints or writes."""
    mesh = mesh_of(config.tensor)
    model, params, tokenizer = load_model(config.checkpoint, config.tokenizer, mesh=mesh)
    context, sentence = chat.context(model, config.context)
    settings = {"context": context, "cache_dtype": config.cache_dtype}
    start = functools.partial(start_engine, params, model, tokenizer, mesh=mesh, **settings)
    if config.input is None or config.output is None:  # both, or neither
        engine = start(max_num_seqs=config.settings.n)
        for text in continuations(engine, tokenizer, config.prompt, config.settings):
            print(config.prompt + text, end="\n\n")
        return
    print(f"context: {sentence}", flush=True)
    source = jsonl.Source(config.input, tokenizer, config.settings, context=context)
    made_from = {"model": jsonl.fingerprint(model, params), "cache_dtype": config.cache_dtype}
    start = functools.partial(start, max_num_seqs=config.rows)
    log = functools.partial(print, flush=True)
    try:
        jsonl.complete_file(
            source, config.output, made_from, start, max_num_seqs=config.rows, log=log
        )
    except KeyboardInterrupt:
        print("stopped; give the same command again to go on", file=sys.stderr, flush=True)
        sys.exit(130)


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
