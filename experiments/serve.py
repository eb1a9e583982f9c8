"""Serves a model with the OpenAI API: /v1/chat/completions, /v1/responses, /v1/completions.

python -m experiments.serve --checkpoint=runs/mine --port=8000
curl localhost:8000/v1/completions -H "Content-Type: application/json" \\
    -d '{"model": "mine", "prompt": "Once", "max_tokens": 20}'

Any OpenAI client works with base_url="http://localhost:8000/v1", and http://localhost:8000 is a
page to chat with the model, to compare several (--checkpoint=runs/sft,runs/ppo) and to look at the
probabilities of their tokens. Requests use continuous batching:
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
from qwen_jax.inference.warmup import mesh_of
from qwen_jax.ranges import ABOVE_ZERO, ONE_OR_MORE, Checked, Range, shown
from qwen_jax.serve.address import bind, is_local, read_key
from qwen_jax.serve.limits import DEFAULT_CONNECTIONS, ClientLimits
from qwen_jax.serve.page.config import PageConfig, open_parts
from qwen_jax.utils.best_effort import keep_going


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """Settings of a server: model, address and limits."""

    checkpoint: tuple[str, ...] = option(
        (),
        "model to load: a run folder, or a released dense Qwen to Qwen3; several with commas "
        "between, which requests choose by the folder's name",
        kind="stored",
    )
    tokenizer: str | None = option(None, "folder or file; None: the one in the model's folder")
    allow_nonfinite: bool = option(False, "accept weights with NaN or infinity")
    model_name: tuple[str, ...] = option(
        (), "the model's name in the API, or one for each model; empty: the folder's name"
    )
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
    page: PageConfig = PageConfig()
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
        if self.page.tools and not is_local(self.host) and self.api_key is None:
            raise ConfigError(
                "anyone who reaches this computer could run its tools.",
                "--page.tools",
                "set --api_key, or omit the tools.",
            )
        self.client_limits()  # raises if limits contradict each other
        if self.model_name and len(self.model_name) != len(self.checkpoint):
            raise ConfigError(
                f"there are {len(self.model_name)} names for {len(self.checkpoint)} models.",
                "--model_name",
                "pass one name for each --checkpoint, or none.",
            )
        if self.tensor > 1 and len(self.checkpoint) > 1:
            # Collectives of two engines would wait for each other on different devices.
            raise ConfigError(
                "several models cannot be sharded over the same devices.",
                "--tensor",
                "serve one model, or use --tensor=1.",
            )

    def names(self) -> list[tuple[str, str]]:
        """Returns (checkpoint, name for clients) of each model.

        Folders of the same name are told apart by the folders above them: base/export, sft/export.
        """
        paths = [pathlib.Path(one).resolve() for one in self.checkpoint or ("",)]
        depth = 1
        names = list(self.model_name) or [path.name for path in paths]
        while not self.model_name and len(set(names)) < len(names) and depth < 8:
            depth += 1
            names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) < len(names):
            raise ConfigError(
                f"two models have the name {names[0]!r}.", "--model_name", "name each of them."
            )
        return list(zip(self.checkpoint or ("",), names, strict=True))

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
    # These require the extra qwen_jax[serve].
    from qwen_jax.serve.app import ServerConfig
    from qwen_jax.serve.connections import reserve_files
    from qwen_jax.serve.load import EngineSettings, load
    from qwen_jax.serve.models import Models
    from qwen_jax.serve.page.routes import Page
    from qwen_jax.serve.run import serve

    limits = config.client_limits(reserve_files)
    key, log = read_key(config.api_key), functools.partial(print, flush=True)
    with bind(config.host, config.port) as sock:  # before the model is loaded, which is slow
        settings = EngineSettings(
            max_num_seqs=config.max_num_seqs,
            max_queued=config.max_queued,
            limits=limits,
            tokenizer=config.tokenizer,
            context=config.context,
            cache_dtype=config.cache_dtype,
            memory_gib=config.memory_gib,
            allow_nonfinite=config.allow_nonfinite,
            mesh=mesh_of(config.tensor),
        )
        page_parts = open_parts(config.page)
        models = Models(
            load(checkpoint, name, settings, log) for checkpoint, name in config.names()
        )
        serve(
            models,
            ServerConfig(
                api_key=key,
                local=is_local(config.host),
                max_body_bytes=int(config.max_body_mib * 2**20),
                max_header_bytes=limits.max_header_kb * 1024,
                body_seconds=limits.body_seconds,
                max_unread_tokens=limits.max_unread_tokens,
            ),
            sock,
            host=config.host,
            limits=limits,
            grace=config.grace,
            page=Page(models, **page_parts, key=key is not None),
            log=log,
        )
    log("stopped")


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
