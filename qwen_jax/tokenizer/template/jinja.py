"""Renders a model's own chat template, as `transformers` does, in Jinja's sandbox.

A template comes with the weights, so it is somebody else's program: it sees plain JSON values only,
can change nothing, and has to end (limits.py).
"""

import datetime
import functools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from qwen_jax.errors import TokenizerError
from qwen_jax.tokenizer.template import limits

_MIN_JINJA = (3, 1, 6)  # earlier ones let templates out of the sandbox
# Private-use characters around what {% generation %} encloses. Text that has them is refused.
GENERATED, END_GENERATED = "\U0010fffc", "\U0010fffd"


class Compiled(NamedTuple):
    """A template, and whether it marks what the model generates."""

    template: Any
    has_generation: bool


def render(source: str, variables: Mapping[str, Any], *, mark_generated: bool = False) -> str:
    """Returns the text of a template.

    Args:
      variables: plain JSON values, by name.
      mark_generated: whether GENERATED and END_GENERATED enclose what the model generates.

    Raises:
      TokenizerError: jinja2 is not installed, or the template refuses the values, is malformed, or
        does not end.
    """
    template = compiled(source).template
    limits.start()
    try:
        return template.render(variables, _mark_generated=mark_generated)
    except limits.LimitError as error:
        raise TokenizerError(
            f"the chat template is stopped: {error}.",
            "chat_template",
            "use the template that was released with the model.",
        ) from None
    except Exception as error:  # whatever a template does: its own refusals, types, recursion
        raise TokenizerError(
            f"the chat template refuses the conversation: {str(error) or type(error).__name__}.",
            "chat_template",
            "change the messages, tools or variables to those that the template takes.",
        ) from error


@functools.lru_cache(maxsize=32)
def compiled(source: str) -> Compiled:
    """Compiles a template. Raises as render does."""
    jinja2 = _jinja2()
    environment = _environment()
    try:
        tree = _limited().visit(environment.parse(source))
        return Compiled(environment.from_string(tree), _has_generation(environment, source))
    except (jinja2.TemplateError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        raise TokenizerError(
            f"the chat template is malformed: {error}.",
            "chat_template" if line is None else f"chat_template, line {line}",
            "use the template that was released with the model.",
        ) from None


def _jinja2() -> Any:
    try:
        import jinja2
    except ImportError:
        raise TokenizerError(
            "jinja2 is not installed; the tokenizer has a chat template of its own.",
            "chat_template",
            "pip install 'qwen_jax[chat]'.",
        ) from None
    version = tuple(int(part) for part in jinja2.__version__.split(".")[:3] if part.isdigit())
    if version < _MIN_JINJA:
        raise TokenizerError(
            f"jinja2 {jinja2.__version__} is not safe with templates of others.",
            "chat_template",
            "pip install -U 'qwen_jax[chat]', which takes at least 3.1.6.",
        )
    return jinja2


@functools.cache
def _environment() -> Any:
    import jinja2.ext
    from jinja2 import pass_context
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Limited(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("+", "*", "**"))

        def call_binop(self, context, operator, left, right):
            limits.check_operation(operator, left, right)
            return super().call_binop(context, operator, left, right)

        def call(self, context, obj, *args, **kwargs):
            limits.check()
            return super().call(context, obj, *args, **kwargs)

    environment = Limited(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_generation_tag(), jinja2.ext.loopcontrols],
        # With a context, Jinja does not call it when it compiles.
        finalize=pass_context(lambda context, value: limits.written(value)),
    )
    del environment.globals["lipsum"]  # text of any length, which no template needs
    environment.filters["tojson"] = _to_json
    environment.filters |= {"_counted": limits.counted, "_concatenate": limits.concatenate}
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _limited() -> Any:
    """Returns the visitor that puts limits around loops and `~`."""
    from jinja2 import nodes, visitor

    class Limit(visitor.NodeTransformer):
        def visit_For(self, node):
            self.generic_visit(node)
            node.iter = nodes.Filter(node.iter, "_counted", [], [], None, None)
            return node

        def visit_Concat(self, node):
            self.generic_visit(node)
            parts = nodes.List(node.nodes)
            return nodes.Filter(parts, "_concatenate", [], [], None, None, lineno=node.lineno)

    return Limit()


def _generation_tag() -> type:
    """Returns the extension of {% generation %} ... {% endgeneration %}."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            context = nodes.ContextReference()
            call = self.call_method("mark", [context])
            return nodes.CallBlock(call, [], [], body).set_lineno(line)

        def mark(self, context, caller):
            text = caller()
            return f"{GENERATED}{text}{END_GENERATED}" if context["_mark_generated"] else text

    return Generation


def _has_generation(environment: Any, source: str) -> bool:
    tokens = [(kind, value) for _, kind, value in environment.lex(source) if kind != "whitespace"]
    return any(
        first[0] == "block_begin" and second == ("name", "generation")
        for first, second in zip(tokens, tokens[1:], strict=False)
    )


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """Unlike Jinja's own filter, keeps <, >, & and ', and characters that are not ASCII."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
