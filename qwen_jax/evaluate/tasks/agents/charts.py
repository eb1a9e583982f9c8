"""What a chart shows: its data series, read back from the figure. Report: 3.4, Table 8.

The report has a vision-language model judge the picture. Data are a stricter judge of the content,
and blind to style. They are read in the process that drew the figure, so they are its own word.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

# Runs in the session before the model's cells: whenever a figure is saved, as the session does with
# each open one, its series are recorded.
RECORD = """
def _record():
    import sys, types
    module = types.ModuleType("_charts")
    module.found = []
    sys.modules["_charts"] = module
    try:
        import matplotlib
        matplotlib.use("Agg")
        from matplotlib.collections import PathCollection
        from matplotlib.figure import Figure
        from matplotlib.patches import Wedge
    except ImportError:
        return
    def plain(value):
        try:
            return float(value)
        except (TypeError, ValueError):
            return str(value)
    def nearest(position, axis):
        ticks = list(zip(axis.get_majorticklocs(), axis.get_majorticklabels()))
        close = [label.get_text() for at, label in ticks if abs(at - position) < 0.3]
        return close[0] if close and close[0] else plain(position)
    def series(axes):
        for bars in axes.containers:
            patches = list(getattr(bars, "patches", ()))
            if not patches:
                continue
            flat = getattr(bars, "orientation", None) == "horizontal"
            axis = axes.yaxis if flat else axes.xaxis
            def middle(p):
                if flat:
                    return p.get_y() + p.get_height() / 2
                return p.get_x() + p.get_width() / 2
            yield "bar", [nearest(middle(p), axis) for p in patches], [
                float(p.get_width() if flat else p.get_height()) for p in patches]
        for line in axes.lines:
            yield "line", [plain(v) for v in line.get_xdata(orig=True)], [
                plain(v) for v in line.get_ydata(orig=True)]
        wedges = [p for p in axes.patches if isinstance(p, Wedge)]
        if wedges:
            texts = [t.get_text() for t in axes.texts]
            labels = [w.get_label() for w in wedges]
            if not any(label in texts for label in labels) and axes.get_legend():
                labels = [t.get_text() for t in axes.get_legend().get_texts()]
            yield "pie", labels, [(w.theta2 - w.theta1) / 360 for w in wedges]
        for points in axes.collections:
            if isinstance(points, PathCollection):
                pairs = points.get_offsets().tolist()
                yield "scatter", [p[0] for p in pairs], [p[1] for p in pairs]
    save = Figure.savefig
    def savefig(self, *arguments, **settings):
        result = save(self, *arguments, **settings)
        module.found.append([s for axes in self.axes for s in series(axes)])
        return result
    Figure.savefig = savefig
_record(); del _record
"""
PRINT = "import sys, json; print(json.dumps(sys.modules['_charts'].found[-1:]))"


def matches(written: str, gold: Mapping[str, Any]) -> str | None:
    """Returns why the last figure is not the wanted chart; None: it is.

    Args:
      written: what PRINT has printed.
      gold: "kind", "labels" and "values" of the one series; of a pie, values are shares of a whole.
    """
    try:
        figures = json.loads(written)
        series = [(str(kind), list(labels), list(values)) for kind, labels, values in figures[-1]]
    except (ValueError, TypeError, IndexError, RecursionError):
        return "no figure"
    found = [one for one in series if one[0] == gold["kind"]]
    if not found:
        return f"another kind of chart: {series[0][0]}" if series else "an empty figure"
    values = [float(value) for value in gold["values"]]
    if gold["kind"] == "pie":
        values = [value / sum(values) for value in values]
    wanted = _pairs(gold["labels"], values)
    if len(found) > 1:
        return "several series"
    _, labels, shown = found[0]
    if len(labels) != len(shown) or not all(isinstance(one, int | float) for one in shown):
        return "other data"
    pairs = _pairs(labels, shown)
    same = len(pairs) == len(wanted) and all(map(_is_close, pairs, wanted))
    return None if same else "other data"


def _pairs(labels: Sequence[Any], values: Sequence[float]) -> list[tuple[str, float]]:
    """Returns labels with their values; the order in a chart does not count."""
    return sorted((_label(label), value) for label, value in zip(labels, values, strict=False))


def _label(label: Any) -> str:
    try:
        return f"{float(label):.6g}"
    except (TypeError, ValueError):
        return str(label).strip()


def _is_close(one: tuple[str, float], other: tuple[str, float]) -> bool:
    return one[0] == other[0] and math.isclose(one[1], other[1], rel_tol=1e-3, abs_tol=1e-6)
