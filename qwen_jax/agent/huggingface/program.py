"""Programs over tools: a small subset of Python, interpreted here and bounded in steps and size.

A program assigns, calls tools, branches and loops over lists. It has no attributes, no imports and
no definitions, so it reaches nothing but its tools and its variables.
"""

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

_MAX_STEPS = 20_000
_MAX_LENGTH = 1_000_000  # of a text or a list
_MAX_BITS = 4096
_FORMAT = re.compile(r"[<>^]?[+-]?,?\d{0,3}(\.\d{1,2})?[a-zA-Z%]?")


class ProgramError(Exception):
    """Why a program did not run to its end; the message is for the model."""


class Program:
    """Runs programs that share variables.

    Args:
      tools: name -> function.
      variables: the variables before the first program; grows in place.

    Attributes:
      calls: names of the tools that were called, in order.
      printed: what `print` has printed.
    """

    def __init__(self, tools: Mapping[str, Callable[..., Any]], variables: dict[str, Any]):
        self._tools, self.variables = dict(tools), variables
        self._functions = {**_FUNCTIONS, "str": _text, "print": self._print}
        self.calls: list[str] = []
        self.printed: list[str] = []
        self._steps = 0

    def run(self, code: str) -> Any:
        """Returns the value of the last statement: of an expression or an assignment.

        Raises:
          ProgramError: the code has something else, fails, or does not end.
        """
        self._steps = 0
        try:
            body = ast.parse(code).body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ProgramError(f"the code is not Python: {error}") from None
        try:
            return self._block(body)
        except RecursionError:
            raise ProgramError("the code is nested too deeply") from None

    def _block(self, body: list[ast.stmt]) -> Any:
        result = None
        for statement in body:
            result = self._statement(statement)
        return result

    def _statement(self, node: ast.stmt) -> Any:
        self._step(node)
        if isinstance(node, ast.Expr):
            return self._value(node.value)
        if isinstance(node, ast.Assign):
            value = self._value(node.value)
            for target in node.targets:
                self._assign(target, value)
            return value
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            value = self._binary(node.op, self._name(node.target.id), self._value(node.value), node)
            self._assign(node.target, value)
            return value
        if isinstance(node, ast.If):
            return self._block(node.body if self._value(node.test) else node.orelse)
        if isinstance(node, ast.For) and not node.orelse:
            result = None
            for item in self._iterable(self._value(node.iter), node):
                self._assign(node.target, item)
                result = self._block(node.body)
            return result
        if isinstance(node, ast.Pass):
            return None
        raise self._refused(node)

    def _assign(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Name):
            if target.id in self._tools or target.id in self._functions:
                raise ProgramError(f"{target.id} is a tool and cannot be assigned to")
            self.variables[target.id] = value
        elif isinstance(target, ast.Tuple | ast.List):
            values = list(self._iterable(value, target))
            if len(values) != len(target.elts):
                raise ProgramError(f"{len(target.elts)} names for {len(values)} values")
            for one, each in zip(target.elts, values, strict=True):
                self._assign(one, each)
        else:
            raise self._refused(target)

    def _value(self, node: ast.expr) -> Any:
        self._step(node)
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return self._name(node.id)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.List | ast.Tuple):
            values = [self._value(one) for one in node.elts]
            return values if isinstance(node, ast.List) else tuple(values)
        if isinstance(node, ast.Dict) and None not in node.keys:
            keys = [self._value(key) for key in node.keys if key is not None]
            return self._guard(
                node, lambda: dict(zip(keys, map(self._value, node.values), strict=True))
            )
        if isinstance(node, ast.JoinedStr):
            return _bounded("".join(map(self._formatted, node.values)))
        if isinstance(node, ast.BinOp):
            left, right = self._value(node.left), self._value(node.right)
            return self._binary(node.op, left, right, node)
        if isinstance(node, ast.UnaryOp) and type(node.op) in _SIGNS:
            value = self._value(node.operand)
            return self._guard(node, lambda: _SIGNS[type(node.op)](value))
        if isinstance(node, ast.BoolOp):
            value: Any = isinstance(node.op, ast.And)
            for one in node.values:
                value = self._value(one)
                if bool(value) != isinstance(node.op, ast.And):
                    break
            return value
        if isinstance(node, ast.Compare):
            return self._compare(node)
        if isinstance(node, ast.IfExp):
            return self._value(node.body if self._value(node.test) else node.orelse)
        if isinstance(node, ast.Subscript) and not isinstance(node.slice, ast.Slice):
            value, index = self._value(node.value), self._value(node.slice)
            return self._guard(node, lambda: value[index])
        raise self._refused(node)

    def _name(self, name: str) -> Any:
        if name in self.variables:
            return self.variables[name]
        raise ProgramError(f"there is no variable {name[:100]!r}")

    def _call(self, node: ast.Call) -> Any:
        if not isinstance(node.func, ast.Name) or any(key.arg is None for key in node.keywords):
            raise self._refused(node)
        name = node.func.id
        function = self._tools.get(name) or self._functions.get(name)
        if function is None:
            raise ProgramError(f"there is no tool {name[:100]!r}; known: {', '.join(self._tools)}")
        positional = [self._value(one) for one in node.args]
        named = {str(key.arg): self._value(key.value) for key in node.keywords}
        if name in self._tools:
            self.calls.append(name)
        return self._guard(node, lambda: function(*positional, **named))

    def _binary(self, op: ast.operator, left: Any, right: Any, node: ast.AST) -> Any:
        function = _OPERATORS.get(type(op))
        text = isinstance(left, str | list | tuple) or isinstance(right, str | list | tuple)
        if function is None or text and not isinstance(op, ast.Add):
            raise self._refused(node)
        return self._guard(node, lambda: _bounded(function(left, right)))

    def _compare(self, node: ast.Compare) -> bool:
        left = self._value(node.left)
        for op, one in zip(node.ops, node.comparators, strict=True):
            right = self._value(one)
            function = _COMPARISONS.get(type(op))
            if function is None:
                raise self._refused(node)
            if not self._guard(node, lambda f=function, a=left, b=right: f(a, b)):
                return False
            left = right
        return True

    def _formatted(self, node: ast.expr) -> str:
        if isinstance(node, ast.Constant):
            return str(node.value)
        if not isinstance(node, ast.FormattedValue):
            raise self._refused(node)
        value = self._value(node.value)
        spec = "" if node.format_spec is None else self._value(node.format_spec)
        if not spec:
            return _text(value)
        if not _FORMAT.fullmatch(spec):
            raise ProgramError(f"the format {spec[:40]!r} is not supported")
        return self._guard(node, lambda: format(value, spec))

    def _iterable(self, value: Any, node: ast.AST) -> Any:
        if not isinstance(value, list | tuple | str | dict | range):
            raise ProgramError(f"{type(value).__name__} is not a list")
        return list(value)

    def _print(self, *values: Any) -> None:
        self.printed.append(_bounded(" ".join(map(_text, values))))

    def _guard(self, node: ast.AST, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except ProgramError:
            raise
        except Exception as error:
            code = ast.unparse(node)[:100]
            raise ProgramError(f"{code}: {type(error).__name__}: {error}"[:1000]) from None

    def _step(self, node: ast.AST) -> None:
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise ProgramError(f"the code takes more than {_MAX_STEPS} steps")

    def _refused(self, node: ast.AST) -> ProgramError:
        return ProgramError(f"{ast.unparse(node)[:100]!r} is not allowed in the code")


def _text(value: Any) -> str:
    """Returns a value as `str` does; a list that has itself many times is refused."""
    left = [_MAX_LENGTH]
    _count(value, left)
    return str(value)


def _count(value: Any, left: list[int]) -> None:
    left[0] -= len(value) + 1 if isinstance(value, str) else 1
    if left[0] < 0:
        raise ProgramError("the text is too long")
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple):
        for one in value:
            _count(one, left)


def _bounded(value: Any) -> Any:
    if isinstance(value, str | list | tuple) and len(value) > _MAX_LENGTH:
        raise ProgramError("the value is too long")
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise ProgramError("the number is too large")
    return value


def _range(*values: int) -> list[int]:
    found = range(*values)
    if len(found) > _MAX_STEPS:
        raise ProgramError("the range is too long")
    return list(found)


_SIGNS: dict[type, Callable[..., Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}
_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARISONS: dict[type, Callable[..., Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda item, values: item in values,
    ast.NotIn: lambda item, values: item not in values,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "bool": bool,
    "float": float,
    "int": lambda value: _bounded(int(value)),
    "len": len,
    "max": max,
    "min": min,
    "range": _range,
    "round": round,
    "sorted": lambda values: sorted(values),
    "sum": lambda values: sum(values),
}
