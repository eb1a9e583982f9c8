"""The parts of an answer that hold together: numbers, letters, commands, brackets, matrices."""

import abc
from fractions import Fraction

from qwen_jax.grading.symbolic import repeating
from qwen_jax.grading.symbolic.tokens import (
    CONSTANTS,
    GREEK,
    JOINING,
    RELATIONS,
    Token,
    function_name,
)
from qwen_jax.grading.symbolic.tree import MAX_DEPTH, MAX_ELEMENTS, Node, Unreadable, number
from qwen_jax.grading.symbolic.units import DEGREE

_END = Token("end", "", False)
_OPEN = {"(": ")]", "[": "])"}
_MATRICES = frozenset(
    {"matrix", "pmatrix", "bmatrix", "array", "vmatrix", "Bmatrix", "smallmatrix"}
)


class Primaries(abc.ABC):
    """Reads the parts that hold an expression together; what is between them is in `parse`."""

    def __init__(self, found: list[Token]):
        self.tokens = found
        self.at = 0
        self.depth = 0
        self.bars = 0  # open absolute values: the next | closes one

    def peek(self, ahead: int = 0) -> Token:
        place = self.at + ahead
        return self.tokens[place] if place < len(self.tokens) else _END

    def is_sign(self, *signs: str) -> bool:
        token = self.peek()
        return token.kind in ("sign", "escaped") and token.text in signs

    def take(self, *signs: str) -> bool:
        if self.is_sign(*signs):
            self.at += 1
            return True
        return False

    def expect(self, *signs: str) -> str:
        if not self.is_sign(*signs):
            raise Unreadable(f"expected {signs}, found {self.peek().text[:20]!r}")
        self.at += 1
        return self.tokens[self.at - 1].text

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("too deep")

    @abc.abstractmethod
    def elements(self) -> Node: ...

    @abc.abstractmethod
    def relation(self) -> Node: ...

    @abc.abstractmethod
    def sum(self) -> Node: ...

    @abc.abstractmethod
    def signed(self) -> Node: ...

    @abc.abstractmethod
    def power(self) -> Node: ...

    def starts_factor(self) -> bool:
        token = self.peek()
        if token.kind in ("number", "letters", "environment"):
            if token.text.lower() in JOINING:
                return False
            return token.kind != "environment" or token.text.startswith("begin")
        if token.kind == "command":
            return token.text not in RELATIONS and token.text not in (
                "pm", "mp", "cup", "cap", "setminus", "end",
            )  # fmt: skip
        if token.text == "|":
            return self.bars == 0
        return token.kind in ("sign", "escaped") and token.text in ("(", "[", "{")

    def argument(self, digits: bool = True) -> Node:
        """What a command applies to: a group in braces, or one token (of a number: one digit)."""
        self.deeper()
        try:
            if self.take("{"):
                if self.peek().kind == "command" and self.peek().text == "circ":
                    self.at += 1
                    self.expect("}")
                    return Node("unit", (number(1), DEGREE))
                node = self.elements()
                self.expect("}")
                return node
            if self.is_sign("-", "+"):
                return self.signed()
            token = self.peek()
            if digits and token.kind == "number" and token.text.isdigit() and len(token.text) > 1:
                first = token.text[0]
                self.tokens[self.at] = Token("number", token.text[1:], False)
                return _number(first)
            if token.kind == "letters" and len(token.text) > 1 and digits:
                self.tokens[self.at] = Token("letters", token.text[1:], False)
                return Node("symbol", (token.text[0],))
            return self.primary()
        finally:
            self.depth -= 1

    def primary(self) -> Node:
        self.deeper()
        try:
            token = self.peek()
            if token.kind == "number":
                self.at += 1
                return _number(token.text)
            if token.kind == "letters":
                return self.letters(token)
            if token.kind == "command":
                self.at += 1
                return self.command(token.text)
            if token.kind == "environment":
                return self.matrix()
            if token.kind == "text":
                self.at += 1
                return Node("text", (token.text,))
            return self.bracketed()
        finally:
            self.depth -= 1

    def letters(self, token: Token) -> Node:
        word = token.text
        for length in (len(word), len(word) - 1):  # sin, and sinx
            if length > 1 and (function_name(word[:length]) or word[:length] == "sqrt"):
                self.at += 1
                if length < len(word):
                    self.at -= 1
                    self.tokens[self.at] = Token("letters", word[length:], True)
                return self.command(word[:length])
        if word in CONSTANTS or word in GREEK:
            self.at += 1
            return self.command(word)
        if len(word) > 4:
            raise Unreadable(f"the word {word[:20]!r}")
        if len(word) > 1:
            self.tokens[self.at] = Token("letters", word[1:], False)
        else:
            self.at += 1
        return Node("symbol", (word[0],))

    def command(self, name: str) -> Node:
        if name == "frac":
            over = self.argument()
            return Node("div", (over, self.argument()))
        if name == "binom":
            over = self.argument()
            return Node("call", ("binom", (over, self.argument())))
        if name == "sqrt":
            degree = number(2)
            if self.take("["):
                degree = self.sum()
                self.expect("]")
            return Node("root", (degree, self.argument(digits=False)))
        if name in CONSTANTS:
            return Node("constant", (CONSTANTS[name],))
        if name in ("emptyset", "varnothing"):
            return Node("set", ((),))
        if name in GREEK or name in ("ldots", "dots", "cdots", "circ", "mathbb"):
            return Node("symbol", (name,))
        if name in ("lfloor", "lceil"):
            return self.rounded(name[1:])
        if name in ("overline", "hat", "bar", "vec"):
            return Node("call", (name, (self.argument(),)))
        if (function := function_name(name)) is not None:
            return self.call(function)
        raise Unreadable(f"the command {name[:20]!r}")

    def rounded(self, name: str) -> Node:
        inner = self.sum()
        token = self.peek()
        if token.kind != "command" or token.text != f"r{name}":
            raise Unreadable("an open rounding")
        self.at += 1
        return Node("call", (name, (inner,)))

    def call(self, name: str) -> Node:
        """sin x, sin^2 x, log_2 8, max(1, 2): the argument is what brackets hold, or one factor."""
        exponent = base = None
        for _ in range(2):
            if self.peek().kind == "raised" and exponent is None:
                self.at += 1
                exponent = self.argument(digits=False)
            elif self.is_sign("_") and base is None:
                self.at += 1
                base = self.argument(digits=False)
        if self.is_sign("("):
            inner = self.bracketed()
        else:
            inner = self.power()
            while self.starts_factor() and self.peek().kind not in ("environment",):
                if self.peek().kind == "command" and function_name(self.peek().text):
                    break
                if self.peek().kind == "letters" and function_name(self.peek().text):
                    break
                if self.is_sign("(", "["):
                    break
                inner = Node("mul", (inner, self.power()))
        arguments = inner.args[2] if inner.kind == "tuple" else (inner,)
        node = Node("call", (name, arguments if base is None else (*arguments, base)))
        return node if exponent is None else Node("pow", (node, exponent))

    def bracketed(self) -> Node:
        token = self.peek()
        if token.text == "|" and token.kind == "sign":
            return self.absolute()
        if token.kind == "escaped" and token.text == "\\{":
            self.at += 1
            if self.take("\\}"):
                return Node("set", ((),))
            inner = self.elements()
            self.expect("\\}")
            return Node("set", (inner.args[0] if inner.kind == "list" else (inner,),))
        if token.kind != "sign" or token.text not in ("(", "[", "{"):
            raise Unreadable(f"unexpected {token.text[:20]!r}")
        self.at += 1
        bars, self.bars = self.bars, 0
        inner = self.elements()
        self.bars = bars
        close = self.expect("}") if token.text == "{" else self.expect(*_OPEN[token.text])
        if token.text == "{":
            return inner
        if inner.kind == "list":
            return Node("tuple", (token.text, close, inner.args[0]))
        if close != _closing(token.text):
            raise Unreadable("brackets that do not match")
        return inner

    def absolute(self) -> Node:
        self.expect("|")
        self.bars += 1
        inner = self.sum()
        self.bars -= 1
        self.expect("|")
        return Node("abs", (inner,))

    def matrix(self) -> Node:
        edge, _, name = self.peek().text.partition(" ")
        if edge != "begin" or name not in _MATRICES:
            raise Unreadable(f"the environment {name[:20]!r}")
        self.at += 1
        rows, row = [], []
        while True:
            row.append(self.relation())
            if self.take("&"):
                continue
            rows.append(tuple(row))
            row = []
            if sum(map(len, rows)) > MAX_ELEMENTS:
                raise Unreadable("too many entries")
            if self.peek().kind == "row":
                self.at += 1
            if self.peek() == Token("environment", f"end {name}", self.peek().spaced):
                self.at += 1
                return Node("matrix", (tuple(rows), name == "vmatrix"))
            if self.tokens[self.at - 1].kind != "row":
                raise Unreadable("an open matrix")


def _closing(bracket: str) -> str:
    return {"(": ")", "[": "]"}[bracket]


def _number(text: str) -> Node:
    if "overline" in text:
        return Node("number", (repeating.value(text), text))
    return Node("number", (Fraction("0" + text if text.startswith(".") else text), text))
