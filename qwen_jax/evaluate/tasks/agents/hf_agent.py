"""The Hugging Face agent in run mode and chat mode (report 3.4, Table 9).

The model explains which tools it uses, with their names in backticks, and writes a program over
them. Tools return texts that say what they would do, so results are compared for equality. Scores
are those of transformers' script: `score` is the share of programs with the right result;
`selection` and `used` take a quarter off for each missing or unexpected name in the explanation and
in the code; `code` is 1, 0.75 if the right result is in a variable, and otherwise 0.3, also for a
program that fails. A mute model thus scores 30 in `code`.

In chat mode an example is a step of a conversation: the steps before it are replied to by the model
itself, and its variables are kept. `hf_agent_run` and `hf_agent_chat` are items of ours
(experiments.generate_agent_data); those with `_published` are the script's 27 phrasings and 47
steps, few enough that a point or two says nothing.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qwen_jax.agent.huggingface import prompts
from qwen_jax.agent.huggingface.program import Program, ProgramError
from qwen_jax.evaluate.data_files import DataFolders, check_count
from qwen_jax.evaluate.task import Example, Generation, Next, Questions, Task, Verdict
from qwen_jax.evaluate.tasks.agents.tool_use import rows

FILE, PUBLISHED = "hf_agent.jsonl", "hf_agent_tasks.json"
RUN, CHAT = 540, 563
_NEEDED = {"id", "mode", "tools", "inputs", "tasks", "programs"}
_FAILED, _IN_STATE = 0.3, 0.75  # of transformers' script


def read(data: DataFolders, mode: str) -> Questions:
    found = [
        Example(
            index,
            row | {"question": "\n".join(row["tasks"])},
            row["programs"][-1],
            f"{len(row['tasks'])} steps" * (mode == "chat"),
        )
        for index, row in enumerate(rows(data, FILE, _NEEDED))
        if row["mode"] == mode
    ]
    return Questions(tuple(found))


def read_published(data: DataFolders, mode: str) -> Questions:
    """Every phrasing is an example; of a conversation, every step in each of its phrasings."""
    content = data.json(PUBLISHED)
    tools = {
        name: {
            "result": one[0],
            "parameters": [each.partition("=")[0] for each in one[1]],
            "description": one[0].replace("{", "`").replace("}", "`"),
            # "image must contain 'image'": another value is an error.
            "needs": one[2].split()[:1] if len(one) > 2 else [],
        }
        for name, one in content["tools"].items()
    }
    found = []
    for steps in [[one] for one in content["run"]] if mode == "run" else content["chat"]:
        for number, step in enumerate(steps):
            for phrasing in range(len(step["task"])):
                found.append(_published(tools, steps[: number + 1], phrasing, len(found)))
    check_count(len(found), {"run": 27, "chat": 47}[mode], "phrasings", PUBLISHED)
    return Questions(tuple(found))


def _published(
    tools: Mapping[str, Any], steps: Sequence[Mapping[str, Any]], phrasing: int, index: int
) -> Example:
    inputs: dict[str, str] = {}
    for step in steps:
        given = step["inputs"]
        inputs |= given if isinstance(given, dict) else {one: f"<<{one}>>" for one in given}
    answers = [one["answer"] for one in steps]
    options = [[one] if isinstance(one, str) else one for one in answers]
    fields = {
        "tools": tools,
        "inputs": inputs,
        "tasks": (said := [one["task"][min(phrasing, len(one["task"]) - 1)] for one in steps]),
        "question": "\n".join(said),
        "programs": [each[0] for each in options],
        "alternatives": options,
    }
    return Example(index, fields, fields["programs"][-1])


def functions(example: Example) -> dict[str, Callable[..., str]]:
    """Returns the tools as functions that say what they would do."""
    return {name: _fake(one) for name, one in example.fields["tools"].items()}


def _fake(tool: Mapping[str, Any]) -> Callable[..., str]:
    def function(*positional: Any, **named: Any) -> str:
        parameters = tool["parameters"]
        if len(positional) > len(parameters):
            raise TypeError(f"{len(positional)} arguments for {len(parameters)} parameters")
        values = dict(zip(parameters, positional, strict=False)) | named
        if unknown := values.keys() - set(parameters):
            raise TypeError(f"unknown parameter {', '.join(sorted(unknown))}")
        shown = re.findall(r"{(\w+)}", tool["result"])
        if missing := set(shown) - values.keys():
            raise TypeError(f"missing argument {', '.join(sorted(missing))}")
        for kind in tool.get("needs", ()):
            if _WANTED[kind] not in str(values[kind]):
                raise ValueError(f"{kind} is not {kind}: {str(values[kind])[:100]}")
        return tool["result"].format(**values)

    return function


_WANTED = {"image": "image", "audio": "sound"}


def _described(example: Example) -> dict[str, str]:
    return {name: one["description"] for name, one in example.fields["tools"].items()}


def run_template(example: Example, shots: Sequence[Example]) -> str:
    return prompts.run_prompt(example.fields["tasks"][0], _described(example))


def chat_template(example: Example, shots: Sequence[Example]) -> str:
    return prompts.chat_prompt(example.fields["tasks"][0], _described(example))


def _replies(text: str, example: Example) -> list[str]:
    """Returns the model's reply to each step of a transcript, in order."""
    found = []
    for task in example.fields["tasks"][1:]:
        reply, mark, rest = text.partition(_said(task))
        if not mark:
            break
        found.append(reply)
        text = rest
    return [*found, text]


def _said(task: str) -> str:
    return f"\n\nHuman: {task}\n\nAssistant:"


def follow(text: str, example: Example) -> Next | None:
    """Returns the next step of a conversation, with the replies before it."""
    replies, tasks = _replies(text, example), example.fields["tasks"]
    if len(replies) == len(tasks):
        return None
    past = [(task, reply.strip()) for task, reply in zip(tasks, replies, strict=False)]
    prompt = prompts.chat_prompt(tasks[len(replies)], _described(example), past)
    return Next([("user", prompt)], "", text + _said(tasks[len(replies)]))


def grade(text: str, example: Example) -> Verdict:
    """Returns whether the last program has the right result, after those before it."""
    variables = dict(example.fields["inputs"])
    tools = functions(example)
    plan, value, failed = prompts.Plan("", ""), None, True
    for reply in _replies(text, example):
        plan, value, failed = prompts.read_plan(reply), None, True
        try:
            value = Program(tools, variables).run(plan.code)
            failed = not plan.code
        except ProgramError:
            pass
    wanted, names = _wanted(example, tools)
    is_right = not failed and _shown(value, variables, plan.code) in wanted
    in_state = any(isinstance(one, str) and one in wanted for one in variables.values())
    also = {
        "selection": _overlap(set(plan.named_tools) & set(tools), names),
        "used": _overlap({name for name in tools if re.search(rf"\b{name}\b", plan.code)}, names),
        "code": 1.0 if is_right else _IN_STATE if in_state else _FAILED,
    }
    rule = "right" if is_right else "no code" if not plan.code else "fails" if failed else "other"
    return Verdict(is_right, plan.code or None, rule, also)


def _shown(value: Any, variables: Mapping[str, Any], code: str) -> Any:
    """Returns the result of a program: its last value, or of `print(NAME)` the variable's."""
    printed = re.search(r"print\((\w+)\)\s*\Z", code)
    return variables.get(printed[1]) if value is None and printed else value


def _wanted(example: Example, tools: Mapping[str, Callable[..., str]]) -> tuple[set, set[str]]:
    """Returns the right results, and the tools of the right program."""
    fields, variables, found = example.fields, dict(example.fields["inputs"]), set()
    programs = fields["programs"]
    for code in programs[:-1]:
        Program(tools, variables).run(code)
    for code in fields["alternatives"][-1] if "alternatives" in fields else programs[-1:]:
        after = dict(variables)
        found.add(_shown(Program(tools, after).run(code), after, code))
    return found, {name for name in tools if re.search(rf"\b{name}\(", programs[-1])}


def _overlap(found: set[str], wanted: set[str]) -> float:
    """Returns transformers' score of a set of names."""
    return max(0.0, 1.0 - 0.25 * len(wanted - found) - 0.25 * len(found - wanted))


def gold(example: Example) -> str:
    """Returns right replies to all steps."""
    text = ""
    for number, (task, code) in enumerate(
        zip(example.fields["tasks"], example.fields["programs"], strict=True)
    ):
        names = [name for name in example.fields["tools"] if re.search(rf"\b{name}\(", code)]
        listed = ", ".join(f"`{name}`" for name in names)
        said = _said(task) if number else ""
        text += f"{said} I will use the tools {listed}.\n\n```py\n{code}\n```"
    return text


def _task(mode: str, *, published: bool) -> Task:
    reader = read_published if published else read
    is_run = mode == "run"
    return Task(
        name=f"hf_agent_{mode}" + "_published" * published,
        protocol="qwen",
        read=lambda data: reader(data, mode),
        template=run_template if is_run else chat_template,
        files=(PUBLISHED if published else FILE,),
        counts=(27 if is_run else 47) if published else (RUN if is_run else CHAT),
        source="Table 9" if published else "Table 9, with items of ours",
        generation=Generation(
            prompts.RUN_STOPS if is_run else prompts.CHAT_STOPS,
            256,
            grade,
            gold=gold,
            floors={"empty program": lambda example: ""} if is_run else {},
            follow=None if is_run else follow,
        ),
        chat=True,
    )


TASKS = tuple(_task(mode, published=flag) for flag in (False, True) for mode in ("run", "chat"))
