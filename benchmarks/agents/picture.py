"""Draws a session of experiments.agent in a terminal, as an SVG for docs/guides/agents.md.

    python -m benchmarks.agents.picture --output=benchmarks/results/agent_session.svg

The tools are real and run in the sandbox; the model is a script, so the picture is the same on each
machine.
"""

import argparse
import contextlib
import io
import pathlib
import re
import tempfile
from collections.abc import Iterator
from xml.sax.saxutils import escape

from qwen_jax.agent.loop import Budgets
from qwen_jax.agent.terminal import Session
from qwen_jax.agent.toolbox import Sources, opened
from qwen_jax.utils.files import write_bytes
from tests.helpers.scripted_model import react_tokenizer, scripted

QUESTION = "Which month of sales.csv was the best, and by how much above the mean?"
FILE = "month,amount\nJan,120.5\nFeb,98.0\nMar,143.5\nApr,110.0\n"
SCRIPT = [
    'Thought: The sums by month come first.\nAction: table\nAction Input: {"file": "sales.csv", '
    '"operation": "group", "column": "amount", "by": "month"}',
    " March is the best. Its distance from the mean is a short program.\nAction: python\n"
    "Action Input: ```py\nimport csv, statistics\n"
    "amounts = [float(r['amount']) for r in csv.DictReader(open('sales.csv'))]\n"
    "max(amounts) - statistics.fmean(amount)\n```",
    " A wrong name: it is `amounts`, which the session still has.\nAction: python\n"
    "Action Input: ```py\nmax(amounts) - statistics.fmean(amounts)\n```",
    " I now know the final answer.\nFinal Answer: March, with 143.5: 25.5 above the mean.",
]
COLUMNS, LINE, CHARACTER = 92, 18, 7.83  # characters, pixels
_COLORS = {
    "": "#d8dee9",
    "2": "#8893a5",  # thought
    "36": "#88c0d0",  # call
    "33": "#ebcb8b",  # observation
    "1": "#ffffff",  # answer
    "31": "#d06c75",  # error
}
_STYLE = re.compile(r"\x1b\[(\d*)m")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", required=True, help="SVG file")
    output = pathlib.Path(parser.parse_args().output)
    write_bytes(output, svg(session()).encode())
    print(f"wrote {output}")


def session() -> str:
    """Returns what a terminal shows of the session, with its control sequences."""
    model, _ = scripted(react_tokenizer(), SCRIPT)
    shown = io.StringIO("$ python -m experiments.agent --checkpoint=FOLDER --folder=sales \\\n")
    shown.seek(0, io.SEEK_END)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(shown):
        (pathlib.Path(folder) / "sales.csv").write_text(FILE)
        with opened(Sources(tools=("table", "python"), folder=folder)) as (tools, _):
            print(f"    --tools={','.join(tool.name for tool in tools)}\n> {QUESTION}")
            Session(model, tools, Budgets(), color=True).ask(QUESTION)
    return shown.getvalue()


def svg(text: str) -> str:
    """Returns text with colors as a picture."""
    lines = list(_lines(text))
    width, height = round(COLUMNS * CHARACTER) + 32, len(lines) * LINE + 32
    drawn = "\n".join(
        f'<text x="16" y="{16 + LINE * (i + 1) - 5}" xml:space="preserve">{line}</text>'
        for i, line in enumerate(lines)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="13">\n'
        f'<rect width="{width}" height="{height}" rx="8" fill="#232831"/>\n{drawn}\n</svg>\n'
    )


def _lines(text: str) -> Iterator[str]:
    """Yields lines as spans of one color, broken after COLUMNS characters."""
    style, line, used = "", "", 0
    for index, part in enumerate(_STYLE.split(text)):
        if index % 2:
            style = part.lstrip("0")
            continue
        for number, chunk in enumerate(part.split("\n")):
            if number:
                yield line
                line, used = "", 0
            while chunk:
                room = COLUMNS - used
                line += f'<tspan fill="{_COLORS[style]}">{escape(chunk[:room])}</tspan>'
                used, chunk = used + len(chunk[:room]), chunk[room:]
                if chunk:
                    yield line
                    line, used = "", 0
    if line:
        yield line


if __name__ == "__main__":
    main()
