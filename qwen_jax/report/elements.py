"""HTML elements of the report: tables, side-by-side figures, escaped text, the style sheet.

Text from files is escaped in this module.
"""

import html

from qwen_jax.report.records import LABELS


def any_table(content) -> str:
    """Returns an HTML table for a dict of dicts, a list of dicts, or a dict of values."""
    if isinstance(content, dict) and content and all(isinstance(v, dict) for v in content.values()):
        content = [{"": name, **row} for name, row in content.items()]
    if isinstance(content, dict):
        return table([], [[str(name), format_value(value)] for name, value in content.items()])
    if isinstance(content, list) and content and all(isinstance(row, dict) for row in content):
        columns: list[str] = list(dict.fromkeys(key for row in content for key in row))
        return table(
            [LABELS.get(c, c.replace("_", " ")) for c in columns],
            [[format_value(row.get(c, "")) for c in columns] for row in content],
        )
    return ""


def table(head: list[str], rows: list[list[str]]) -> str:
    """Returns an HTML table. With a header, numeric columns are right-aligned."""
    if not rows:
        return ""
    right_aligned = [
        bool(head) and all(map(_is_number, column)) for column in zip(*rows, strict=True)
    ]

    def cells(row, tag):
        return "".join(
            f"<{tag}{' class=number' if right else ''}>{escaped(cell)}</{tag}>"
            for cell, right in zip(row, right_aligned, strict=True)
        )

    top = f"<thead><tr>{cells(head, 'th')}</tr></thead>" if head else ""
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'


def side_by_side(*figures: str) -> str:
    """Returns the figures side by side; an empty string if there are none."""
    return f'<div class="pair">{"".join(figures)}</div>' if any(figures) else ""


def format_value(value) -> str:
    """Formats a value for display."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {format_value(part)}" for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(format_value, value)) or "none"
    return str(value)


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", "") or 0)
    except ValueError:
        return False
    return True


def escaped(value) -> str:
    """Returns a value as HTML text; what UTF-8 cannot encode becomes a question mark."""
    return html.escape(str(value).encode("utf-8", "replace").decode("utf-8"))


STYLE = """
body{font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;
color:#1f2937;background:#fff;max-width:60rem;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.9rem;margin:0;overflow-wrap:anywhere}header p{color:#64748b;margin:.2rem 0 1.5rem}
h2{font-size:1.2rem;margin:2.6rem 0 .8rem;padding-bottom:.3rem;border-bottom:1px solid #e2e8f0}
h3{font-size:.95rem;margin:0 0 .3rem;color:#475569}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(12.5rem,1fr));gap:.75rem}
.tiles div{background:#f8fafc;border:1px solid #e2e8f0;border-radius:.5rem;padding:.7rem .9rem}
.tiles b{display:block;font-size:1.55rem;font-weight:600;font-variant-numeric:tabular-nums}
.label{color:#475569;font-size:.85rem}.note{color:#64748b;font-size:.8rem}
p.note{margin:.25rem 0 1.2rem}
figure{margin:0}img{max-width:100%;height:auto;display:block}
figcaption{color:#64748b;font-size:.85rem;margin:.3rem 0 .8rem}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(20rem,1fr));gap:1rem}
.columns{columns:22rem 2;column-gap:2rem}.columns>div{break-inside:avoid}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.88rem;min-width:min(100%,30rem);margin-bottom:.8rem}
.columns table{min-width:100%}td:first-child{white-space:nowrap}.columns td:first-child{width:50%}
th{text-align:left;color:#475569;font-weight:600}
td,th{padding:.28rem 1.6rem .28rem 0;border-bottom:1px solid #f1f5f9;vertical-align:top;
overflow-wrap:anywhere}
.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
pre.sample{background:#f8fafc;border-left:3px solid #2b6cb0;border-radius:0 .4rem .4rem 0;
padding:.8rem 1rem;margin:0;font:.85rem/1.5 ui-monospace,"DejaVu Sans Mono",monospace;
white-space:pre-wrap;overflow-wrap:anywhere}
summary{cursor:pointer;color:#2b6cb0}
@media print{body{max-width:none;padding:0}section{break-inside:avoid}}
"""
