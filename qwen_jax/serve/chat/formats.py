"""The grammar of an answer: response_format, and calls of tools that tool_choice forces.

Thoughts, where the model may have some, come before what the grammar is about.
"""

import json
from typing import Any, NamedTuple

from qwen_jax.errors import ConfigError
from qwen_jax.inference.constraints.grammar import Grammar, compiler, json_rule
from qwen_jax.serve.api.fields import Fields, short
from qwen_jax.serve.chat.prompt import ChatPrompt
from qwen_jax.serve.chat.tools import ToolUse
from qwen_jax.serve.errors import ApiError
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.dialects.answer import Thinking
from qwen_jax.tokenizer.dialects.calls import Dialect
from qwen_jax.tokenizer.dialects.hermes import HERMES
from qwen_jax.tokenizer.template import builtin

_FORMAT = ("name", "description", "schema", "strict")


class Schema(NamedTuple):
    """The schema of an answer, and the parameter that has it."""

    schema: Any
    where: str


def take_response_format(fields: Fields) -> Schema | None:
    """Removes response_format from a request and returns its schema; None: any text.

    Raises:
      ApiError: it is malformed; `where` is the field.
    """
    form = fields.take("response_format")
    if form is None:
        return None
    kind = form.get("type") if isinstance(form, dict) else form
    if kind == "text" and set(form) == {"type"}:
        return None
    if kind == "json_object" and set(form) == {"type"}:
        return Schema({"type": "object"}, "response_format")
    if kind != "json_schema" or set(form) - {"type", "json_schema"}:
        raise ApiError(
            f"response_format={short(form)} is not supported.",
            "response_format",
            'pass {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}, or the '
            "type json_object or text.",
        )
    return read_schema(form.get("json_schema"), "response_format.json_schema")


def read_schema(form: Any, where: str) -> Schema:
    """Returns the schema of an object with a name and a schema. Raises ApiError."""
    if not isinstance(form, dict):
        raise ApiError(f"{short(form)} is not an object.", where, "pass a name and a schema.")
    for key, kind in (("name", str), ("description", str), ("strict", bool)):
        if form.get(key) is not None and not isinstance(form[key], kind):
            raise ApiError(f"{key}={short(form[key])} is not a {kind.__name__}.", f"{where}.{key}")
    if unknown := form.keys() - set(_FORMAT):
        key = str(min(unknown))
        raise ApiError(
            f"unknown field {short(key)}.", f"{where}.{key[:60]}", "omit it.",
            code="unknown_parameter",
        )  # fmt: skip
    if not isinstance(form.get("schema"), dict):
        raise ApiError(
            f"schema={short(form.get('schema'))} is not an object.",
            f"{where}.schema",
            "pass a JSON schema.",
        )
    return Schema(form["schema"], f"{where}.schema")


def answer_grammar(
    tokenizer: Tokenizer,
    stop_ids: tuple[int, ...],
    prompt: ChatPrompt,
    tools: ToolUse,
    dialect: Dialect | None,
    schema: Schema | None,
) -> Grammar | None:
    """Returns the grammar of an answer; None: it may be any text.

    Raises:
      ApiError: a schema is not supported, or llguidance is not installed.
    """
    if schema is None and tools.choice != "required":
        return None
    where = "tools" if schema is None else schema.where
    rules = "" if schema is None else f"json: {_json(schema)}\n"
    if dialect is None:
        rules += "answer: json\n"
    else:  # an answer that follows the schema, or calls
        final = schema is not None and tools.choice != "required"
        rules += _calls(tokenizer, stop_ids, tools, dialect, prompt, final=final)
    thoughts = _thoughts(tokenizer, prompt.thinking)
    start = "start: thoughts answer\n" if thoughts else "start: answer\n"
    return _compile(tokenizer, stop_ids, start + thoughts + rules, where)


def _compile(tokenizer: Tokenizer, stop_ids: tuple[int, ...], lark: str, where: str) -> Grammar:
    try:
        return compiler(tokenizer, stop_ids).compile(lark, where)
    except ConfigError as error:
        code = "unsupported_parameter" if "llguidance" in error.what else "invalid_value"
        place = where if error.where == "grammar" else error.where
        raise ApiError(error.what, place, error.fix, code=code) from None


def _json(schema: Schema) -> str:
    try:
        return json_rule(schema.schema, schema.where)
    except ConfigError as error:
        raise ApiError(error.what, error.where, error.fix) from None


def _thoughts(tokenizer: Tokenizer, thinking: Thinking) -> str:
    """Returns the rule of thoughts before an answer; "": there are none."""
    if thinking is Thinking.NEVER:
        return ""
    end = f"THOUGHT {_token(tokenizer, '</think>')} /\\n*/"
    rule = end if thinking is Thinking.OPEN else f"({_token(tokenizer, '<think>')} {end})?"
    return f"thoughts: {rule}\nTHOUGHT: /(.|\\n)*/\n"


def _token(tokenizer: Tokenizer, name: str) -> str:
    """Returns a token in Lark; without such a token it is text."""
    token = tokenizer.special_tokens.get(name)
    return json.dumps(name) if token is None else f"<[{token}]>"


def _calls(
    tokenizer: Tokenizer,
    stop_ids: tuple[int, ...],
    tools: ToolUse,
    dialect: Dialect,
    prompt: ChatPrompt,
    *,
    final: bool,
) -> str:
    """Returns the rules of one call, or of several if the dialect and the request allow them.

    Args:
      final: whether the answer may also be the final one, which the rule `json` has.
    """
    bodies, schemas = [], []
    for index, name in enumerate(tools.names):
        position = [one["function"]["name"] for one in tools.definitions].index(name)
        where = f"tools[{position}].function.parameters"
        rule = _json(Schema({"type": "object"} | tools.parameters(name), where))
        # Compiled on its own first, so that an error names the tool.
        _compile(tokenizer, stop_ids, f"start: {rule}\n", where)
        schemas.append(f"arguments{index}: {rule}\n")
        if dialect is HERMES:
            head = json.dumps(f'{{"name": "{name}", "arguments": ')
            bodies.append(f'{head} arguments{index} "}}"')
        else:
            bodies.append(json.dumps(f"{name}\nAction Input: ") + f" arguments{index}")
    body = f"body: {' | '.join(bodies)}\n" + "".join(schemas)
    if dialect is HERMES:
        begin, end = (_token(tokenizer, name) for name in ("<tool_call>", "</tool_call>"))
        more = ' ("\\n" call)*' if tools.parallel else ""
        either = "json | calls" if final else "calls"
        calls = f'calls: call{more}\ncall: {begin} "\\n" body "\\n" {end}\n'
        return f"answer: {either}\n{calls}{body}"
    # The prompt may have "Thought:" already; otherwise a thought may come first.
    continued = prompt.opening == builtin.CONTINUED
    thought = '/ [^\\n]*/ "\\n"' if continued else '("Thought: " /[^\\n]*/ "\\n")?'
    either = '("Action: " body | "Final Answer: " json)' if final else '"Action: " body'
    return f"answer: {thought} {either}\n{body}"
