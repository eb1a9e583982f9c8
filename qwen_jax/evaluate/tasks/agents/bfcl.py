"""The Berkeley Function-Calling Leaderboard, posed by ReAct: its sets `multiple` and `irrelevance`.

Not in the report; public items for what Table 6 measures. `bfcl_multiple` has 200 questions with
two to four functions: its score is that of BFCL, right name and accepted arguments, next to the
accuracy of selection. `bfcl_irrelevance` has 240 questions whose one function does not help. Only
the prompt differs from the leaderboard's. A part of a file is scored as it is; results say how many
of the questions it has. Patil et al.; bfcl_eval/data of ShishirPatil/gorilla.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from qwen_jax.errors import DataError
from qwen_jax.evaluate.data_files import DataFolders, parse_json
from qwen_jax.evaluate.task import Example, Generation, Questions, Task, Verdict
from qwen_jax.evaluate.tasks.agents import tool_use
from qwen_jax.grading import tool_calls
from qwen_jax.tokenizer.dialects import react

MULTIPLE, ANSWERS = "BFCL_v4_multiple.json", "BFCL_v4_multiple_answer.json"
IRRELEVANCE = "BFCL_v4_irrelevance.json"
_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}


def _lines(data: DataFolders, file: str) -> list[dict[str, Any]]:
    """Returns the rows of a file, which has one object per line despite its name."""
    name, content = data.read(file)
    lines = [one for one in content.splitlines() if one.strip()]
    return [parse_json(one, f"{name} line {index}") for index, one in enumerate(lines, 1)]


def read_multiple(data: DataFolders) -> Questions:
    right = {row["id"]: row["ground_truth"][0] for row in _lines(data, ANSWERS)}
    found = []
    for index, row in enumerate(_lines(data, MULTIPLE)):
        if row["id"] not in right:
            raise DataError(f"no answer to {row['id']}.", ANSWERS, "download both files again.")
        ((name, accepted),) = right[row["id"]].items()
        found.append(Example(index, _fields(row) | {"accepted": accepted}, name))
    return Questions(tuple(found))


def read_irrelevance(data: DataFolders) -> Questions:
    rows = _lines(data, IRRELEVANCE)
    return Questions(
        tuple(Example(index, _fields(row), "no call") for index, row in enumerate(rows))
    )


def _fields(row: Mapping[str, Any]) -> dict[str, Any]:
    question = "\n".join(message["content"] for message in row["question"][0])
    return {"question": question, "functions": [_json_schema(one) for one in row["function"]]}


def _json_schema(value: Any) -> Any:
    """Returns a description with the types of JSON schema; BFCL names those of Python."""
    if isinstance(value, list):
        return [_json_schema(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _TYPES.get(one, one) if key == "type" and isinstance(one, str) else _json_schema(one)
        for key, one in value.items()
    }


def template(example: Example, shots: Sequence[Example]) -> str:
    tools = [react.describe_function(one) for one in example.fields["functions"]]
    return react.prompt(example.fields["question"], tools)


def grade_multiple(text: str, example: Example) -> Verdict:
    call = tool_calls.first_call(text)
    if call is None:
        return Verdict(False, None, "no call", {"selection": 0.0, "rouge_l": 0.0})
    selected = call.name == example.answer
    functions = {one["name"]: one for one in example.fields["functions"]}
    required = functions[example.answer]["parameters"].get("required", ())
    accepted = example.fields["accepted"]
    is_right = selected and tool_calls.is_accepted(call.arguments, accepted, required)
    similar = tool_calls.input_similarity(call, _first(accepted))
    return Verdict(is_right, call.name, "a call", {"selection": selected, "rouge_l": similar})


def _first(accepted: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Returns the first accepted arguments, without those that may be left out."""
    return {name: _value(options[0]) for name, options in accepted.items() if "" not in options[:1]}


def _value(option: Any) -> Any:
    """Returns an accepted value; those of a nested object are lists of accepted ones."""
    if isinstance(option, dict):
        return {
            key: _value(each[0] if isinstance(each, list) and each else each)
            for key, each in option.items()
            if not (isinstance(each, list) and "" in each)
        }
    return [_value(each) for each in option] if isinstance(option, list) else option


def gold(example: Example) -> str:
    return tool_use.call_text(example.answer, _first(example.fields["accepted"]))


def first_tool(example: Example) -> str:
    function = example.fields["functions"][0]
    return tool_use.call_text(function["name"], {})


def _task(name: str, file: str, count: int, **settings: Any) -> Task:
    return Task(
        name=name,
        protocol="qwen",
        template=template,
        files=(file, ANSWERS) if name == "bfcl_multiple" else (file,),
        counts=count,
        source="not in the report",
        chat=True,
        **settings,
    )


TASKS = (
    _task(
        "bfcl_multiple",
        MULTIPLE,
        200,
        read=read_multiple,
        generation=Generation(
            tool_use.STOPS, 256, grade_multiple, gold=gold, floors={"first tool": first_tool}
        ),
    ),
    _task(
        "bfcl_irrelevance",
        IRRELEVANCE,
        240,
        read=read_irrelevance,
        generation=Generation(
            tool_use.STOPS,
            256,
            tool_use.grade_no_call,
            gold=tool_use.no_call,
            floors={"first tool": first_tool},
        ),
    ),
)
