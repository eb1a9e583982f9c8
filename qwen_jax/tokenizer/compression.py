"""Compares tokenizers by bytes per token in each language. Report: Figure 3."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from qwen_jax.errors import TokenizerError, unknown_name
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.utils.files import write_bytes
from qwen_jax.utils.format import plot_label
from qwen_jax.utils.png import png


class Row(NamedTuple):
    """The compression of one language by one tokenizer."""

    language: str
    tokenizer: str
    num_bytes: int  # UTF-8 bytes of the texts, the same for every tokenizer
    num_tokens: int
    bytes_per_token: float
    ratio: float  # bytes_per_token relative to the baseline's; above 1 means fewer tokens


def compression(
    tokenizers: Mapping[str, Tokenizer],
    texts: Mapping[str, Sequence[str]],
    *,
    baseline: str | None = None,
) -> list[Row]:
    """Returns a row for each language of `texts` and each tokenizer, in their order.

    Args:
      tokenizers: name -> tokenizer.
      texts: language -> documents.
      baseline: name of the tokenizer whose ratio is 1 (XLM-R in the report). None: the first.

    Raises:
      TokenizerError: there are no tokenizers, the baseline is unknown, or a language has no text.

    Report: Figure 3.
    """
    if not tokenizers:
        raise TokenizerError(
            "there are no tokenizers.", "compression(tokenizers)", "pass at least one."
        )
    baseline = next(iter(tokenizers)) if baseline is None else baseline
    if baseline not in tokenizers:
        raise unknown_name(
            "tokenizer", baseline, tokenizers, "compression(baseline)", TokenizerError
        )
    rows = []
    for language, documents in texts.items():
        num_bytes = sum(len(text.encode("utf-8", "replace")) for text in documents)
        if not num_bytes:
            raise TokenizerError(
                f"{language!r} has no text.",
                "compression(texts)",
                "pass documents, or remove the language.",
            )
        counts = {
            name: sum(map(len, tokenizer.encode_batch(documents)))
            for name, tokenizer in tokenizers.items()
        }
        rows += [
            Row(language, name, num_bytes, count, num_bytes / count, counts[baseline] / count)
            for name, count in counts.items()
        ]
    return rows


def format_table(table: Sequence[Row]) -> str:
    """Formats `table`: a line per language with bytes per token and (ratio) of each tokenizer."""
    languages, names, cells = _by_language(table)
    lines = [["language", *names]]
    lines += [
        [
            language,
            *(
                f"{cells[language, name].bytes_per_token:.2f} ({cells[language, name].ratio:.2f})"
                for name in names
            ),
        ]
        for language in languages
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )


def plot(table: Sequence[Row], path: str | os.PathLike) -> None:
    """Plots the ratios as bars, grouped by language, and saves them to the image file `path`.

    Raises:
      TokenizerError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # an extra, slow to import
        from matplotlib.figure import Figure
    except ImportError:
        raise TokenizerError(
            "plots need matplotlib, which is not installed.",
            "qwen_jax.tokenizer.compression",
            'pip install "qwen_jax[report]".',
        ) from None
    languages, names, cells = _by_language(table)
    figure = Figure(figsize=(2 + 1.1 * len(languages), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        x = np.arange(len(languages)) + (index - (len(names) - 1) / 2) * width
        rows = [cells[language, name] for language in languages]
        bars = axes.bar(x, [row.ratio for row in rows], width, label=plot_label(name))
        axes.bar_label(bars, [f"{row.bytes_per_token:.2f}" for row in rows], fontsize=8)
    axes.axhline(1, color="#475569", linewidth=0.8)
    axes.set_xticks(np.arange(len(languages)), [plot_label(name) for name in languages])
    axes.set_ylabel("bytes per token / baseline's")
    figure.legend(loc="outside upper center", ncols=len(names), frameon=False)
    write_bytes(pathlib.Path(path), png(figure, dpi=150))


def _by_language(table: Sequence[Row]) -> tuple[list[str], list[str], dict[tuple[str, str], Row]]:
    """Returns languages and tokenizer names in table order, and the rows indexed by both."""
    return (
        list(dict.fromkeys(row.language for row in table)),
        list(dict.fromkeys(row.tokenizer for row in table)),
        {(row.language, row.tokenizer): row for row in table},
    )
