"""Formatting of sizes and times."""

import math

import pytest

from qwen_jax.utils.format import format_gb, format_gib, format_seconds, plot_label
from tests.helpers.paths import ALL_CHARACTERS, CHINESE


@pytest.mark.parametrize(
    "size, gib, gb",
    [
        (0, "0.0 MiB", "0.0 MB"),
        (10**6, "1.0 MiB", "1.0 MB"),
        (2**20 * 100, "100.0 MiB", "104.9 MB"),
        (2**20 * 512, "0.50 GiB", "536.9 MB"),
        (10**9, "0.93 GiB", "1.00 GB"),
        (2**30, "1.00 GiB", "1.07 GB"),
        (80 * 2**30, "80.00 GiB", "85.90 GB"),
    ],
)
def test_format_gib_and_format_gb_choose_the_unit(size, gib, gb):
    assert (format_gib(size), format_gb(size)) == (gib, gb)


@pytest.mark.parametrize(
    "seconds, text",
    [
        (5, "5s"),
        (59.6, "1m00s"),
        (95, "1m35s"),
        (3599.7, "1h00m"),
        (7322, "2h02m"),
        (math.inf, "?"),
    ],
)
def test_format_seconds_rounds_to_two_units(seconds, text):
    assert format_seconds(seconds) == text


def test_plot_label_is_drawn_as_it_is_written():
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure()
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = [ALL_CHARACTERS, "$x_{$", r"a$\frac$b", r"\$", "_hidden", "$", "$$", CHINESE, "{0}"]
    for name in names:
        axes.plot([0, 1], label=plot_label(name))
    drawn = [text._preprocess_math(text.get_text()) for text in axes.legend().get_texts()]
    assert [(text.lstrip(), math) for text, math in drawn] == [
        (name[:60].lstrip(), False) for name in names
    ]
