"""An OpenAI-compatible server on this computer: /v1/chat/completions, /v1/completions, /v1/models.

python -m experiments.serve --checkpoint=runs/mine --port=8000
curl localhost:8000/v1/completions -H "Content-Type: application/json" \\
    -d '{"model": "mine", "prompt": "Once", "max_tokens": 20}'

Every client of OpenAI's API works with base_url="http://localhost:8000/v1". Calls share one batch:
--rows answers at once, --max_queued more wait, and what comes beyond that is told to come back.
SIGTERM or Ctrl-C lets answers end for --grace seconds; /health and /metrics say how it goes.
"""

import dataclasses
import functools
import pathlib

from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.errors import ConfigError
from qwen_jax.inference import chat
from qwen_jax.inference.warmup import mesh_of, start_engine
from qwen_jax.pretrained.load import load_model
from qwen_jax.serve.address import bind, is_local, read_key


@dataclasses.dataclass(frozen=True)
class Config:
    """One server."""

    checkpoint: str = option("", "a run folder, or a folder in the Qwen or Qwen2 layout")
    tokenizer: str | None = option(None, "a .tiktoken file; None: the one in the model's folder")
    model_name: str | None = option(None, "what clients call it; None: the folder's name")
    host: str = option("127.0.0.1", "0.0.0.0: other computers may ask as well")
    port: int = option(8000, "0: any free one")
    allow_remote: bool = option(False, "must be given for a host that others can reach")
    api_key: str | None = option(None, "a key that calls must bring, or @FILE that holds it")
    rows: int = option(8, "answers at once")
    max_queued: int = option(64, "answers that may wait")
    context: int | None = option(
        None, "tokens of a prompt and its answer; None: as far as it makes sense"
    )
    cache_dtype: str | None = option(None, "of keys and values; None: the compute dtype")
    tensor: int = option(1, "devices that the weights and the cache are cut over")
    memory_gib: float | None = option(
        None, "GiB for the cache; None: what the device has", alias="memory_gb"
    )
    max_body_mb: float = option(4.0, "of one request")
    grace: float = option(10.0, "seconds that answers have to end after a signal")

    def __post_init__(self):
        if not is_local(self.host) and not self.allow_remote:
            raise ConfigError(
                f"the host {self.host!r} can be reached from other computers.",
                "--host",
                "add --allow_remote, and an --api_key, if you mean it.",
            )
        for name in ("rows", "max_body_mb"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"{name}={getattr(self, name)} is not positive.",
                    f"--{name}",
                    "use more than 0.",
                )
        for name in ("max_queued", "grace", "port"):
            if not getattr(self, name) >= 0:
                raise ConfigError(
                    f"{name}={getattr(self, name)} is negative.", f"--{name}", "use 0 or more."
                )


def main(config: Config) -> None:
    """Binds, loads, serves until a signal."""
    from qwen_jax.serve.run import serve  # its libraries are an extra: qwen_jax[serve]

    key, log = read_key(config.api_key), functools.partial(print, flush=True)
    with bind(config.host, config.port) as sock:  # before the model, which takes a while, is loaded
        mesh = mesh_of(config.tensor)
        model, params, tokenizer = load_model(config.checkpoint, config.tokenizer, mesh=mesh)
        context, sentence = chat.context(model, config.context)
        log(f"context: {sentence}; {config.rows} answers at once")
        engine = start_engine(
            params,
            model,
            tokenizer,
            max_num_seqs=config.rows,
            context=context,
            cache_dtype=config.cache_dtype,
            memory_gib=config.memory_gib,
            mesh=mesh,
            prompt_lengths=(16, 32, 64, 128, 256, 512),  # a prompt's chunks
        )
        serve(
            engine,
            tokenizer,
            sock,
            host=config.host,
            model_name=config.model_name or pathlib.Path(config.checkpoint).resolve().name,
            context=context,
            max_num_seqs=config.rows,
            max_queued=config.max_queued,
            max_body_bytes=int(config.max_body_mb * 2**20),
            api_key=key,
            grace=config.grace,
            log=log,
        )
    log("ended")


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
