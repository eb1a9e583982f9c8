"""Settings of the web page, and the parts of it that they switch on."""

import dataclasses
from typing import Any

from qwen_jax.agent.toolbox import NAMES, Sources
from qwen_jax.config import option
from qwen_jax.ranges import Checked
from qwen_jax.serve.page.tools import Toolboxes
from qwen_jax.serve.page.votes import Votes


@dataclasses.dataclass(frozen=True)
class PageConfig(Checked, where="--page.{}"):
    """Settings of the web page."""

    votes: str | None = option(
        None, "folder for votes of comparisons, for experiments.compare_models; None: not kept"
    )
    tools: tuple[str, ...] = option(
        (),
        f"tools that models may call on the page: {', '.join(NAMES)}, or MODULE:NAME of a Tool; "
        "they run on this computer, python in the sandbox",
    )


def open_parts(config: PageConfig) -> dict[str, Any]:
    """Returns the arguments `votes` and `tools` of page.routes.Page.

    Raises:
      ConfigError, SandboxError, DataError: as Votes and Toolboxes.
    """
    return {
        "votes": Votes(config.votes) if config.votes else None,
        "tools": Toolboxes(Sources(tools=config.tools)) if config.tools else None,
    }
