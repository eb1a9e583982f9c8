"""The page of the reproduction: the report's claims, our numbers, and the verdicts."""

import base64
import html
import io
import math
import pathlib
from typing import Any

from qwen_jax.report.elements import STYLE, escaped, table
from qwen_jax.utils.files import write_text
from qwen_jax.utils.format import format_seconds

_STYLE = """
a{color:#2b6cb0;text-decoration:none}a:hover{text-decoration:underline}
.verdict{display:inline-block;padding:.1rem .6rem;border-radius:1rem;font-size:.85rem;
font-weight:500;white-space:nowrap}
td,th{overflow-wrap:normal;white-space:nowrap;padding-right:1.2rem}
td:first-child{white-space:normal;min-width:13rem}td:nth-child(5){white-space:normal;min-width:9rem}
.overview td:first-child{color:#64748b;text-align:right;min-width:0}
.overview td:nth-child(2){white-space:normal}.overview td:nth-child(5){min-width:0}
.holds{background:#dcfce7;color:#166534}.does{background:#fef3c7;color:#92400e}
.contradicted{background:#fee2e2;color:#991b1b}.skipped{background:#e2e8f0;color:#475569}
code{font:.85rem ui-monospace,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem;margin:.6rem 0}
dt{color:#475569}dd{margin:0;overflow-wrap:anywhere}
@media(max-width:36rem){dl{grid-template-columns:1fr}dd{margin-bottom:.4rem}
.overview :is(th,td):nth-child(3),.overview :is(th,td):nth-child(n+5){display:none}
td:first-child{min-width:9rem}}
"""


def write(path: pathlib.Path, results: dict[str, Any]) -> None:
    """Writes the page of the rows in a reproduce.json."""
    write_text(path, page(results))


def page(results: dict[str, Any]) -> str:
    """Returns the page as HTML, one file without external parts."""
    claims = results["claims"]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>The report, reproduced</title><style>{STYLE}{_STYLE}</style>"
        "<header><h1>The report, reproduced at a small size</h1><p>Each claim of the Qwen "
        "Technical Report, tested with models that two CPU cores can train. A claim holds if the "
        "95 % interval of a difference, over seeds and held-out items, lies above zero.</p>"
        f"</header>{_overview(claims)}{''.join(map(_section, claims))}</html>"
    )


def _overview(claims: list[dict[str, Any]]) -> str:
    """Returns a table of all claims with links to their sections."""
    rows = "".join(
        f"<tr><td>{_label(c)}</td>"
        f'<td><a href="#{escaped(c["name"])}">{escaped(c["title"])}</a></td>'
        f"<td>{escaped(c['report'])}</td><td>{_verdict(c)}</td>"
        f'<td>{escaped(c["form"])}</td><td class="number">{_minutes(c)}</td></tr>'
        for c in claims
    )
    head = "".join(
        f"<th>{name}</th>" for name in ("", "claim", "report", "verdict", "form", "minutes")
    )
    return f'<div class="scroll"><table class="overview"><tr>{head}</tr>{rows}</table></div>'


def _label(claim: dict[str, Any]) -> str:
    return "" if claim["number"] < 0 else str(claim["number"])


def _verdict(claim: dict[str, Any]) -> str:
    verdict = claim["verdict"]
    return f'<span class="verdict {escaped(verdict.split()[0])}">{escaped(verdict)}</span>'


def _minutes(claim: dict[str, Any]) -> str:
    """Returns the minutes of a claim's cells; "" if they are another claim's."""
    return f"{claim['cost']['seconds'] / 60:.0f}" if not claim.get("group") else ""


def _section(claim: dict[str, Any]) -> str:
    cost = claim["cost"]
    facts = {
        "the report": claim["statement"],
        "rule": claim["rule"],
        "here": claim["why"],
        "seeds": ", ".join(map(str, claim["seeds"]))
        + (" (the intervals cover other items only)" if len(claim["seeds"]) == 1 else ""),
        "cost": f"the cells of {claim['group']}"
        if claim.get("group")
        else f"{format_seconds(cost['seconds'])}, {cost['tokens']:,} training tokens, "
        f"{cost['flops']:.1e} FLOP",
    }
    where = claim["machine"]
    facts["measured"] = (
        f"{where['date']}, {where['cpus']} CPU cores, Python {where['python']}, jax {where['jax']}"
        if where["platform"] == "cpu"
        else f"{where['date']}, {where['device']}, Python {where['python']}, jax {where['jax']}"
    )
    listed = "".join(f"<dt>{escaped(k)}</dt><dd>{escaped(v)}</dd>" for k, v in facts.items())
    number = f"{_label(claim)}. " if _label(claim) else ""
    return (
        f'<section id="{escaped(claim["name"])}"><h2>{number}{escaped(claim["title"])} '
        f"{_verdict(claim)}</h2>"
        f"<dl>{listed}<dt>command</dt><dd><code>{escaped(claim['command'])}</code></dd></dl>"
        f"{_rows(claim['rows'])}{''.join(map(_figure, claim['curves']))}</section>"
    )


def _rows(rows: list[dict[str, Any]]) -> str:
    """Returns the table of a claim; columns that no row fills are left out."""
    columns = {
        "": [row["name"] for row in rows],
        "ours": [_number(row["ours"], row) for row in rows],
        "95 % interval": [_interval(row) for row in rows],
        "by seed": [", ".join(_number(value, row) for value in row["per_seed"]) for row in rows],
        "report": [row["report"] for row in rows],
    }
    filled = {name: cells for name, cells in columns.items() if any(cells)}
    return table(list(filled), [list(row) for row in zip(*filled.values(), strict=True)])


def _interval(row: dict[str, Any]) -> str:
    low, high = _number(row["low"], row), _number(row["high"], row)
    return "" if low == "-" else f"{low} to {high}"


def _number(value: float | None, row: dict[str, Any]) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{100 * value:.1f} %" if row["percent"] else f"{value:.4g}"


def _smooth(points: list[list[float]], window: int) -> list[tuple[float, float]]:
    """Returns the means of `window` consecutive points, which overlap."""
    parts = [points[i : i + window] for i in range(len(points) - window + 1)]
    return [(sum(x for x, _ in p) / window, sum(y for _, y in p) / window) for p in parts]


_FEW = 20  # points that are shown as they are


def _figure(curve: dict[str, Any]) -> str:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.4), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    longest = max(len(points) for points in curve["lines"].values())
    window = max(1, longest // 15) if longest > _FEW else 1
    for name, points in curve["lines"].items():
        x, y = zip(*_smooth(points, window), strict=True)
        axes.plot(x, y, marker="" if window > 1 else "o", markersize=3, linewidth=1.5, label=name)
    axes.set_xlabel(curve["x"])
    axes.set_ylabel(curve["y"])
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    picture = base64.b64encode(file.getvalue()).decode()
    title = html.escape(curve["title"] + (f", mean of {window} steps" if window > 1 else ""))
    return (
        f'<figure><img alt="{title}" src="data:image/png;base64,{picture}">'
        f"<figcaption>{title}</figcaption></figure>"
    )
