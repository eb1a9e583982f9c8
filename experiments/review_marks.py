"""What people's marks say of each filter: how often it was right, and its interval. Report: 2.1.

    python -m experiments.review_marks --marks=marks.json,others.json

The files are what the button of the plan's review.html saves. A rejected text marked "drop" and
a kept one marked "keep" are right. Two people who mark the same text count twice.
"""

import dataclasses

from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.corpus.output import review
from qwen_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Config:
    """One reading."""

    marks: tuple[str, ...] = option((), ".json files that review.html saved")


RECIPE = Config()


def main(config: Config) -> None:
    """Reads, counts, prints."""
    if not config.marks:
        raise ConfigError("no marks.", "--marks", "name the files that review.html saved.")
    marks = [mark for path in config.marks for mark in review.read_marks(path)]
    if not marks:
        raise ConfigError("nothing is marked.", "--marks", "mark some texts, and save again.")
    print(review.table(review.summarize(marks)))


if __name__ == "__main__":
    flags.run(main, __doc__, {"marks": RECIPE})
