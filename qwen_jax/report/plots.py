"""Plots of the report, as PNG bytes."""

import collections
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from qwen_jax.errors import ConfigError
from qwen_jax.report.records import LABELS, Curves, numbers
from qwen_jax.utils.format import plot_label
from qwen_jax.utils.png import png

_BLUE, _RED, _GREEN, _GRAY, _INK = "#2b6cb0", "#c2410c", "#2f855a", "#94a3b8", "#1f2937"
_EVAL_COLORS = (_RED, _GREEN, "#7c3aed", "#0e7490", "#a16207")
_PHASES = {"generation": _GREEN, "scoring": _RED, "update": _BLUE, "data": _GRAY}
_MAX_POINTS = 4000  # maximum points per curve; more are not visible
_MAX_TAGS = 24  # maximum labeled tags in one plot
_WIDE, _HALF = (9.6, 3.9), (4.7, 2.7)  # inches


def draw_plots(
    curves: Curves, evaluation: dict | None, calibration: dict | None = None
) -> dict[str, bytes]:
    """Returns {name: PNG} for the available curves and tables."""
    plots = {}
    x, y = curves.curve("train/loss")
    if len(x):
        has_others = curves.eval_names("accuracy") or len(curves.curve("rollout/reward")[0])
        plots["loss"] = _draw_loss(curves, x, y, size=_HALF if has_others else _WIDE)
    x, y = curves.curve("train/learning_rate")
    if len(x):
        plots["learning_rate"] = _draw_learning_rate(x, y)
    for name, key, title, unit, color in (
        ("gradient_norm", "train/grad_norm", "gradient norm", 1, _BLUE),
        ("throughput", "perf/tokens_per_second", "tokens per second", 1, _GREEN),
        ("data_wait", "perf/data_wait_seconds", "data wait (ms)", 1000, _GREEN),
        ("sampling", "perf/sample_seconds", "sampling (s)", 1, _GREEN),  # older PPO runs only
    ):
        x, y = curves.curve(key)
        if len(x):
            plots[name] = _draw_noisy(x, y * unit, title, color)
    if len(curves.curve("perf/generation_seconds")[0]):
        plots["phases"] = _draw_phases(curves)
    for name, key, title, color in (
        ("reward", "rollout/reward", "reward per completion", _BLUE),
        ("kl", "rollout/kl", "KL from the reference (nats per completion)", _RED),
        ("entropy", "rollout/entropy", "entropy (nats per token)", _GREEN),
        ("value", "value/error", "squared error of the value model", _BLUE),
        ("zero_std", "rollout/frac_reward_zero_std", "fraction of groups of equal rewards", _GRAY),
    ):
        x, y = curves.curve(key)
        if len(x):
            plots[name] = _draw_signed(x, y, title, color)
    if curves.eval_names("accuracy") or len(curves.curve("train/accuracy")[0]):
        plots["accuracy"] = _draw_accuracy(curves)
    if curves.eval_names("score"):
        plots["benchmarks"] = _draw_benchmarks(curves)
    if calibration:
        plots["calibration"] = _draw_calibration(calibration)
    values = numbers(evaluation, "perplexity")
    if values:
        plots["perplexity"] = _draw_bars(values)
    return plots


def draw_lengths(table: dict[str, list[float]], lengths: list[int], context_length: int) -> bytes:
    """Returns a plot of perplexity against length, one line per technique (report Table 3)."""
    figure, axes = _figure(_WIDE)
    for (name, values), color, marker in zip(
        table.items(), (_GRAY, _BLUE, _GREEN, _RED) * 9, "osD^" * 9, strict=False
    ):
        axes.plot(
            lengths,
            values,
            color=color,
            marker=marker,
            linewidth=1.8,
            markersize=5.5,
            label=plot_label(name),
        )
    axes.axvline(context_length, color=_INK, linewidth=0.8, linestyle=":")
    axes.annotate(
        " training length",
        (context_length, 0.97),
        fontsize=8,
        color="#475569",
        xycoords=("data", "axes fraction"),
        va="top",
    )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for axis, ticks in ((axes.xaxis, lengths), (axes.yaxis, _ticks(table))):
        axis.set_major_locator(_fixed(ticks))
        axis.set_minor_locator(_fixed([]))
        axis.set_major_formatter(
            lambda value, _: f"{value:,.3g}" if value < 100 else f"{value:,.0f}"
        )
    axes.set_xlabel("length of the text (tokens)")
    axes.set_ylabel("perplexity")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0.0, 0.9))
    return _png(figure)


def draw_tags(tags: Mapping[str, Sequence[str]], chosen: Collection[str] = ()) -> bytes:
    """Returns a plot of tags per prompt and tag frequencies, for all prompts and the chosen ones.

    Args:
      tags: prompt -> tags of the prompt.
      chosen: a subset of the prompts.
    """
    groups: list[tuple[str, Collection[Sequence[str]], str]] = [("all", tags.values(), _GRAY)]
    if chosen:
        groups.append(("chosen", [tags[prompt] for prompt in chosen], _BLUE))
    figure, first = _figure((_WIDE[0], 6.2))
    first.remove()
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 1.15))
    number, rank, common = (
        figure.add_subplot(cell) for cell in (grid[0, 0], grid[1, 0], grid[:, 1])
    )
    shares = []  # for each group: tag -> percentage of the prompts
    for index, (name, tag_lists, color) in enumerate(groups):
        sizes = np.bincount([len(set(given)) for given in tag_lists]) / len(tag_lists)
        width = 0.8 / len(groups)
        number.bar(
            np.arange(len(sizes)) + (index - (len(groups) - 1) / 2) * width,
            100 * sizes,
            width,
            color=color,
            label=plot_label(f"{name} ({len(tag_lists):,})"),
        )
        counts = collections.Counter(tag for given in tag_lists for tag in set(given))
        shares.append({tag: 100 * count / len(tag_lists) for tag, count in counts.most_common()})
        values = np.array([count for _, count in counts.most_common()])
        rank.plot(
            np.arange(1, len(values) + 1),
            100 * values / max(values.sum(), 1),
            color=color,
            linewidth=1.8,
            label=plot_label(f"{name} ({len(values):,} tags)"),
        )
    top = list(shares[0])[:_MAX_TAGS]
    for index, (group, (_, _, color)) in enumerate(zip(shares, groups, strict=True)):
        height = 0.8 / len(groups)
        common.barh(
            np.arange(len(top)) + (index - (len(groups) - 1) / 2) * height,
            [group.get(tag, 0) for tag in top],
            height,
            color=color,
        )
    for axes, title in (
        (number, "tags per prompt (% of prompts)"),
        (rank, "tags by rank (% of all assigned tags)"),
        (common, "most common tags (% of prompts)"),
    ):
        _style(axes)
        axes.set_title(title, loc="left", fontsize=10, color=_INK)
    number.locator_params(axis="x", integer=True)
    number.legend(frameon=False, fontsize=8)
    rank.legend(frameon=False, fontsize=8)
    if top:
        rank.set_xscale("log")
        rank.set_yscale("log")
        for axis in (rank.xaxis, rank.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:,.4g}")
    common.set_yticks(np.arange(len(top)), [plot_label(_shorten(tag)) for tag in top])
    common.tick_params(axis="y", length=0, labelsize=8)
    common.set_ylim(len(top) - 0.4, -0.6)
    common.grid(False)
    return _png(figure)


def _shorten(tag: str) -> str:
    return plot_label(tag if len(tag) <= 28 else tag[:27] + "…")


def _ticks(table: dict[str, list[float]]) -> list[float]:
    """Returns about eight rounded ticks for a logarithmic axis."""
    values = np.concatenate([np.asarray(row) for row in table.values()])
    steps = np.geomspace(values.min(), values.max(), 8) if values.max() > values.min() else values
    return sorted({float(f"{step:.2g}") for step in steps})


def _fixed(ticks: Sequence[float]):
    from matplotlib.ticker import FixedLocator  # after _figure, which checks for matplotlib

    return FixedLocator(ticks)


def _draw_loss(curves: Curves, x: np.ndarray, y: np.ndarray, *, size: tuple[float, float]) -> bytes:
    figure, axes = _figure(size)
    axes.plot(*_thin(x, y), color=_BLUE, alpha=0.3, linewidth=0.7)
    axes.plot(*_thin(x, _running_mean(y)), color=_BLUE, linewidth=1.9, label="training")
    for name, color in zip(curves.eval_names(), _EVAL_COLORS * 9, strict=False):
        ex, ey = curves.curve(f"eval/{name}/loss")
        axes.plot(
            ex,
            ey,
            color=color,
            linewidth=1.4,
            marker="o",
            markersize=4.5,
            markeredgecolor="white",
            markeredgewidth=0.7,
            zorder=3,
            label=plot_label(f"held out: {name}") + (f", last {ey[-1]:.3f}" if len(ey) else ""),
        )
    tokens = curves.last("train/tokens")
    axes.set_xlabel(f"step (of {tokens / x[-1]:,.0f} tokens)" if tokens and x[-1] else "step")
    of = "pair" if len(curves.curve("train/accuracy")[0]) else "token"
    axes.set_ylabel(f"loss (nats per {of})" if size == _WIDE else "loss")
    axes.legend(frameon=False, loc="upper right")
    return _png(figure)


def _draw_learning_rate(x: np.ndarray, y: np.ndarray) -> bytes:
    figure, axes = _figure(_HALF)
    exponent = math.floor(math.log10(y.max())) if y.max() > 0 else 0
    axes.plot(*_thin(x, y / 10.0**exponent), color=_BLUE, linewidth=1.8)
    axes.set_ylim(0, 1.15 * max(y.max(), 1e-30) / 10.0**exponent)
    return _finish(figure, axes, f"learning rate (1e{exponent})" if exponent else "learning rate")


def _draw_noisy(x: np.ndarray, y: np.ndarray, title: str, color: str) -> bytes:
    """Draws all values (thin) and their running median (thick)."""
    figure, axes = _figure(_HALF)
    x, y = _thin(x, y)
    axes.plot(x, y, color=color, alpha=0.35, linewidth=0.7)
    axes.plot(x, _running_median(y), color=color, linewidth=1.7)
    top = 1.15 * y.max()
    usual = np.quantile(y, 0.98)
    if y.max() > 3 * usual > 0:  # cut off outliers; an annotation counts them
        top = 1.5 * usual
        axes.annotate(
            f"{np.count_nonzero(y > top)} above, up to {y.max():,.4g}",
            (0.99, 1.02),
            va="bottom",
            ha="right",
            xycoords="axes fraction",
            fontsize=8,
            color="#64748b",
        )
    axes.set_ylim(0, top if top > 0 else 1)
    if top > 1000:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return _finish(figure, axes, title)


def _draw_phases(curves: Curves) -> bytes:
    """Draws the running median of each phase of a PPO step."""
    figure, axes = _figure(_HALF)
    for phase, color in _PHASES.items():
        x, y = _thin(*curves.curve(f"perf/{phase}_seconds"))
        axes.plot(x, _running_median(y), color=color, linewidth=1.7, label=phase)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    return _finish(figure, axes, "phases of a step (s)")


def _draw_signed(x: np.ndarray, y: np.ndarray, title: str, color: str) -> bytes:
    """Draws all values (thin) and their running mean (thick); values may be negative."""
    figure, axes = _figure(_HALF)
    axes.plot(*_thin(x, y), color=color, alpha=0.35, linewidth=0.7)
    axes.plot(*_thin(x, _running_mean(y)), color=color, linewidth=1.8)
    return _finish(figure, axes, title)


def _draw_accuracy(curves: Curves) -> bytes:
    """Draws the fraction of pairs whose chosen response has the higher reward."""
    figure, axes = _figure(_HALF)
    x, y = curves.curve("train/accuracy")
    if len(x):
        mean = _running_mean(100 * y)
        axes.plot(*_thin(x, mean), color=_GRAY, linewidth=1.5, label="training (running mean)")
    for name, color in zip(curves.eval_names("accuracy"), _EVAL_COLORS * 9, strict=False):
        x, y = curves.curve(f"eval/{name}/accuracy")
        axes.plot(
            x, 100 * y, color=color, marker="o", markersize=4, linewidth=1.5, label=plot_label(name)
        )
    axes.axhline(50, color=_INK, linewidth=0.8, linestyle=":")
    axes.legend(frameon=False, fontsize=8)
    return _finish(figure, axes, "accuracy (%); dotted: chance")


def _draw_benchmarks(curves: Curves) -> bytes:
    """Draws the score of each benchmark, with a band of two standard errors."""
    figure, axes = _figure(_WIDE)
    for name, color in zip(curves.eval_names("score"), _EVAL_COLORS * 9, strict=False):
        x, y = curves.curve(f"eval/{name}/score")
        label = plot_label(name) + (f", last {y[-1]:.1f}" if len(y) else "")
        axes.plot(x, y, color=color, marker="o", markersize=4, linewidth=1.5, label=label)
        at, error = curves.curve(f"eval/{name}/score_stderr")
        if np.array_equal(at, x):
            axes.fill_between(x, y - 2 * error, y + 2 * error, color=color, alpha=0.12, linewidth=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step")
    axes.set_ylabel("score (%)")
    axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def _draw_calibration(calibration: dict[str, list]) -> bytes:
    """Draws accuracy against confidence."""
    figure, axes = _figure(_HALF)
    axes.plot([50, 100], [50, 100], color=_INK, linewidth=0.8, linestyle=":")
    for (name, bins), color in zip(calibration.items(), _EVAL_COLORS * 9, strict=False):
        confidence, accuracy, pairs = np.asarray(bins, np.float64).T
        axes.plot(
            100 * confidence, 100 * accuracy, color=color, linewidth=1.0, label=plot_label(name)
        )
        axes.scatter(100 * confidence, 100 * accuracy, s=4 + 60 * pairs / pairs.max(), color=color)
    axes.legend(frameon=False, fontsize=8)
    axes.set_xlabel("confidence (%)")
    axes.set_title("accuracy (%)", loc="left", fontsize=10, color=_INK)
    return _png(figure)


def _draw_bars(values: dict[str, float]) -> bytes:
    figure, axes = _figure((_WIDE[0], 0.5 + 0.42 * len(values)))
    bars = axes.barh(
        [plot_label(LABELS.get(name, name)) for name in values],
        values.values(),
        color=[_BLUE if name == "model" else _GRAY for name in values],
        height=0.6,
    )
    axes.bar_label(bars, fmt=" {:,.1f}", color=_INK)
    axes.invert_yaxis()
    axes.grid(False)
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0, labelsize=11, colors=_INK)
    axes.set_xlim(0, 1.12 * max(values.values()))
    for spine in ("bottom", "left"):
        axes.spines[spine].set_visible(False)
    return _png(figure)


def _finish(figure, axes, title: str) -> bytes:
    axes.set_xlabel("step")
    axes.set_title(title, loc="left", fontsize=10, color=_INK)
    return _png(figure)


def _figure(size: tuple[float, float]):
    try:
        from matplotlib.figure import Figure  # optional dependency, slow to import
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        raise ConfigError(
            "the plots of the report require matplotlib, which is not installed.",
            "qwen_jax.report",
            'run pip install "qwen_jax[report]".',
        ) from None
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    _style(axes)
    bins = 8 if size == _WIDE else 6
    axes.xaxis.set_major_locator(MaxNLocator(nbins=bins, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return figure, axes


def _style(axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#cbd5e1")
    axes.tick_params(colors="#475569", labelsize=9)
    axes.xaxis.label.set_color("#475569")
    axes.yaxis.label.set_color("#475569")
    axes.grid(axis="y", color="#e2e8f0", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)


def _png(figure) -> bytes:
    return png(figure, dpi=170, facecolor="white")


def _running_mean(y: np.ndarray) -> np.ndarray:
    """Returns the running mean over 1/40 of the curve; the window narrows at the ends."""
    radius = max(1, len(y) // 80)
    total = np.concatenate(([0.0], np.cumsum(y)))
    index = np.arange(len(y))
    radius = np.minimum(np.minimum(index, len(y) - 1 - index), radius)
    return (total[index + radius + 1] - total[index - radius]) / (2 * radius + 1)


def _running_median(y: np.ndarray) -> np.ndarray:
    """Returns the running median over 1/40 of the curve; end values are repeated."""
    radius = max(1, len(y) // 80)
    padded = np.pad(y, radius, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * radius + 1), axis=1)


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    every = -(-len(x) // _MAX_POINTS)
    return x[::every], y[::every]
