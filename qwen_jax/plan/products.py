"""Operations of a matrix product, read from its line of a compiled program.

A TPU's compiler writes every product as a convolution: an axis that both sides have is a window
that slides over padding, so that only the places where window and input meet are multiplied.
"""

import math
import re


def flops(line: str, shapes: tuple[tuple[int, ...], ...], out: tuple[int, ...]) -> int:
    """Two for each multiplication of a `dot` or `convolution`.

    Args:
      line: its attributes.
      shapes: of the two operands.
      out: of the result.
    """
    left, right = shapes
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line)
    if contracted:
        return 2 * math.prod(out) * math.prod(left[int(d)] for d in contracted[1].split(",") if d)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line)
    if labels is None:
        return 0
    of_left, of_right, of_out = labels.groups()
    found = 2 * left[of_left.index("b")] * right[of_right.index("i")] * out[of_out.index("f")]
    window = dict(re.findall(r"(\w+)=([\w-]+)", _window(line)))
    sides = [label for label in sorted(of_out) if label.isdigit()]
    for place, label in enumerate(sides):
        found *= _meetings(
            left[of_left.index(label)],
            right[of_right.index(label)],
            out[of_out.index(label)],
            low=int(_part(window, "pad", place, "0_0").split("_")[0]),
            stride=int(_part(window, "stride", place, "1")),
            of_window=int(_part(window, "rhs_dilate", place, "1")),
            of_input=int(_part(window, "lhs_dilate", place, "1")),
        )
    return found


def _window(line: str) -> str:
    match = re.search(r"window=\{([^}]*)\}", line)
    return match[1] if match else ""


def _part(window: dict[str, str], name: str, place: int, default: str) -> str:
    return window[name].split("x")[place] if name in window else default


def _meetings(
    size: int, window: int, out: int, *, low: int, stride: int, of_window: int, of_input: int
) -> int:
    """Pairs of a result's place and a window's place that lie on an entry of the input."""
    if low == 0 and stride == of_window == of_input == 1 and size == out + window - 1:
        return out * window  # no padding
    last, count = (size - 1) * of_input, 0
    for place in range(out):
        for step in range(window):
            at = place * stride + step * of_window - low
            count += 0 <= at <= last and at % of_input == 0
    return count
