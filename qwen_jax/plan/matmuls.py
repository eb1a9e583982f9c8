"""FLOPs of a matmul, parsed from its line in a compiled program.

The TPU compiler emits every matmul as a convolution. A batch axis becomes a window that slides over
padding. Only positions where the window covers the input are multiplied.
"""

import math
import re


def flops(line: str, shapes: tuple[tuple[int, ...], ...], out: tuple[int, ...]) -> int:
    """Returns the FLOPs of a `dot` or `convolution`: two per multiplication.

    Args:
      line: the attributes of the instruction.
      shapes: shapes of the two operands.
      out: shape of the result.
    """
    left, right = shapes
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line)
    if contracted:
        return 2 * math.prod(out) * math.prod(left[int(d)] for d in contracted[1].split(",") if d)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line)
    if labels is None:
        return 0
    of_left, of_right, of_out = labels.groups()
    count = 2 * left[of_left.index("b")] * right[of_right.index("i")] * out[of_out.index("f")]
    window = dict(re.findall(r"(\w+)=([\w-]+)", _window(line)))
    sides = [label for label in sorted(of_out) if label.isdigit()]
    for index, label in enumerate(sides):
        count *= _overlaps(
            left[of_left.index(label)],
            right[of_right.index(label)],
            out[of_out.index(label)],
            low=int(_field(window, "pad", index, "0_0").split("_")[0]),
            stride=int(_field(window, "stride", index, "1")),
            of_window=int(_field(window, "rhs_dilate", index, "1")),
            of_input=int(_field(window, "lhs_dilate", index, "1")),
        )
    return count


def _window(line: str) -> str:
    match = re.search(r"window=\{([^}]*)\}", line)
    return match[1] if match else ""


def _field(window: dict[str, str], name: str, index: int, default: str) -> str:
    return window[name].split("x")[index] if name in window else default


def _overlaps(
    size: int, window: int, out: int, *, low: int, stride: int, of_window: int, of_input: int
) -> int:
    """Returns the number of (output position, window position) pairs that cover an input entry."""
    if low == 0 and stride == of_window == of_input == 1 and size == out + window - 1:
        return out * window  # no padding
    last, count = (size - 1) * of_input, 0
    for position in range(out):
        for step in range(window):
            at = position * stride + step * of_window - low
            count += 0 <= at <= last and at % of_input == 0
    return count
