"""Draws Figure 4 of the report: win, tie and loss of each model, by category."""

from collections.abc import Sequence

from qwen_jax.errors import ConfigError
from qwen_jax.evaluate.pairwise.win_rates import WinRate
from qwen_jax.utils.format import plot_label
from qwen_jax.utils.png import png

_WIN, _TIE, _LOSS, _INK = "#2b6cb0", "#cbd5e1", "#c2410c", "#1f2937"


def draw_win_rates(rates: Sequence[WinRate]) -> bytes:
    """Returns a PNG: a panel for each category, a stacked bar for each model.

    Categories without votes are left out.

    Raises:
      ConfigError: Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # optional dependency, slow to import
    except ImportError:
        raise ConfigError(
            "the plot requires matplotlib, which is not installed.",
            "--votes",
            'run pip install "qwen_jax[report]".',
        ) from None
    categories = list(dict.fromkeys(one.category for one in rates if one.votes))
    models = list(dict.fromkeys(one.model for one in rates))
    height = 0.45 + len(categories) * (0.42 + 0.34 * len(models))
    figure = Figure(figsize=(8.4, height), layout="constrained")
    panels = figure.subplots(len(categories), 1, sharex=True, squeeze=False)[:, 0]
    for axes, category in zip(panels, categories, strict=True):
        shown = [one for one in rates if one.category == category and one.votes]
        for position, one in enumerate(shown):
            _bar(axes, position, one)
        axes.set_yticks(range(len(shown)), [plot_label(one.model) for one in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlim(0, 100)
        axes.set_title(
            f"{plot_label(category)}, {shown[0].questions} questions",
            loc="left", fontsize=9, color=_INK,
        )  # fmt: skip
        axes.tick_params(labelsize=8.5, length=0)
        axes.spines[:].set_visible(False)
    panels[-1].set_xlabel(f"% of votes against {plot_label(rates[0].baseline)}", fontsize=9)
    figure.legend(
        panels[0].patches[:3], ("win", "tie", "loss"), loc="outside upper right", ncols=3,
        frameon=False, fontsize=9,
    )  # fmt: skip
    return png(figure, dpi=140)


def _bar(axes, position: int, one: WinRate) -> None:
    left = 0.0
    for part, color, ink in (
        (one.win, _WIN, "white"),
        (one.tie, _TIE, _INK),
        (one.loss, _LOSS, "white"),
    ):
        assert part is not None
        width = 100 * part.estimate
        axes.barh(position, width, left=left, height=0.72, color=color)
        if width >= 6:
            axes.text(
                left + width / 2, position, f"{width:.1f}", ha="center", va="center",
                fontsize=8.5, color=ink,
            )  # fmt: skip
        left += width
