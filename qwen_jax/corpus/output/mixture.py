"""Mixture weights of the sources, and the resulting tokens and epochs.

Report: 2.1 (some sources are up-sampled; instruction data is mixed into pretraining). With a weight
of 2.5 every document of a source is read twice, and half of them, chosen by hash, a third time.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping

from qwen_jax.errors import ConfigError, DataError, unknown_name
from qwen_jax.utils.format import plot_label
from qwen_jax.utils.png import png

Part = tuple[str, str | None]  # source and language; None if the language is unknown


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Weights by "source" or "source:language"; the latter takes precedence, the default is 1."""

    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    instructions: tuple[str, ...] = ()  # sources of instruction data, whose fraction is reported
    max_epochs: float = 4.0  # ours: more epochs help little (Muennighoff et al. 2023)
    allow_epochs: tuple[str, ...] = ()  # sources that may exceed max_epochs

    def __post_init__(self):
        for part, weight in self.weights.items():
            if not 0 <= weight < float("inf"):
                raise ConfigError(
                    f"the weight of {part!r} is {weight}.",
                    "mixture.weights",
                    "use a finite number of 0 or more; 0 excludes the source.",
                )

    def weight(self, source: str, language: str | None) -> float:
        """Returns the mean number of times a document of this source and language is read."""
        return float(self.weights.get(f"{source}:{language}", self.weights.get(source, 1.0)))

    def copies(self, document: str, source: str, language: str | None, *, seed: int = 0) -> int:
        """Returns how many times this document is read.

        A hash of the document's ID and the seed decides whether the fractional part of the weight
        counts as one more time.
        """
        weight = self.weight(source, language)
        digest = hashlib.blake2b(
            document.encode("utf-8", "surrogatepass"), digest_size=8, key=seed.to_bytes(8, "little")
        ).digest()
        return int(weight) + (int.from_bytes(digest, "little") / 2**64 < weight % 1)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One source and language of the mixture."""

    source: str
    language: str
    documents: int
    tokens: int  # available tokens
    epochs: float
    share: float  # fraction of the mixture's tokens

    @property
    def mixed(self) -> int:
        """Tokens in the mixture."""
        return round(self.tokens * self.epochs)


def parse_weights(
    given: Iterable[str],
    *,
    where: str = "--mixture.weights",
    forms: str = "SOURCE=NUMBER or SOURCE:LANGUAGE=NUMBER",
) -> dict[str, float]:
    """Parses ["wiki=3", "web:zh=1.5"] into a dictionary.

    Args:
      where: the flag, for error messages.
      forms: the syntax of a weight, for error messages.

    Raises:
      ConfigError: an item is not of this form, or repeats a name.
    """
    weights: dict[str, float] = {}
    for item in given:
        part, _, number = item.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            part = ""
        if not part or part in weights:
            raise ConfigError(
                f"{item!r} is not a valid weight, or repeats a name.",
                where,
                f"use {forms}, each name once.",
            )
        weights[part] = value
    return weights


def entries(
    counts: Mapping[tuple[str, str | None], tuple[int, int]], mixture: Mixture
) -> list[Entry]:
    """Returns the entries of the mixture, largest first.

    Args:
      counts: (source, language) -> (number of kept documents, number of kept tokens),
        which tokenize.sizes estimates; the shards have the exact number.

    Raises:
      ConfigError: a setting names an unknown source or language, or a source would be read more
        than max_epochs times and is not in allow_epochs.
      DataError: the mixture would be empty.
    """
    sources = {source for source, _ in counts}
    known = sources | {f"{source}:{language}" for source, language in counts}
    for where, names, of in (
        ("mixture.weights", mixture.weights, known),
        ("mixture.instructions", mixture.instructions, sources),
        ("mixture.allow_epochs", mixture.allow_epochs, sources),
    ):
        for name in names:
            if name not in of:
                raise unknown_name("source", name, of, where)
    too_often = sorted(
        {
            f"{source} ({mixture.weight(source, language):g})"
            for source, language in counts
            if mixture.weight(source, language) > mixture.max_epochs
            and source not in mixture.allow_epochs
        }
    )
    if too_often:
        names = ",".join(name.split(" ")[0] for name in too_often)
        raise ConfigError(
            f"these sources would be read more than {mixture.max_epochs:g} times: "
            f"{', '.join(too_often)}.",
            "mixture.weights",
            f"lower the weight, add text, or allow it with --mixture.allow_epochs={names}.",
        )
    mixed = {part: tokens * mixture.weight(*part) for part, (_, tokens) in counts.items()}
    total = sum(mixed.values())
    if not total:
        raise DataError(
            "the mixture has no tokens.",
            "mixture.weights",
            "set a weight above 0, or check in counts.json how much text the filters kept.",
        )
    rows = [
        Entry(
            source=part[0],
            language=part[1] or "?",
            documents=documents,
            tokens=tokens,
            epochs=mixture.weight(*part),
            share=mixed[part] / total,
        )
        for part, (documents, tokens) in counts.items()
    ]
    return sorted(rows, key=lambda row: (-row.mixed, row.source, row.language))


def table(rows: list[Entry], mixture: Mixture) -> str:
    """Returns the mixture as a Markdown table. Numbers of tokens are those of `entries`."""
    lines = [
        "| source | language | documents | estimated tokens | epochs | in the mixture | fraction |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row.source} | {row.language} | {row.documents:,} | {row.tokens:,} | "
        f"{row.epochs:g} | {row.mixed:,} | {row.share:.1%} |"
        for row in rows
    ]
    total = sum(row.mixed for row in rows)
    lines.append(
        f"| all | | {sum(row.documents for row in rows):,} | "
        f"{sum(row.tokens for row in rows):,} | | {total:,} | 100.0% |"
    )
    if mixture.instructions:
        share = sum(row.share for row in rows if row.source in mixture.instructions)
        lines += ["", f"Instruction data: {share:.1%} of the tokens."]
    return "\n".join(lines)


def draw(rows: list[Entry]) -> bytes:
    """Returns a PNG plot of each entry's available tokens and its tokens in the mixture.

    Raises:
      ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import (
            Figure,
        )  # not pyplot: it keeps global state and may need a display
    except ImportError as error:
        raise ConfigError(
            "matplotlib is not installed.",
            "corpus.output.mixture.draw",
            "pip install 'qwen_jax[report]'.",
        ) from error
    names = [f"{row.source} {row.language}".removesuffix(" ?") for row in rows]
    figure = Figure(figsize=(8, 1.3 + 0.45 * len(rows)), layout="constrained")
    axes = figure.subplots()
    positions = range(len(rows))
    largest = max(row.mixed for row in rows)
    unit, name = next(
        (u, n)
        for u, n in (
            (1e9, "billion tokens"),
            (1e6, "million tokens"),
            (1e3, "thousand tokens"),
            (1, "tokens"),
        )
        if largest >= u
    )
    axes.barh(
        [p - 0.2 for p in positions],
        [row.tokens / unit for row in rows],
        0.36,
        color="#c3cbd6",
        label="available",
    )
    bars = axes.barh(
        [p + 0.2 for p in positions],
        [row.mixed / unit for row in rows],
        0.36,
        color="#2f6fb0",
        label="in the mixture",
    )
    axes.bar_label(
        bars, [f"{row.share:.1%}, ×{row.epochs:g}" for row in rows], padding=4, fontsize=8
    )
    axes.set_yticks(list(positions), [plot_label(name) for name in names])
    axes.invert_yaxis()
    axes.margins(x=0.22)
    axes.set_xlabel(name)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    return png(figure, dpi=130)
