"""What a model says: to one prompt, or to a file of them.

python -m experiments.generate --checkpoint=runs/quickstart --prompt="class Queue("
python -m experiments.generate --checkpoint=runs/mine --input=questions.jsonl --output=answers.jsonl

A line of the file is {"prompt": ...} or {"messages": [...]}, with settings of its own if it likes
({"prompt": "Once", "temperature": 0, "id": 7}); qwen_jax/inference/jsonl.py lists them. Bad lines
are named before anything runs. The answers are in the order of the input. A run that was killed
goes on where it was when the same command is given again, and ends with the same file.
"""

import dataclasses
import sys

import tqdm

from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.errors import ConfigError
from qwen_jax.inference import chat, jsonl
from qwen_jax.inference.engine import Engine
from qwen_jax.inference.request import Request
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


def main(config: Config) -> None:
    """Loads, generates, prints or writes."""
    if (config.input is None) != (config.output is None) or config.input and config.prompt:
        raise ConfigError(
            "neither one prompt nor a file of them.",
            "--prompt, --input, --output",
            "give --prompt alone, or --input and --output.",
        )
    mesh = mesh_of(config.tensor)
    model, params, tokenizer = load_model(config.checkpoint, config.tokenizer, mesh=mesh)
    context, sentence = chat.context(model, config.context)
    if config.input is None:
        engine = start_engine(
            params,
            model,
            tokenizer,
            rows=config.settings.n,
            context=context,
            cache_dtype=config.cache_dtype,
            mesh=mesh,
        )
        for text in answers(engine, tokenizer, config):
            print(config.prompt + text, end="\n\n")
        return
    source = jsonl.Source(config.input, tokenizer, config.settings, context=context)
    count, digest = source.check()
    output = jsonl.Output(
        config.output,
        {
            "input_sha256": digest,
            "model": jsonl.fingerprint(model, params),
            "tokenizer": tokenizer.fingerprint,
            "context": context,
            "cache_dtype": config.cache_dtype,
            **jsonl.identity(config.settings),
        },
    )
    try:
        if not output.complete:
            print(
                f"{count} lines, {len(output.done)} of them done; context: {sentence}", flush=True
            )
            engine = start_engine(
                params,
                model,
                tokenizer,
                rows=config.rows,
                context=context,
                cache_dtype=config.cache_dtype,
                mesh=mesh,
            )
            work(engine, source, output, config.rows, count)
    except KeyboardInterrupt:
        print("stopped; give the same command again to go on", file=sys.stderr, flush=True)
        sys.exit(130)
    finally:
        output.close()
    print(f"{config.output}: {count} lines", flush=True)


def answers(engine: Engine, tokenizer, config: Config) -> list[str]:
    """The texts after --prompt."""
    sampling = dataclasses.replace(
        config.settings, stop_token_ids=(tokenizer.end_of_text, *config.settings.stop_token_ids)
    )
    request = Request(tuple(tokenizer.encode(config.prompt)) or (tokenizer.end_of_text,), sampling)
    texts = {request_id: "" for request_id in engine.submit(request)}
    while engine.busy:
        for event in engine.step():
            texts[event.request_id] += event.text
    return list(texts.values())


def work(engine: Engine, source: jsonl.Source, output: jsonl.Output, rows: int, count: int) -> None:
    """The file, with a line of progress: lines, time left, tokens per second."""
    # Where nobody looks, a line in a while instead of one that moves.
    interval = 0.5 if sys.stderr.isatty() else 30
    with tqdm.tqdm(total=count, initial=len(output.done), unit="line", mininterval=interval) as bar:
        tokens = 0

        def progress(new: int) -> None:
            nonlocal tokens
            tokens += new
            seconds = max(bar.format_dict["elapsed"], 1e-6)
            bar.set_postfix_str(f"{tokens / seconds:.1f} tokens/s", refresh=False)
            bar.update()

        jsonl.run(engine, source, output, rows=rows, on_line=progress)


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
