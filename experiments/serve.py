"""An OpenAI-compatible server on this computer: /v1/chat/completions, /v1/completions, /v1/models.

python -m experiments.serve --checkpoint=runs/mine --port=8000
curl localhost:8000/v1/completions -H "Content-Type: application/json" \\
    -d '{"model": "mine", "prompt": "Once", "max_tokens": 20}'

Every client of OpenAI's API works with base_url="http://localhost:8000/v1". Calls share one batch:
--rows answers at once, --max_queued more wait, and what comes beyond that is told to come back.
SIGTERM or Ctrl-C lets answers end for --grace seconds; /health and /metrics say how it goes.
"""

import dataclasses
import pathlib
import socket

from absl import logging

from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.errors import ConfigError
from qwen_jax.inference import chat
from qwen_jax.inference.warmup import mesh_of, start_engine
from qwen_jax.pretrained.load import load_model


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
    memory_gb: float | None = option(None, "for the cache; None: what the device has")
    max_body_mb: float = option(4.0, "of one request")
    grace: float = option(10.0, "seconds that answers have to end after a signal")


def main(config: Config) -> None:
    """Binds, loads, serves until a signal."""
    from qwen_jax.serve import app, run
    from qwen_jax.serve.calls import Limits
    from qwen_jax.serve.worker import Worker

    check(config)
    local = config.host in app.LOCAL_NAMES
    key = read_key(config.api_key)
    with bind(config.host, config.port) as sock:  # before the model, which takes a while, is loaded
        mesh = mesh_of(config.tensor)
        model, params, tokenizer = load_model(config.checkpoint, config.tokenizer, mesh=mesh)
        context, sentence = chat.context(model, config.context)
        print(f"context: {sentence}; {config.rows} answers at once", flush=True)
        name = config.model_name or pathlib.Path(config.checkpoint).resolve().name
        engine = start_engine(
            params,
            model,
            tokenizer,
            rows=config.rows,
            context=context,
            cache_dtype=config.cache_dtype,
            memory_gb=config.memory_gb,
            mesh=mesh,
            prompt_lengths=(16, 32, 64, 128, 256, 512),
        )  # a prompt's pieces
        worker = Worker(engine, rows=config.rows, max_queued=config.max_queued)
        limits = Limits(model=name, context=context, capacity=worker.capacity)
        settings = app.ServerConfig(
            limits=limits, api_key=key, local=local, max_body_bytes=int(config.max_body_mb * 2**20)
        )
        if not local:
            logging.warning(
                "%s can be reached from other computers%s.",
                config.host,
                "" if key else ", and no --api_key is asked for",
            )
        port = sock.getsockname()[1]
        run.run(
            app.create_app(worker, tokenizer, settings),
            worker,
            sock,
            grace=config.grace,
            ready=lambda: print(f"{name}: http://{_shown(config.host)}:{port}/v1", flush=True),
        )
    print("ended", flush=True)


def check(config: Config) -> None:
    """Raises ConfigError for settings that cannot be right."""
    from qwen_jax.serve.app import LOCAL_NAMES

    if config.host not in LOCAL_NAMES and not config.allow_remote:
        raise ConfigError(
            f"the host {config.host!r} can be reached from other computers.",
            "--host",
            "add --allow_remote, and an --api_key, if you mean it.",
        )
    for name in ("rows", "max_body_mb"):
        if not getattr(config, name) > 0:
            raise ConfigError(
                f"{name}={getattr(config, name)} is not positive.", f"--{name}", "use more than 0."
            )
    for name in ("max_queued", "grace", "port"):
        if not getattr(config, name) >= 0:
            raise ConfigError(
                f"{name}={getattr(config, name)} is negative.", f"--{name}", "use 0 or more."
            )


def read_key(given: str | None) -> str | None:
    """The key itself, from the flag or the file that it names.

    Raises:
      ConfigError: no such file, or an empty key.
    """
    if given is None:
        return None
    key = given
    if given.startswith("@"):
        try:
            key = pathlib.Path(given[1:]).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigError(
                f"the key cannot be read: {error}.", "--api_key", "name a file that holds it."
            ) from error
    if not key:
        raise ConfigError("the key is empty.", "--api_key", "leave the flag out for no key.")
    return key


def bind(host: str, port: int) -> socket.socket:
    """A bound socket.

    Raises:
      ConfigError: the port is taken, or the host is not this computer's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except (OSError, OverflowError) as error:
        sock.close()
        raise ConfigError(
            f"cannot listen on {host}, port {port}: {error}.",
            "--host, --port",
            "choose another port; 0 takes any free one.",
        ) from error
    return sock


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
