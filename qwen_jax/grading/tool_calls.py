"""Verdicts on a call of a tool: its name, its arguments, and how close its input is. Report: 3.4.

Rouge-L is that of the report's Table 6, over words and single Chinese characters. Qwen's script
takes the tokens of the evaluated model instead, so its scores of two vocabularies do not compare.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_WORD = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+|[^\w\s]")
_FENCE = re.compile(r"\A```\w*\n?(.*?)\n?```\Z", re.DOTALL)


class ReadCall(NamedTuple):
    """The first call of a text.

    Attributes:
      name: of the tool.
      input: its text.
      arguments: the input as an object; None: it is not one.
    """

    name: str
    input: str
    arguments: dict[str, Any] | None


def first_call(text: str) -> ReadCall | None:
    """Returns the first Action of a transcript with its input; None: there is none.

    As in Qwen's script, a call needs both labels at the beginning of a line.
    """
    _, label, rest = f"\n{text}".partition("\nAction:")
    name, mark, rest = rest.partition("\nAction Input:")
    if not label or not mark:
        return None
    written = re.split(r"\n(?:Observation|Thought|Action|Final Answer):", rest, maxsplit=1)[0]
    return ReadCall(name.strip(), written.strip(), _object(written.strip()))


def calls_a_tool(text: str) -> bool:
    """Returns whether a text begins a call, also an incomplete one."""
    return "\nAction:" in f"\n{text}"


def rouge_l(text: str, other: str) -> float:
    """Returns the F-measure of the longest common subsequence of words, from 0 to 1."""
    one, two = _WORD.findall(text), _WORD.findall(other)
    if not one or not two:
        return float(one == two)
    lengths = [0] * (len(two) + 1)
    for word in one:
        before = 0
        for index, each in enumerate(two, 1):
            found = before + 1 if word == each else max(lengths[index], lengths[index - 1])
            before, lengths[index] = lengths[index], found
    return 2 * lengths[-1] / (len(one) + len(two))


def input_similarity(call: ReadCall | None, arguments: Mapping[str, Any]) -> float:
    """Returns Rouge-L of a call's input and the right arguments, both as JSON with sorted keys.

    An input that is not a JSON object scores 0, and so does no call.
    """
    if call is None or call.arguments is None:
        return 0.0
    return rouge_l(_json(call.arguments), _json(arguments))


def is_accepted(
    arguments: Mapping[str, Any] | None,
    accepted: Mapping[str, Sequence[Any]],
    required: Sequence[str],
) -> bool:
    """Returns whether every argument has one of its accepted values, by the rule of BFCL.

    An argument that may be "" may be left out. Texts are compared without case, spaces and
    punctuation; an integer is accepted for a float, and true is not 1.
    """
    if arguments is None or any(name not in arguments for name in required):
        return False
    if any(name not in accepted for name in arguments):
        return False
    for name, options in accepted.items():
        if name not in arguments:
            if "" not in options:
                return False
        elif not any(_is_equal(arguments[name], option) for option in options):
            return False
    return True


def _is_equal(value: Any, option: Any) -> bool:
    if isinstance(value, bool) or isinstance(option, bool):
        return value is option
    if isinstance(value, str) and isinstance(option, str):
        return _plain(value) == _plain(option)
    if isinstance(value, list) and isinstance(option, list):
        return len(value) == len(option) and all(map(_is_equal, value, option))
    if isinstance(value, dict) and isinstance(option, dict):
        # The values of a nested object are lists of accepted ones.
        return is_accepted(
            value,
            {key: each if isinstance(each, list) else [each] for key, each in option.items()},
            (),
        )
    if isinstance(value, int | float) and isinstance(option, int | float):
        return value == option
    return type(value) is type(option) and value == option


def _plain(text: str) -> str:
    return re.sub(r"[ ,./\-_*^]", "", text).lower().replace("'", '"')


def _object(text: str) -> dict[str, Any] | None:
    if fenced := _FENCE.match(text):
        text = fenced[1]
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
