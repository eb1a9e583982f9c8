"""Whether two parsed answers are the same: values, then tuples, sets, matrices and relations.

Every function returns a `Verdict`, whose rule names what decided.
"""

from typing import NamedTuple

from qwen_jax.grading.symbolic import numeric, second_opinion
from qwen_jax.grading.symbolic.canonical import Algebra
from qwen_jax.grading.symbolic.polynomials import MAX_STEPS, TooLarge, Undefined
from qwen_jax.grading.symbolic.tree import (
    Node,
    Unreadable,
    children,
    integer_value,
    is_value,
    literal_fraction,
    number,
    walk,
)
from qwen_jax.grading.symbolic.units import Unit

MAX_VARIANTS = 8  # of an answer with \pm


class Verdict(NamedTuple):
    """Whether the answer is right, and the rule that decided."""

    equal: bool
    rule: str

    def __bool__(self) -> bool:
        return self.equal


class Comparison:
    """One comparison of a prediction with a gold answer, within one budget of work."""

    def __init__(self, strict: bool):
        self.strict = strict
        self.algebra = Algebra()
        self.asked_sympy = 0

    def compare(self, gold: Node, found: Node) -> Verdict:
        """Returns whether `found` is the answer `gold`."""
        gold, found = self.stripped(gold, found)
        gold, found = self.expanded(gold), self.expanded(found)
        if is_value(gold) and is_value(found):
            return self.values(gold, found)
        if is_value(gold) and found.kind == "list" and not found.args[1]:  # 1/2 or 0.5
            return self.alternatives(gold, found.args[0])
        if not self.strict:
            gold, found = self.as_intervals(gold, found)
        if gold.kind != found.kind:
            return Verdict(False, "different kinds")
        if gold.kind in ("list", "set", "tuple"):
            return self.collections(gold, found)
        if gold.kind == "union":
            same = gold.args[0] == found.args[0]
            if not same:
                return Verdict(False, "different set operations")
            return self.matched(gold.args[1], found.args[1], gold.args[0] != "setminus")
        if gold.kind == "matrix":
            return self.matrices(gold, found)
        if gold.kind == "relation":
            return self.relations(gold, found)
        return Verdict(False, "different structures")

    # Values

    def values(self, gold: Node, found: Node) -> Verdict:
        if not _same_unit(_unit(gold), _unit(found)):
            return Verdict(False, "different units")
        if self.strict and (refusal := _strict_refusal(gold, found)):
            return Verdict(False, refusal)
        try:
            if self.algebra.equal(gold, found):
                return Verdict(True, "exact")
            if not self.strict and _percent(gold) != _percent(found):
                percent, plain = (gold, found) if _percent(gold) else (found, gold)
                if self.algebra.equal(Node("div", (percent, number(100))), plain):
                    return Verdict(True, "percent as a decimal")
            if self.algebra.certain:
                return Verdict(False, "different values")
        except Undefined as reason:
            return Verdict(False, str(reason))
        except TooLarge as limit:
            if self.algebra.steps > MAX_STEPS:
                return Verdict(False, f"undecided: too large ({limit})")
        if _has_infinity(gold) or _has_infinity(found):
            return Verdict(False, "undecided: infinity in an expression")
        if (differ := numeric.differ(gold, found)) is not False:
            return Verdict(False, "different values" if differ else "undecided: no value")
        return self.second_opinion(gold, found)

    def alternatives(self, gold: Node, found: tuple[Node, ...]) -> Verdict:
        """Several forms of one value, joined by a word: all of them have to be right."""
        if all(is_value(part) and self.values(gold, part) for part in found):
            return Verdict(True, "every alternative")
        return Verdict(False, "more than one answer")

    def second_opinion(self, gold: Node, found: Node) -> Verdict:
        if not second_opinion.installed():
            return Verdict(False, "undecided: sympy is not installed")
        self.asked_sympy += 1
        if self.asked_sympy > 3:
            return Verdict(False, "undecided: too many parts")
        answer = second_opinion.equal(gold, found)
        if answer is None:
            return Verdict(False, "undecided: beyond sympy's limits")
        return Verdict(answer, "sympy" if answer else "sympy finds a difference")

    # Structures

    def collections(self, gold: Node, found: Node) -> Verdict:
        if gold.kind == "tuple":
            if gold.args[:2] != found.args[:2]:
                return Verdict(False, "different brackets")
            return self.matched(gold.args[2], found.args[2], False)
        if gold.kind == "set":
            return self.matched(gold.args[0], found.args[0], True)
        unordered = not self.strict and _is_unordered(gold, found)
        return self.matched(gold.args[0], found.args[0], unordered)

    def matched(self, gold: tuple[Node, ...], found: tuple[Node, ...], unordered: bool) -> Verdict:
        """Element by element; in any order, each element is used once and repeats do not count."""
        if unordered and not self.strict:
            gold, found = _distinct(gold), _distinct(found)
        if len(gold) != len(found):
            return Verdict(False, "different lengths")
        rest = list(found)
        for wanted in gold:
            candidates = rest if unordered else rest[:1]
            verdict = Verdict(False, "an element is missing")
            for place, candidate in enumerate(candidates):
                verdict = self.compare(wanted, candidate)
                if verdict:
                    del rest[place]
                    break
            if not verdict:
                return verdict if not unordered else Verdict(False, "an element is missing")
        return Verdict(True, "in any order" if unordered else "element by element")

    def matrices(self, gold: Node, found: Node) -> Verdict:
        rows_gold, rows_found = gold.args[0], found.args[0]
        if gold.args[1] != found.args[1] or [*map(len, rows_gold)] != [*map(len, rows_found)]:
            return Verdict(False, "different shapes")
        flat = [tuple(entry for row in rows for entry in row) for rows in (rows_gold, rows_found)]
        return self.matched(flat[0], flat[1], False)

    def relations(self, gold: Node, found: Node) -> Verdict:
        gold, found = _forward(gold), _forward(found)
        if gold.args[0] != found.args[0]:
            return Verdict(False, "different relations")
        sides_gold, sides_found = gold.args[1], found.args[1]
        verdict = self.matched(sides_gold, sides_found, False)
        if verdict or self.strict or len(sides_gold) != 2:
            return verdict
        if gold.args[0] == ("=",) and all(map(is_value, sides_gold + sides_found)):
            return self.equations(sides_gold, sides_found)
        return verdict

    def equations(self, gold: tuple[Node, ...], found: tuple[Node, ...]) -> Verdict:
        """2x = 4 and x = 2 are the same equation: one is a multiple of the other."""
        try:
            first = self.algebra.difference(*gold)
            second = self.algebra.difference(*found)
            if first.constant() is None and self.algebra.is_multiple(first, second):
                return Verdict(True, "the same equation")
        except TooLarge:
            pass
        return Verdict(False, "different equations")

    # Forms of one answer

    def stripped(self, gold: Node, found: Node) -> tuple[Node, Node]:
        """Takes the name off `x = 5` if the other answer has none, or the same one."""
        (name_gold, value_gold), (name_found, value_found) = _named(gold), _named(found)
        if name_gold is not None and name_found is not None:
            # Both stay relations unless the names are equal: x = 5 is not y = 5.
            return (value_gold, value_found) if name_gold == name_found else (gold, found)
        if gold.kind == "list" and found.kind == "list":
            return self._stripped_lists(gold, found)
        if name_gold is None and name_found is None:
            return gold, found
        if name_found is None:
            return (value_gold, found) if _has_no_name(found, gold) else (gold, found)
        return (gold, value_found) if _has_no_name(gold, found) else (gold, found)

    def _stripped_lists(self, gold: Node, found: Node) -> tuple[Node, Node]:
        """x = 1, 2 names the whole list, as (x, y) = (5, 8) and (8, 5) does."""
        names = [{name for name, _ in map(_named, node.args[0])} for node in (gold, found)]
        if names[0] == names[1] or {None} not in names and len(names[0] | names[1]) > 2:
            if None not in names[0] or len(names[0]) == 1:
                return gold, found
        plain = [
            Node("list", (tuple(_named(part)[1] for part in node.args[0]), node.args[1]))
            for node in (gold, found)
        ]
        return plain[0], plain[1]

    def expanded(self, node: Node) -> Node:
        r"""Writes a \pm b as the unordered list a + b, a - b, also inside sets and lists."""
        if not any(part.kind == "pm" for part in walk(node)):
            return node
        if node.kind == "set":
            parts = [_variants(part) for part in node.args[0]]
            return Node("set", (tuple(v for variants in parts for v in variants),))
        if node.kind == "list":
            parts = [_variants(part) for part in node.args[0]]
            return Node("list", (tuple(v for variants in parts for v in variants), False))
        if node.kind in ("tuple", "union", "matrix", "relation"):
            return node
        return Node("list", (tuple(_variants(node)), False))

    def as_intervals(self, gold: Node, found: Node) -> tuple[Node, Node]:
        """Writes -1 < x <= 2 as (-1, 2] if the other answer is an interval."""
        if gold.kind == found.kind:
            return gold, found
        if gold.kind == "relation":
            return _interval(gold) or gold, found
        if found.kind == "relation":
            return gold, _interval(found) or found
        return gold, found


def _unit(node: Node) -> Unit:
    while node.kind in ("neg", "percent"):
        node = node.args[0]
    return node.args[1] if node.kind == "unit" else ()


def _same_unit(gold: Unit, found: Unit) -> bool:
    """Whether the units agree, or one answer leaves its unit out: cm is not m, nor cm^2."""
    return not gold or not found or gold == found


def _percent(node: Node) -> bool:
    while node.kind in ("neg", "unit"):
        node = node.args[0]
    return node.kind == "percent"


def _strict_refusal(gold: Node, found: Node) -> str:
    """As PRM800K: an integer is written as one, and a fraction as the gold answer writes it."""
    if (integer_value(gold) is None) != (integer_value(found) is None):
        return "strict: one is an integer, one is not written as one"
    over, under = literal_fraction(gold), literal_fraction(found)
    if over and under and over != under:
        return "strict: fractions are compared as they are written"
    return ""


def _has_infinity(node: Node) -> bool:
    return any(part.kind == "constant" for part in walk(node))


def _is_name(node: Node) -> bool:
    """x, f(x), (x, y) or a : b: what can stand before the = of an answer."""
    if node.kind == "symbol":
        return node.args[0] not in ("pi", "e", "i")
    if node.kind == "tuple":
        return all(map(_is_name, node.args[2]))
    if node.kind == "mul":  # f(x), written as a product
        return len(node.args) == 2 and all(part.kind == "symbol" for part in node.args)
    return False


def _named(node: Node) -> tuple[Node | None, Node]:
    """Returns name and value of x = 5, x in [0, 1] and x = 2 + 3 = 5; (None, node) for others."""
    if node.kind != "relation":
        return None, node
    operators, sides = node.args
    if set(operators) == {"="} and _is_name(sides[0]) and not _is_name(sides[-1]):
        if len(sides) == 2 and _mentions(sides[1], sides[0]):
            return None, node  # x = x^2 - 1 defines nothing
        return sides[0], sides[-1]
    if operators == ("in",) and _is_name(sides[0]):
        return sides[0], sides[1]
    return None, node


def _has_no_name(node: Node, named: Node) -> bool:
    """Whether `node` can be the value of `named`: also -1 < x < 2 of x in (-1, 2)."""
    return node.kind != "relation" or named.args[0] == ("in",)


def _mentions(node: Node, name: Node) -> bool:
    return name.kind == "symbol" and any(part == name for part in walk(node))


def _is_unordered(gold: Node, found: Node) -> bool:
    """Lists that a word joins, of points, or of named values have no order."""
    if not gold.args[1] or not found.args[1]:
        return True
    kinds = {part.kind for node in (gold, found) for part in node.args[0]}
    return kinds in ({"tuple"}, {"relation"}, {"union"})


def _distinct(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    return tuple(dict.fromkeys(nodes))


_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}


def _forward(node: Node) -> Node:
    """5 <= x as x >= 5, and 2 > x > 1 as 1 < x < 2."""
    operators, sides = node.args
    if any(operator not in _FLIPPED for operator in operators):
        return node
    flip = len(sides) == 2 and not _is_name(sides[0]) and _is_name(sides[1])
    flip = flip or len(sides) > 2 and operators[0] in (">", ">=")
    if not flip:
        return node
    return Node("relation", (tuple(_FLIPPED[o] for o in reversed(operators)), sides[::-1]))


def _interval(node: Node) -> Node | None:
    operators, sides = _forward(node).args
    infinity = Node("constant", ("oo",))
    if len(sides) == 3 and set(operators) <= {"<", "<="} and _is_name(sides[1]):
        brackets = "(" if operators[0] == "<" else "[", ")" if operators[1] == "<" else "]"
        return Node("tuple", (*brackets, (sides[0], sides[2])))
    if len(sides) != 2 or not _is_name(sides[0]):
        return None
    if operators[0] in ("<", "<="):
        close = ")" if operators[0] == "<" else "]"
        return Node("tuple", ("(", close, (Node("neg", (infinity,)), sides[1])))
    if operators[0] in (">", ">="):
        return Node("tuple", ("(" if operators[0] == ">" else "[", ")", (sides[1], infinity)))
    return None


def _variants(node: Node) -> list[Node]:
    r"""The values of an expression with \pm: all upper signs, then all lower signs.

    Raises Unreadable for more than MAX_VARIANTS of them.
    """
    if node.kind == "relation":
        operators, sides = node.args
        return [Node("relation", (operators, (*sides[:-1], last))) for last in _variants(sides[-1])]
    if not any(part.kind == "pm" for part in walk(node)):
        return [node]
    return [_chosen(node, upper) for upper in (True, False)]


def _chosen(node: Node, upper: bool) -> Node:
    if node.kind == "pm":
        left, right, sign = node.args
        right = _chosen(right, upper)
        if (sign == "pm") != upper:
            right = Node("neg", (right,))
        return right if left is None else Node("add", (_chosen(left, upper), right))
    if not any(True for _ in children(node)):
        return node
    return Node(
        node.kind,
        tuple(
            _chosen(arg, upper)
            if isinstance(arg, Node)
            else tuple(_chosen(item, upper) if isinstance(item, Node) else item for item in arg)
            if isinstance(arg, tuple)
            else arg
            for arg in node.args
        ),
    )


__all__ = ["Comparison", "Unreadable", "Verdict"]
