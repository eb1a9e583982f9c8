"""The grammar of answers: text -> tree (`tree.Node`). Nothing is computed.

From loose to tight: list (`,` `;` and or) · union · relation · sum · product · power · primary.
The depth of brackets and the number of tokens are bounded, so recursion is, too.
"""

from qwen_jax.grading.symbolic import prose, units
from qwen_jax.grading.symbolic.primaries import Primaries
from qwen_jax.grading.symbolic.text import MAX_CHARACTERS
from qwen_jax.grading.symbolic.tokens import (
    JOINING,
    RELATIONS,
    SCALES,
    is_mathematical,
    tokens,
)
from qwen_jax.grading.symbolic.tree import (
    MAX_ELEMENTS,
    MAX_HEIGHT,
    Node,
    Unreadable,
    height,
    integer_value,
    number,
    walk,
)
from qwen_jax.grading.symbolic.units import DEGREE, PERCENT, UNITS

_PRODUCT_COMMANDS = {"cdot": "*", "times": "*", "ast": "*", "div": "/"}


def parse(text: str) -> Node:
    """Returns the tree of an answer that `text.plain` has cleaned.

    Raises:
      Unreadable: the text is no answer in this grammar, or is beyond a limit.
    """
    if len(text) > MAX_CHARACTERS:
        raise Unreadable("too long")
    found = tokens(text)
    if prose.is_sentence(found):
        raise Unreadable("a sentence")
    parser = _Parser(found)
    node = parser.elements()
    if parser.peek().kind != "end":
        raise Unreadable(f"unexpected {parser.peek().text[:20]!r}")
    if any(part.kind == "pending" for part in walk(node)):
        raise Unreadable("two numbers side by side")
    if height(node) > MAX_HEIGHT:
        raise Unreadable("too deep")
    return node


class _Parser(Primaries):
    """Recursive descent over the tokens."""

    def elements(self) -> Node:
        """expr, expr and expr: one node, or a list that is unordered if a word joins it."""
        found, ordered, first = [self.union()], True, True
        while True:
            comma = self.take(",", ";")
            joined = self.joining_word()
            if not comma and not joined:
                break
            if self.peek().kind == "end" and first is False:
                break
            ordered = ordered and not joined
            found.append(self.union())
            first = False
            if len(found) > MAX_ELEMENTS:
                raise Unreadable("too many elements")
        return found[0] if len(found) == 1 else Node("list", (tuple(found), ordered))

    def joining_word(self) -> bool:
        token = self.peek()
        if token.kind in ("text", "letters") and token.text.lower() in JOINING:
            self.at += 1
            return True
        return False

    def union(self) -> Node:
        found, operator = [self.relation()], ""
        while self.peek().kind == "command" and self.peek().text in ("cup", "cap", "setminus"):
            operator = operator or self.peek().text
            if operator != self.peek().text:
                raise Unreadable("mixed set operations")
            self.at += 1
            found.append(self.relation())
            if len(found) > MAX_ELEMENTS:
                raise Unreadable("too many sets")
        if len(found) == 1:
            return found[0]
        first = found[0]
        if first.kind == "relation" and first.args[0][-1] in ("in", "="):  # x in A or B
            operators, sides = first.args
            rest = Node("union", (operator, (sides[-1], *found[1:])))
            return Node("relation", (operators, (*sides[:-1], rest)))
        return Node("union", (operator, tuple(found)))

    def relation(self) -> Node:
        sides, operators = [self.ratio()], []
        while True:
            token = self.peek()
            if token.kind not in ("compared", "command") or token.text not in RELATIONS:
                break
            self.at += 1
            operators.append(RELATIONS[token.text])
            sides.append(self.ratio())
        if not operators:
            return sides[0]
        return Node("relation", (tuple(operators), tuple(sides)))

    def ratio(self) -> Node:
        found = [self.sum()]
        while self.is_sign(":"):
            self.at += 1
            found.append(self.sum())
        return found[0] if len(found) == 1 else Node("tuple", (":", ":", tuple(found)))

    # Expressions

    def sum(self) -> Node:
        total = None
        while True:
            token = self.peek()
            if token.kind == "sign" and token.text in "+-":
                self.at += 1
                term = self.product()
                term = term if token.text == "+" else Node("neg", (term,))
            elif token.kind == "command" and token.text in ("pm", "mp"):
                self.at += 1
                total = Node("pm", (total, self.product(), token.text))
                continue
            elif total is None:
                term = self.product()
            else:
                return total
            total = term if total is None else _joined("add", total, term)

    def product(self) -> Node:
        total = self.signed()
        while True:
            token = self.peek()
            operator = _PRODUCT_COMMANDS.get(token.text) if token.kind == "command" else None
            if token.kind == "sign" and token.text in "*/":
                operator = token.text
            if operator:
                self.at += 1
                factor = self.signed()
                if operator == "/":
                    total = self.mixed_before(Node("div", (total, factor)))
                else:
                    total = _joined("mul", total, factor)
            elif (annotated := self.annotation(total)) is not None:
                total = annotated
            elif self.starts_factor():
                total = self.times(total)
            else:
                return total

    def times(self, total: Node) -> Node:
        """A factor without a sign: 2x, 2(x+1), and the mixed number 1 \\frac{2}{3}."""
        spaced, before = self.peek().spaced, self.tokens[self.at - 1]
        is_digit = self.peek().kind == "number"
        factor = self.power()
        plain = total.kind == "number" and before.kind == "number"
        if plain and factor.kind == "div" and not is_digit and _whole(total):
            over, under = factor.args
            if _whole(over) and _whole(under):
                return Node("mixed", (total, over, under))
        if is_digit and spaced and before.kind == "number":
            return Node("pending", (total, factor))  # 1 2/3: mixed_before ends it
        if is_digit and before.kind == "number":
            raise Unreadable("two numbers side by side")
        return _joined("mul", total, factor)

    def mixed_before(self, node: Node) -> Node:
        over, under = node.args
        if over.kind != "pending":
            return node
        whole, top = over.args
        if not (_whole(whole) and _whole(top) and _whole(under)):
            raise Unreadable("two numbers side by side")
        return Node("mixed", (whole, top, under))

    def signed(self) -> Node:
        if self.is_sign("-", "+"):
            negative = self.peek().text == "-"
            self.at += 1
            self.deeper()
            inner = self.signed()
            self.depth -= 1
            return Node("neg", (inner,)) if negative else inner
        return self.power()

    def annotation(self, value: Node) -> Node | None:
        """A unit, a scale or a percent behind a value; None if there is none."""
        token = self.peek()
        word = token.text
        if token.kind == "text":
            if word.lower() in JOINING or not word:
                return None if word else self.skip(value)
        elif token.kind != "letters" or word in JOINING or not token.spaced:
            known = token.kind == "letters" and len(word) > 1 and word in UNITS
            if not (known and value.kind == "number"):
                return None
        elif not (word.lower() in UNITS and len(word) > 1 or word in SCALES):
            if len(word) <= 3 or not _is_numeric(value):
                return None  # 5 apples, but not "x is the"
        elif is_mathematical(word):
            return None
        self.at += 1
        if word in SCALES:
            if value.kind == "number":
                return number(value.args[0] * 10 ** SCALES[word])
            return Node("mul", (value, number(10 ** SCALES[word])))
        unit = units.read(word + self.rest_of_unit())
        if unit == PERCENT:
            return Node("percent", (value,))
        return Node("unit", (value, unit))

    def rest_of_unit(self) -> str:
        """What follows the first word of a unit: ` cm` of square cm, `^2`, `/second`."""
        rest = ""
        while True:
            token, after = self.peek(), self.peek(1)
            if token.kind == "raised":
                self.at += 1
                exponent = integer_value(self.argument())
                rest += "" if exponent is None else f"^{exponent}"
            elif token.kind == "letters" and (token.text in UNITS or token.text in units.BETWEEN):
                self.at += 1
                rest += f" {token.text}"
            elif self.is_sign("/") and after.kind in ("text", "letters") and after.text in UNITS:
                self.at += 2
                rest += f"/{after.text}"
            else:
                return rest

    def skip(self, value: Node) -> Node:
        self.at += 1
        return value

    def power(self) -> Node:
        base = self.postfix(self.primary())
        if self.peek().kind != "raised":
            return base
        self.at += 1
        if self.peek().kind == "command" and self.peek().text == "circ":
            self.at += 1
            return self.postfix(Node("unit", (base, DEGREE)))
        start = self.at
        exponent = self.argument(digits=False)
        if exponent.kind == "unit" and self.at - start <= 4 and exponent.args[1] == DEGREE:
            return Node("unit", (base, DEGREE))
        return self.postfix(Node("pow", (base, exponent)))

    def postfix(self, node: Node) -> Node:
        while self.is_sign("!", "%", "_", "'"):
            sign = self.expect("!", "%", "_", "'")
            if sign == "!":
                node = Node("factorial", (node,))
            elif sign == "%":
                node = Node("percent", (node,))
            elif sign == "_":
                node = self.subscript(node)
            else:
                node = Node("call", ("'", (node,)))
        return node

    def subscript(self, node: Node) -> Node:
        below = self.argument(digits=True)
        if node.kind == "number" and below.kind == "number":
            return Node("based", (node.args[1].lstrip("0") or "0", below.args[1]))
        if node.kind == "symbol":
            return Node("symbol", (f"{node.args[0]}_{_spelled(below)}",))
        raise Unreadable("a subscript")


def _is_numeric(node: Node) -> bool:
    return all(part.kind != "symbol" for part in walk(node))


def _joined(kind: str, total: Node, term: Node) -> Node:
    """total + term or total term, as one flat node: long sums do not become deep trees."""
    return Node(kind, (*total.args, term) if total.kind == kind else (total, term))


def _whole(node: Node) -> bool:
    return node.kind == "number" and node.args[0].denominator == 1


def _spelled(node: Node) -> str:
    if node.kind in ("number", "symbol"):
        return str(node.args[-1])
    args = (_spelled(arg) if isinstance(arg, Node) else str(arg) for arg in node.args)
    return f"({node.kind}:{','.join(args)})"
