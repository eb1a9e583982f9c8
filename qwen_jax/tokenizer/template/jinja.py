"""Renders a model's own chat template, as `transformers` does, in Jinja's sandbox.

A template comes with the weights, so it is somebody else's program: it sees plain JSON values only
and can change nothing.
"""

import datetime
import functools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from qwen_jax.errors import TokenizerError

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
      TokenizerError: jinja2 is not installed, or the template refuses the values or is malformed.
    """
    template = compiled(source).template
    try:
        return template.render(variables, _mark_generated=mark_generated)
    except Exception as error:  # whatever a template does: its own refusals, types, recursion
        raise TokenizerError(
            f"the chat template refuses the conversation: {error or type(error).__name__}.",
            "chat_template",
            "change the messages, tools or variables to those that the template takes.",
        ) from error


@functools.lru_cache(maxsize=32)
def compiled(source: str) -> Compiled:
    """Compiles a template. Raises as render does."""
    jinja2 = _jinja2()
    environment = _environment()
    try:
        return Compiled(environment.from_string(source), _has_generation(environment, source))
    except jinja2.TemplateError as error:
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
    import jinja2.sandbox

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_generation_tag(), jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


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
