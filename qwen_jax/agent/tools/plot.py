"""The tool `plot`: draws a series of numbers as a PNG file in the working folder."""

import pathlib
from typing import Any

from qwen_jax.agent.tool import Limits, Result, Tool
from qwen_jax.agent.tools.folder import inside
from qwen_jax.utils.files import write_bytes
from qwen_jax.utils.png import png

_KINDS = ("line", "bar", "scatter")
_MAX_POINTS = 10_000


def plot(folder: str | pathlib.Path) -> Tool:
    """Returns the tool, which writes into one folder. It needs the extra `report`."""
    root = pathlib.Path(folder)

    def run(arguments: dict[str, Any], limits: Limits) -> Result:
        try:
            path = inside(root, arguments["file"])
            if path.suffix != ".png":
                return Result("Error: the name of the file must end with .png.", is_error=True)
            if len(arguments["y"]) != len(arguments.get("x", arguments["y"])):
                return Result("Error: x and y have different lengths.", is_error=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, draw(arguments))
        except ImportError:
            return Result(
                "Error: plots need matplotlib: pip install 'qwen_jax[report]'.", is_error=True
            )
        except OSError as error:
            return Result(f"Error: {error}.", is_error=True)
        count = len(arguments["y"])
        return Result(f"![plot]({arguments['file']})\n\n{count} points", files=(str(path),))

    numbers = {"type": "array", "items": {"type": "number"}, "maxItems": _MAX_POINTS}
    labels = {"type": "array", "items": {"type": ["number", "string"]}, "maxItems": _MAX_POINTS}
    text = {"type": "string", "maxLength": 200}
    return Tool(
        "plot",
        "Draws a series of numbers as a PNG image: a line, bars or points.",
        run,
        {
            "type": "object",
            "properties": {
                "y": {**numbers, "minItems": 1, "description": "the values"},
                "x": {**labels, "description": "their positions or names; default: 0, 1, 2, ..."},
                "kind": {"enum": list(_KINDS), "description": "default: line"},
                "title": text,
                "x_label": text,
                "y_label": text,
                "file": {"type": "string", "description": "name of the image, such as sales.png"},
            },
            "required": ["y", "file"],
            "additionalProperties": False,
        },
        "把一组数值画成 PNG 图像:折线图、柱状图或散点图。",
    )


def draw(arguments: dict[str, Any]) -> bytes:
    """Returns the PNG of a series. Raises ImportError without matplotlib."""
    from matplotlib.figure import Figure  # an extra

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    y, kind = arguments["y"], arguments.get("kind", "line")
    x = arguments.get("x", list(range(len(y))))
    if any(isinstance(one, str) for one in x):
        x = [str(one) for one in x]
    draw_kind = {"line": axes.plot, "bar": axes.bar, "scatter": axes.scatter}[kind]
    draw_kind(x, y)
    # A dollar sign would begin a formula.
    labels = {key: arguments.get(key, "").replace("$", r"\$") for key in _LABELS}
    axes.set_title(labels["title"])
    axes.set_xlabel(labels["x_label"])
    axes.set_ylabel(labels["y_label"])
    return png(figure, dpi=120)


_LABELS = ("title", "x_label", "y_label")
