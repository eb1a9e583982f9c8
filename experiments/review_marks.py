"""Prints each filter's accuracy against human marks, with confidence intervals. Report: 2.1.

    python -m experiments.review_marks --marks=marks.json,others.json

The review.html page of a corpus saves these files. A filter is correct if a text it rejected is
marked "drop" or a text it kept is marked "keep". A text marked by two people counts twice.
"""

import dataclasses

from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.corpus.output import review
from qwen_jax.errors import ConfigError
from qwen_jax.ranges import Checked


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """The files of marks."""

    marks: tuple[str, ...] = option((), ".json files saved from review.html")


RECIPE = Config()


def main(config: Config) -> None:
    """Reads the marks and prints the table."""
    if not config.marks:
        raise ConfigError("no files are set.", "--marks", "pass the files that review.html saved.")
    marks = [mark for path in config.marks for mark in review.read_marks(path)]
    if not marks:
        raise ConfigError("the files have no marks.", "--marks", "mark some texts and save again.")
    print(review.table(review.summarize(marks)))


if __name__ == "__main__":
    flags.run(main, __doc__, {"marks": RECIPE})
