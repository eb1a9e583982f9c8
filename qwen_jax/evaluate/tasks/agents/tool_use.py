"""Tool use by ReAct: up to five candidate tools, all unseen in training (report 3.4, Table 6).

`tool_use` has questions that need a tool: its score is the accuracy of selection, next to Rouge-L
of the input, exact arguments and valid JSON. `tool_use_no_call` has questions that need none: its
score is 100 less the false-positive rate, which says little without the other, since a mute model
has no false positive. As in Qwen's script, only the first call counts.

The items are ours (experiments.generate_agent_data), since Qwen's are not public; so scores do not
compare with those of the report.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from qwen_jax.data.chat import react
from qwen_jax.errors import DataError
from qwen_jax.evaluate.data_files import DataFolders
from qwen_jax.evaluate.task import Example, Generation, Questions, Task, Verdict
from qwen_jax.grading import tool_calls

FILE = "tool_use.jsonl"
CALLS, NO_CALLS = 600, 300
STOPS = ("\nObservation:",)
_NEEDED = {"id", "language", "kind", "question", "tools", "tool", "arguments", "transcript"}
_NO_CALL = {
    "en": "Thought: None of the tools helps here.\nFinal Answer: I cannot help.",
    "zh": "Thought: 这些工具帮不上忙。\nFinal Answer: 我帮不上忙。",
}
_WORD = re.compile(r"[\u3400-\u9fff]|[a-z]+")


def rows(data: DataFolders, file: str, needed: set[str]) -> list[dict[str, Any]]:
    """Returns the rows of a generated file.

    Raises:
      DataError: it is missing, or a row lacks a field.
    """
    found = data.json_lines(file)
    for number, row in enumerate(found, 1):
        if missing := needed - row.keys():
            raise DataError(
                f"no {', '.join(sorted(missing))}.",
                f"{file} line {number}",
                "write the file again with experiments.generate_agent_data.",
            )
    return found


def read_calls(data: DataFolders) -> Questions:
    return _read(data, calls=True)


def read_no_calls(data: DataFolders) -> Questions:
    return _read(data, calls=False)


def _read(data: DataFolders, *, calls: bool) -> Questions:
    found = []
    for index, row in enumerate(rows(data, FILE, _NEEDED)):
        if (row["tool"] is not None) != calls:
            continue
        kind = f"{len(row['tools'])} tools" if calls else row["kind"]
        found.append(Example(index, row, row["tool"] or "no call", f"{row['language']} {kind}"))
    return Questions(tuple(found))


def template(example: Example, shots: Sequence[Example]) -> str:
    """Returns the report's prompt."""
    return react.prompt(example.fields["question"], _tools(example))


def _tools(example: Example) -> list[react.Tool]:
    return [
        react.Tool(**{**one, "parameters": tuple(one["parameters"])})
        for one in example.fields["tools"]
    ]


def grade_call(text: str, example: Example) -> Verdict:
    """Returns whether the first call is of the right tool; its input is scored next to that."""
    call = tool_calls.first_call(text)
    right = example.fields["arguments"]
    selected = call is not None and call.name.lower() == example.answer.lower()
    also = {
        "rouge_l": tool_calls.input_similarity(call, right),
        "exact_arguments": selected and call is not None and call.arguments == right,
        "valid_json": call is not None and call.arguments is not None,
    }
    if call is None:
        return Verdict(False, None, "no call", also)
    names = {one["name_for_model"].lower() for one in example.fields["tools"]}
    rule = "a call" if call.name.lower() in names else "a call of an unknown tool"
    return Verdict(selected, call.name, rule, also)


def grade_no_call(text: str, example: Example) -> Verdict:
    """Returns whether no tool is called; an empty text abstains, and calls none."""
    called = tool_calls.calls_a_tool(text)
    return Verdict(not called, "a call" if called else "no call" if text.strip() else None, "call")


def gold(example: Example) -> str:
    return example.fields["transcript"]


def call_text(name: str, arguments: Mapping[str, Any]) -> str:
    """Returns a completion that calls a tool."""
    written = json.dumps(arguments, ensure_ascii=False)
    return f"Thought: I should use a tool.\nAction: {name}\nAction Input: {written}"


def first_tool(example: Example) -> str:
    """A floor: the first tool, without arguments."""
    return call_text(example.fields["tools"][0]["name_for_model"], {})


def same_words(example: Example) -> str:
    """A floor that needs no model: the tool whose description has most words of the question."""
    asked = set(_WORD.findall(example.fields["question"].lower()))

    def shared(tool: Mapping[str, Any]) -> int:
        text = f"{tool['name_for_human']} {tool['description_for_model']}".lower()
        return len(asked & set(_WORD.findall(text)))

    return call_text(max(example.fields["tools"], key=shared)["name_for_model"], {})


def no_call(example: Example) -> str:
    """A floor: never calls a tool."""
    return _NO_CALL[example.fields.get("language", "en")]


FLOORS = {"first tool": first_tool, "most words in common": same_words, "no call": no_call}


def _groups(kinds: Sequence[str]) -> dict[str, frozenset[str]]:
    return {
        "English": frozenset(f"en {kind}" for kind in kinds),
        "Chinese": frozenset(f"zh {kind}" for kind in kinds),
        **{kind: frozenset({f"en {kind}", f"zh {kind}"}) for kind in kinds},
    }


TOOL_USE = Task(
    name="tool_use",
    protocol="qwen",
    read=read_calls,
    template=template,
    files=(FILE,),
    counts=CALLS,
    source="Table 6, with items of ours",
    generation=Generation(STOPS, 256, grade_call, gold=gold, floors=FLOORS),
    groups=_groups([f"{number} tools" for number in range(1, 6)]),
    chat=True,
)
NO_CALL = Task(
    name="tool_use_no_call",
    protocol="qwen",
    read=read_no_calls,
    template=template,
    files=(FILE,),
    counts=NO_CALLS,
    source="Table 6, with items of ours",
    generation=Generation(STOPS, 256, grade_no_call, gold=gold, floors=FLOORS),
    groups=_groups(["off_topic", "near_miss", "about"]),
    chat=True,
)
TASKS = (TOOL_USE, NO_CALL)
