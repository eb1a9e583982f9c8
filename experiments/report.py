"""Report page of a run: plots, held-out loss, speed, settings and events as one HTML file.

    python -m experiments.report runs/mine
    python -m experiments.report runs/base runs/chat runs/ppo

Writes report.html and plots/*.png into each run folder and prints the paths. A run writes its page
when it ends; this command writes it at any time, also during a run. The page needs no network and
no other file. Needs matplotlib: pip install "qwen_jax[report]".

    python -m experiments.report --serve=runs        # or: make chat

serves a page with all runs of a folder, whose curves go on while they train, and where one chats
with any of their checkpoints and compares them. A model is loaded when it is first used. Clients of
the OpenAI API can use them too. Needs pip install "qwen_jax[serve]".
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator

from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.errors import ConfigError
from qwen_jax.ranges import Checked, Range
from qwen_jax.report import write_report
from qwen_jax.serve.limits import DEFAULT_CONNECTIONS, ClientLimits
from qwen_jax.serve.page.config import PageConfig, open_parts

MAX_NUM_SEQS, MAX_QUEUED = 4, 32  # one person compares two models
PROMPT_LENGTHS = (32, 256)  # compiled when a model is loaded; others when they are needed


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """The runs to write pages of, or the folder to serve."""

    run_dir: tuple[str, ...] = option(
        (), "run folders; also as arguments without a flag", positional=True
    )
    serve: str | None = option(None, "folder of runs to serve as a page; None: write reports")
    port: int = option(8000, "port of the page; 0: any free port", Range(0, 65535))
    max_loaded: int = option(
        2,
        "models of the page in memory at the same time; beyond it, the one used longest ago makes "
        "room",
        Range(1, 64),
    )
    page: PageConfig = PageConfig()

    def __post_init__(self):
        super().__post_init__()
        if self.serve is None:
            for name in _server_settings(self):
                raise ConfigError(
                    "this is a setting of a server.",
                    f"--{name}",
                    "add --serve=FOLDER, or omit it.",
                )
        if self.serve is not None and self.run_dir:
            raise ConfigError(
                "reports are written without --serve.", "--serve", "omit it, or the run folders."
            )


def _server_settings(config: Config) -> Iterator[str]:
    """Yields the flags of the page that are not at their defaults."""
    for name in ("port", "max_loaded"):
        if getattr(config, name) != Config.__dataclass_fields__[name].default:
            yield name
    for field in dataclasses.fields(PageConfig):
        if getattr(config.page, field.name) != field.default:
            yield f"page.{field.name}"


def main(config: Config) -> None:
    """Writes the pages, or serves them."""
    if config.serve is not None:
        serve_runs(config, config.serve)
        return
    if not config.run_dir:
        raise ConfigError(
            "no run is given.", "RUN_DIR", "pass one or more run folders, or --serve=FOLDER."
        )
    for folder in config.run_dir:
        print(write_report(folder), flush=True)


def serve_runs(config: Config, folder: str) -> None:
    """Serves the page of a folder of runs until a signal."""
    # These require the extra qwen_jax[serve].
    from qwen_jax.report.live import Runs
    from qwen_jax.serve.address import bind
    from qwen_jax.serve.app import ServerConfig
    from qwen_jax.serve.connections import reserve_files
    from qwen_jax.serve.load import EngineSettings, load
    from qwen_jax.serve.models import LazyModels
    from qwen_jax.serve.page.routes import Page
    from qwen_jax.serve.run import serve

    if not pathlib.Path(folder).is_dir():
        raise ConfigError(
            f"there is no folder {folder}.", "--serve", "pass a folder of runs, such as runs."
        )
    log = functools.partial(print, flush=True)
    limits = ClientLimits().resolved(
        max_num_seqs=MAX_NUM_SEQS,
        capacity=MAX_NUM_SEQS + MAX_QUEUED,
        max_open_files=reserve_files(DEFAULT_CONNECTIONS),
    )
    settings = EngineSettings(MAX_NUM_SEQS, MAX_QUEUED, limits, prompt_lengths=PROMPT_LENGTHS)
    runs = Runs(folder)
    models = LazyModels(
        runs.checkpoints,
        lambda name: load(str(runs.path(name)), name, settings, log),
        max_loaded=config.max_loaded,
    )
    with bind("127.0.0.1", config.port) as sock:
        page = Page(models, **open_parts(config.page), more=runs.handlers())
        serve(
            models,
            ServerConfig(),
            sock,
            host="127.0.0.1",
            limits=limits,
            grace=2.0,
            page=page,
            log=log,
        )


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
