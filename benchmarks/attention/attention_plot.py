"""The plot of benchmarks/attention/attention.py: TFLOP/s by sequence length.

It has one panel per mask, head size, dtype and pass.
"""

import pathlib

from qwen_jax.errors import ConfigError


def save(rows: list[dict], about: dict, path: pathlib.Path) -> None:
    """Plots the rows of benchmarks.attention.attention.measure.

    Raises:
      ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # optional dependency, slow to import
    except ImportError:
        raise ConfigError(
            "the plot requires matplotlib, which is not installed.",
            "benchmarks.attention.attention",
            'run pip install "qwen_jax[report]".',
        ) from None
    rows = [row for row in rows if "refused" not in row]
    panels = list(dict.fromkeys((row["mask"], row["H"], row["dtype"]) for row in rows))
    names = list(dict.fromkeys(row["name"] for row in rows))
    passes = ("forward", "backward")
    figure = Figure(figsize=(9, 2.6 * max(1, len(panels)) + 1), layout="constrained")
    axes = figure.subplots(max(1, len(panels)), len(passes), squeeze=False)
    for line, panel in zip(axes, panels, strict=True):
        chosen = [row for row in rows if (row["mask"], row["H"], row["dtype"]) == panel]
        lengths = sorted({row["T"] for row in chosen})
        for ax, which in zip(line, passes, strict=True):
            for i, name in enumerate(names):
                values = {row["T"]: row[which]["tflops"] for row in chosen if row["name"] == name}
                at = [lengths.index(T) + 0.8 * (i + 0.5) / len(names) - 0.4 for T in values]
                ax.bar(
                    at, list(values.values()), width=0.75 / len(names), label=name, color=f"C{i}"
                )
            ax.set_xticks(range(len(lengths)), [f"{T:,}" for T in lengths])
            ax.set_title(
                f"{which}, {panel[0]}, head size {panel[1]}, {panel[2]}", fontsize=9, loc="left"
            )
            ax.spines[["top", "right"]].set_visible(False)
            ax.set_ylabel("TFLOP/s")
    if panels:
        figure.legend(
            *axes[0, 0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=4,
            fontsize=8,
            frameon=False,
        )
    figure.suptitle(
        f"Attention on {about['device']}, {about['date']}, jax {about['jax']}", fontsize=10
    )
    figure.savefig(path, dpi=150, metadata={"Software": None})
