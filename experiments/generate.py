"""Generates completions for one prompt or for a JSONL file of prompts.

python -m experiments.generate --checkpoint=runs/quickstart --prompt="class Queue("
python -m experiments.generate --checkpoint=runs/mine --input=prompts.jsonl --output=out.jsonl

Each input line is {"prompt": ...} or {"messages": [...]}, which the model's chat template renders,
with "tools" and "chat_template_kwargs" if the line has them. A line may override sampling settings
({"prompt": "Once", "temperature": 0, "id": 7}); --help lists them under --settings. Other keys,
such as a reference answer, are copied to the output. Invalid lines are reported before generation
starts. Outputs are in input order. To resume a killed run, run the same command again: the output
is the same, byte for byte. An output file that was edited in between is refused.
"""

import dataclasses
import functools
import sys

from qwen_jax import exit_codes
from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.errors import ConfigError
from qwen_jax.inference import chat, jsonl
from qwen_jax.inference.complete import continuations
from qwen_jax.inference.warmup import mesh_of, start_engine
from qwen_jax.pretrained.load import load_model
from qwen_jax.ranges import ONE_OR_MORE, Checked
from qwen_jax.utils.append_only import PATHS
from qwen_jax.utils.best_effort import keep_going
from qwen_jax.utils.output import print_error


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """The model, the prompts and the sampling settings."""

    checkpoint: str = option(
        "", "model to load: a run folder, or a released dense Qwen to Qwen3", kind="stored"
    )
    tokenizer: str | None = option(None, "folder or file; None: the one in the model's folder")
    allow_nonfinite: bool = option(False, "accept weights with NaN or infinity")
    prompt: str = option("", "text to continue; empty: start a new document", kind="text")
    input: str | None = option(None, "JSONL file of prompts, instead of --prompt")
    output: str | None = option(None, "JSONL file for the completions of --input")
    settings: jsonl.Settings = jsonl.Settings()
    max_num_seqs: int = option(
        8,
        "maximum completions decoded at once; does not change the output",
        ONE_OR_MORE,
        alias="rows",
    )
    context: int | None = option(
        None,
        "maximum tokens of a prompt and its completion; None: the longest supported",
        ONE_OR_MORE,
    )
    cache_dtype: str | None = option(None, "KV cache dtype; None: the compute dtype")
    tensor: int = option(
        1, "number of devices that weights and KV cache are sharded over", ONE_OR_MORE
    )

    def __post_init__(self):
        super().__post_init__()
        if (self.input is None) != (self.output is None) or self.input and self.prompt:
            raise ConfigError(
                "--prompt and --input are exclusive, and --input requires --output.",
                "--prompt, --input, --output",
                "set either --prompt, or both --input and --output.",
            )


def main(config: Config) -> None:
    """Loads the model, then prints or writes its completions."""
    mesh = mesh_of(config.tensor)
    model, params, tokenizer = load_model(
        config.checkpoint, config.tokenizer, mesh=mesh, allow_nonfinite=config.allow_nonfinite
    )
    sampling, said = config.settings.of_model(tokenizer)
    context, sentence = chat.context(model, config.context)
    settings = {"context": context, "cache_dtype": config.cache_dtype}
    start = functools.partial(start_engine, params, model, tokenizer, mesh=mesh, **settings)
    if config.input is None or config.output is None:  # no file of prompts
        engine = start(max_num_seqs=sampling.n)
        for text in continuations(engine, tokenizer, config.prompt, sampling):
            print(config.prompt + text, end="\n\n")
        return
    source = jsonl.Source(config.input, tokenizer, sampling, context=context)
    made_from = {"model": jsonl.fingerprint(model, params), "cache_dtype": config.cache_dtype}
    made_from[PATHS] = {
        "model": config.checkpoint,
        "tokenizer": config.tokenizer or config.checkpoint,
        "input_sha256": config.input,
    }
    start = functools.partial(start, max_num_seqs=config.max_num_seqs)
    log = flags.log
    try:
        with keep_going():  # the file is the result
            log(f"context: {sentence}")
            if said:
                log(f"sampling: {said}")
            jsonl.complete_file(
                source, config.output, made_from, start, max_num_seqs=config.max_num_seqs, log=log
            )
    except KeyboardInterrupt:
        print_error("stopped; run the same command again to resume")
        sys.exit(exit_codes.INTERRUPTED)


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
