"""The tree of a parsed answer, and the limits that keep every later step short."""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

MAX_TOKENS = 600
MAX_DEPTH = 40  # of brackets, fractions and exponents inside each other
MAX_HEIGHT = 60  # of the tree
MAX_DIGITS = 400  # of one number
MAX_ELEMENTS = 60  # of a list, set, tuple or matrix


class Unreadable(Exception):
    """Text that is no answer in the grammar, or one beyond the limits."""


class Node(NamedTuple):
    """A part of an answer. `args` by kind:

    number (Fraction, text) · symbol (name) · constant ("oo") · add, mul (nodes) · neg (node)
    div, pow (node, node) · root (degree node, node) · call (name, nodes) · factorial, abs,
    percent (node) · mixed (whole, over, under) · based (digits, base) · unit (node, `units.Unit`)
    pm (left or None, right, sign)
    tuple (open, close, nodes) · set (nodes) · list (nodes, ordered) · union (operator, nodes)
    matrix (rows) · relation (operators, sides) · text (words)
    """

    kind: str
    args: tuple[Any, ...]


def number(value: Fraction | int) -> Node:
    return Node("number", (Fraction(value), str(value)))


def children(node: Node) -> Iterator[Node]:
    """Yields the nodes directly below `node`."""
    for arg in node.args:
        if isinstance(arg, Node):
            yield arg
        elif isinstance(arg, tuple):
            for item in arg:
                if isinstance(item, Node):
                    yield item
                elif isinstance(item, tuple):
                    yield from (inner for inner in item if isinstance(inner, Node))


def walk(node: Node) -> Iterator[Node]:
    """Yields `node` and all nodes below it."""
    stack = [node]
    while stack:
        top = stack.pop()
        yield top
        stack.extend(children(top))


def height(node: Node) -> int:
    """Returns the number of nodes on the longest way down."""
    level, count = [node], 0
    while level:
        level = [child for parent in level for child in children(parent)]
        count += 1
    return count


STRUCTURES = frozenset({"tuple", "set", "list", "union", "matrix", "relation", "text"})


def is_value(node: Node) -> bool:
    """Whether the node is one number or expression, with no structure in it."""
    return all(part.kind not in STRUCTURES and part.kind != "pm" for part in walk(node))


def integer_value(node: Node) -> int | None:
    """Returns the integer that the node writes out, with a sign or a unit, as 5, -5 or 5.0."""
    while node.kind in ("unit", "percent"):
        node = node.args[0]
    if node.kind == "neg":
        inner = integer_value(node.args[0])
        return None if inner is None else -inner
    if node.kind == "number" and node.args[0].denominator == 1:
        return node.args[0].numerator
    return None


def literal_fraction(node: Node) -> tuple[int, int] | None:
    """Returns numerator and denominator as they are written, of 3/6, -3/6, 3/-6 or 1 2/3."""
    while node.kind in ("unit", "percent"):
        node = node.args[0]
    if node.kind == "neg":
        inner = literal_fraction(node.args[0])
        return None if inner is None else (-inner[0], inner[1])
    if node.kind == "mixed":
        whole, over, under = (integer_value(part) for part in node.args)
        if whole is None or over is None or under is None:
            return None
        return whole * under + over, under
    if node.kind != "div":
        return None
    over, under = (integer_value(part) for part in node.args)
    if over is None or under is None or under == 0:
        return None
    return (over, under) if under > 0 else (-over, -under)
