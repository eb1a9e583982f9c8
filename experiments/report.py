"""Report page of a run: plots, held-out loss, speed, settings and events as one HTML file.

    python -m experiments.report runs/mine
    python -m experiments.report runs/base runs/chat runs/ppo

Writes report.html and plots/*.png into each run folder and prints the paths. A run writes its page
when it ends; this command writes it at any time, also during a run. The page needs no network and
no other file. Needs matplotlib: pip install "qwen_jax[report]".
"""

import dataclasses

from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.errors import ConfigError
from qwen_jax.ranges import Checked
from qwen_jax.report import write_report


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """The runs to write pages of."""

    run_dir: tuple[str, ...] = option(
        (), "run folders; also as arguments without a flag", positional=True
    )


def main(config: Config) -> None:
    """Writes the pages."""
    if not config.run_dir:
        raise ConfigError("no run is given.", "RUN_DIR", "pass one or more run folders.")
    for folder in config.run_dir:
        print(write_report(folder), flush=True)


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
