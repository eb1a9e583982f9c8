"""Serves a model with the OpenAI API: /v1/chat/completions, /v1/responses, /v1/completions.

python -m experiments.serve --checkpoint=runs/mine --port=8000
curl localhost:8000/v1/completions -H "Content-Type: application/json" \\
    -d '{"model": "mine", "prompt": "Once", "max_tokens": 20}'

Any OpenAI client works with base_url="http://localhost:8000/v1". Requests use continuous batching:
--max_num_seqs completions are decoded at once, --max_queued more wait, and further requests get
status 429. Clients take turns; --limits.* bounds what one of them may hold. After SIGTERM or
Ctrl-C, running requests have --grace seconds to finish. /health and /metrics report the server's
state.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.errors import ConfigError
from qwen_jax.inference import chat
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.inference.warmup import mesh_of, start_engine
from qwen_jax.pretrained.load import load_model
from qwen_jax.ranges import ABOVE_ZERO, ONE_OR_MORE, Checked, Range, shown
from qwen_jax.serve.address import bind, is_local, read_key
from qwen_jax.serve.limits import DEFAULT_CONNECTIONS, ClientLimits
from qwen_jax.tokenizer import generation_config
from qwen_jax.tokenizer.settings import GENERATION
from qwen_jax.utils.best_effort import keep_going


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """Settings of a server: model, address and limits."""

    checkpoint: str = option(
        "", "model to load: a run folder, or a released dense Qwen to Qwen3", kind="stored"
    )
    tokenizer: str | None = option(None, "folder or file; None: the one in the model's folder")
    allow_nonfinite: bool = option(False, "accept weights with NaN or infinity")
    model_name: str | None = option(None, "the model's name in the API; None: the folder's name")
    host: str = option(
        "127.0.0.1", "address to listen on; 0.0.0.0: accept requests from other computers"
    )
    port: int = option(8000, "port to listen on; 0: any free port", Range(0, 65535))
    allow_remote: bool = option(False, "allow a --host that other computers can reach")
    api_key: str | None = option(
        None, "key that requests must carry, or @FILE to read it from; None: no key", kind="text"
    )
    max_num_seqs: int = option(
        8, "maximum completions decoded at once", Range(1, 65_536), alias="rows"
    )
    max_queued: int = option(
        136, "maximum completions waiting; further requests are rejected", Range(0, 1_000_000)
    )
    context: int | None = option(
        None,
        "maximum tokens of a prompt and its completion; None: the longest supported: four times "
        "the training length with dynamic NTK, or what YaRN extends it to (evaluate takes the "
        "training length)",
        ONE_OR_MORE,
    )
    cache_dtype: str | None = option(None, "KV cache dtype; None: the compute dtype")
    tensor: int = option(
        1, "number of devices that weights and KV cache are sharded over", ONE_OR_MORE
    )
    memory_gib: float | None = option(
        None,
        "memory for the KV cache in GiB; None: all that the device has free",
        ABOVE_ZERO,
        alias="memory_gb",
    )
    max_body_mib: float = option(
        4.0, "maximum size of a request's body in MiB", Range(0.001, 1024), alias="max_body_mb"
    )
    limits: ClientLimits = ClientLimits()
    grace: float = option(
        10.0, "seconds that running requests have to finish after a signal", Range(0, 86_400)
    )

    def __post_init__(self):
        super().__post_init__()
        if not is_local(self.host) and not self.allow_remote:
            raise ConfigError(
                f"the host {shown(self.host)} accepts requests from other computers.",
                "--host",
                "to allow this, add --allow_remote and preferably --api_key.",
            )
        self.client_limits()  # raises if limits contradict each other

    def client_limits(self, reserve: Callable[[int], int] = int) -> ClientLimits:
        """Returns the limits with numbers instead of None.

        Args:
          reserve: from a number of connections to the number that the limit on open files allows.
        """
        return self.limits.resolved(
            max_num_seqs=self.max_num_seqs,
            capacity=self.max_num_seqs + self.max_queued,
            max_open_files=reserve(self.limits.max_connections or DEFAULT_CONNECTIONS),
        )


@keep_going()
def main(config: Config) -> None:
    """Binds the address, loads the model and serves until a signal."""
    from qwen_jax.serve.connections import reserve_files
    from qwen_jax.serve.run import serve  # requires the extra qwen_jax[serve]

    limits = config.client_limits(reserve_files)
    key, log = read_key(config.api_key), functools.partial(print, flush=True)
    with bind(config.host, config.port) as sock:  # before the model is loaded, which is slow
        mesh = mesh_of(config.tensor)
        model, params, tokenizer = load_model(
            config.checkpoint, config.tokenizer, mesh=mesh, allow_nonfinite=config.allow_nonfinite
        )
        defaults = generation_config.sampling(tokenizer.settings)
        SamplingParams.named(f"{GENERATION}, {{}}", max_new_tokens=1, **defaults)  # its ranges
        context, sentence = chat.context(model, config.context)
        log(f"context: {sentence}; up to {config.max_num_seqs} completions at once")
        engine = start_engine(
            params,
            model,
            tokenizer,
            max_num_seqs=config.max_num_seqs,
            context=context,
            cache_dtype=config.cache_dtype,
            memory_gib=config.memory_gib,
            mesh=mesh,
            prompt_lengths=(16, 32, 64, 128, 256, 512),  # lengths of prompt chunks
        )
        serve(
            engine,
            tokenizer,
            sock,
            host=config.host,
            model_name=config.model_name or pathlib.Path(config.checkpoint).resolve().name,
            context=context,
            defaults=defaults,
            max_num_seqs=config.max_num_seqs,
            max_queued=config.max_queued,
            max_body_bytes=int(config.max_body_mib * 2**20),
            limits=limits,
            api_key=key,
            grace=config.grace,
            log=log,
        )
    log("stopped")


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
