"""A tool: what the model reads about it, and what runs when the model calls it. Report: 3.4."""

import dataclasses
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qwen_jax.errors import ConfigError, unknown_name
from qwen_jax.tokenizer.dialects.calls import Dialect

LANGUAGES = ("en", "zh")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # OpenAI's rule, which servers enforce
_CODE_FORMAT = {
    "en": "Enclose the code within triple backticks (`) at the beginning and end of the code.",
    "zh": "此工具的输入应为代码块,开头和结尾使用三个反引号(`)。",
}
_FENCE = re.compile(r"^```(?:[\w+-]*[ \t]*\n)?(.*?)(?:\n?```)?$", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Result:
    """What a tool returns.

    Fields:
      text: what the model reads.
      is_error: whether the call failed; the text then says why.
      files: paths of files that the call wrote, for people.
    """

    text: str
    is_error: bool = False
    files: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a running call may spend.

    Fields:
      deadline: on time.monotonic()'s clock.
      cancelled: whether the user has stopped the turn.
    """

    deadline: float = float("inf")
    cancelled: Callable[[], bool] = lambda: False

    def seconds(self, at_most: float) -> float:
        """Returns the seconds that are left, at least 0."""
        return max(0.0, min(at_most, self.deadline - time.monotonic()))


Run = Callable[[dict[str, Any], Limits], Result | str]


@dataclasses.dataclass(frozen=True)
class Tool:
    """A tool.

    Args:
      name: what the model calls it: letters, digits, "_" and "-".
      description: what it does, in English.
      run: takes the arguments, which fit `parameters`, and limits. Whatever it raises becomes an
        observation.
      parameters: JSON schema of the arguments, an object.
      description_zh: the description in Chinese; "": the English one is used.
      text_parameter: the one parameter that is plain text, such as code. In ReAct, the input is
        this text in triple backticks, as the report's code interpreter has it, and not JSON.
      concurrent: whether two calls may run at the same time.
      close: frees what the tool holds.

    Raises:
      ConfigError: the name is not one that models and servers accept.
    """

    name: str
    description: str
    run: Run
    parameters: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"type": "object", "properties": {}}
    )
    description_zh: str = ""
    text_parameter: str | None = None
    concurrent: bool = False
    close: Callable[[], None] = lambda: None

    def __post_init__(self):
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"{self.name[:100]!r} is not a name of a tool.",
                "Tool(name)",
                "use up to 64 letters, digits, '_' and '-'.",
            )
        if self.parameters.get("type") != "object":
            raise ConfigError(
                f"the parameters of {self.name} are not the schema of an object.",
                "Tool(parameters)",
                'pass {"type": "object", "properties": {...}}.',
            )

    def definition(self, dialect: Dialect, language: str = "en") -> dict[str, Any]:
        """Returns the tool as OpenAI's API and chat templates have it.

        Args:
          dialect: how the model writes calls; in ReAct, plain text is described as such.
          language: "en" or "zh".
        """
        description = self.description_zh if language == "zh" else ""
        description = description or self.description
        parameters: Mapping[str, Any] = self.parameters
        if self.text_parameter and dialect.name == "react":
            description, parameters = f"{description} {_CODE_FORMAT[language]}", {}
        function: dict[str, Any] = {"name": self.name, "description": description}
        if parameters:
            function["parameters"] = parameters
        return {"type": "function", "function": function}

    def arguments(self, text: str) -> tuple[dict[str, Any] | None, str]:
        """Reads the arguments of a call.

        Returns:
          The arguments, or None and what is wrong with them. JSON in a code block counts as JSON.
        """
        text = text.strip()
        if self.text_parameter:
            found = _object(text)
            if found is not None and set(found) == {self.text_parameter}:
                return found, ""
            return {self.text_parameter: _unfenced(text)}, ""
        try:
            found = json.loads(_unfenced(text) or "{}", parse_constant=_refuse_constant)
        except RecursionError:
            return None, "the arguments are nested too deeply"
        except ValueError as error:
            return None, f"the arguments are not JSON: {error}"
        if not isinstance(found, dict):
            return None, f"the arguments are not a JSON object: {text[:100]}"
        return found, ""


def select(tools: Sequence[Tool], name: str) -> Tool:
    """Returns the tool with a name. Raises ConfigError, which suggests the closest name."""
    for tool in tools:
        if tool.name == name:
            return tool
    raise unknown_name("tool", name, [tool.name for tool in tools], "the call")


def check_names(tools: Sequence[Tool]) -> None:
    """Raises ConfigError if two tools share a name."""
    names = [tool.name for tool in tools]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"two tools are named {twice[0]!r}.", "tools", "rename one of them.")


def _object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _unfenced(text: str) -> str:
    """Returns the text inside of triple backticks, if it begins with them."""
    found = _FENCE.match(text)
    return found[1] if found else text


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")
