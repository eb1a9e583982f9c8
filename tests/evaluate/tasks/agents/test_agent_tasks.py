"""The agent benchmarks: right completions are right, others are not, and graders are strict."""

import json

import pytest

from experiments import generate_agent_data
from qwen_jax import sandbox
from qwen_jax.errors import DataError
from qwen_jax.evaluate.data_files import DataFolders
from qwen_jax.evaluate.summary import ceiling, floors
from qwen_jax.evaluate.task import Example
from qwen_jax.evaluate.tasks import SUITES, TASKS
from qwen_jax.evaluate.tasks.agents import charts, hf_agent, interpreter


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("agents")
    settings = {**vars(generate_agent_data.SMOKE), "output": str(folder)}
    generate_agent_data.main(generate_agent_data.Config(**settings))
    return DataFolders([folder])


def verdict(key: str, text: str, example: Example):
    generation = TASKS[key].generation
    assert generation is not None
    return generation.verdict(text, example)


@pytest.mark.parametrize("key", [*SUITES["table6"], "hf_agent_run", "hf_agent_chat"])
def test_gold_is_right_and_a_floor_is_not(data, key):
    examples = TASKS[key].read(data).examples
    assert len(examples) >= 8 and ceiling(TASKS[key], examples) == 100
    below = floors(TASKS[key], examples)
    assert all(score < 100 for name, score in below.items() if name != "no call")
    assert key != "tool_use_no_call" or below["no call"] == 100 and below["first tool"] == 0


def test_tool_use_scores_the_first_call_of_several(data):
    example = TASKS["tool_use"].read(data).examples[5]
    name, right = example.answer, example.fields["arguments"]
    written = f"Action: {name}\nAction Input: {json.dumps(right)}"
    found = verdict("tool_use", f"Thought: x\n{written}", example)
    assert found.correct and found.also == {
        "rouge_l": 1.0, "exact_arguments": True, "valid_json": True,
    }  # fmt: skip
    found = verdict("tool_use", f"Action: other\nAction Input: {{}}\n{written}", example)
    assert not found.correct and found.rule == "a call of an unknown tool"
    found = verdict("tool_use", f"Action: {name}\nAction Input: [1", example)
    assert found.correct and not found.also["valid_json"] and found.also["rouge_l"] == 0
    assert verdict("tool_use", f"I would use {name}.", example).rule == "no call"
    assert not verdict("tool_use_no_call", "Thought: x\nAction: any", example).correct


def test_a_row_without_its_fields_is_an_error(tmp_path):
    (tmp_path / "tool_use.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(DataError, match="(?s)no arguments.*line 1.*generate_agent_data"):
        TASKS["tool_use"].read(DataFolders([tmp_path]))


@pytest.mark.parametrize("key", ["bfcl_multiple", "bfcl_irrelevance"])
def test_bfcl_gold_is_right(shared, key):
    examples = TASKS[key].read(DataFolders([shared / "data" / "agents"])).examples
    assert ceiling(TASKS[key], examples) == 100
    assert floors(TASKS[key], examples)["first tool"] == 0


@pytest.mark.parametrize("mode, count", [("run", 27), ("chat", 47)])
def test_hf_agent_published_tasks_have_27_phrasings_and_47_steps(shared, mode, count):
    task = TASKS[f"hf_agent_{mode}_published"]
    examples = task.read(DataFolders([shared / "data" / "agents"])).examples
    assert len(examples) == count and ceiling(task, examples) == 100


def hf_example(**fields) -> Example:
    tools = {
        name: {"result": f"{name} of {{x}}", "parameters": ["x"], "description": ""}
        for name in ("draw", "read")
    }
    given = {"tools": tools, "inputs": {"x": "<<x>>"}, "tasks": ["Do it."]}
    return Example(0, given | {"programs": ["print(read(draw(x)))"]} | fields, "")


def test_hf_agent_grades_as_the_script_of_transformers_does():
    example = hf_example(programs=["result = read(draw(x))\nprint(result)"])
    for text, correct, selection, used, code in (
        ("`draw` and `read`\n```py\nprint(read(draw(x)))\n```", False, 1, 1, 0.3),
        ("`draw` and `read`\n```py\nread(draw(x))\n```", True, 1, 1, 1),
        ("`draw`\n```py\na = read(draw(x))\nb = draw(x)\n```", False, 0.75, 1, 0.75),
        ("```py\nread(x)\n```", False, 0.5, 0.75, 0.3),
        ("```py\nmissing(x)\n```", False, 0.5, 0.5, 0.3),
        ("", False, 0.5, 0.5, 0.3),
    ):
        found = verdict("hf_agent_run", text, example)
        also = {"selection": selection, "used": used, "code": code}
        assert (found.correct, found.also) == (correct, also), text


def test_hf_agent_chat_goes_on_with_the_models_own_replies():
    example = hf_example(tasks=["Draw `x`.", "Read it."], programs=["a = draw(x)", "b = read(a)"])
    first = " `draw`\n```py\nmine = draw(x)\n```"
    step = hf_agent.follow(first, example)
    assert step is not None and step.begun == ""
    ((role, prompt),) = step.messages
    assert role == "user" and "mine = draw(x)" in prompt and "Human: Read it." in prompt
    whole = step.transcript + " `read`\n```py\nread(mine)\n```"
    assert hf_agent.follow(whole, example) is None
    assert verdict("hf_agent_chat", whole, example).correct
    assert not verdict("hf_agent_chat", step.transcript + "```py\nread(x)\n```", example).correct


def needs_sandbox():
    try:
        sandbox.run("", seconds=5, memory_mb=256)
    except sandbox.SandboxError as error:
        pytest.skip(f"untrusted code cannot be isolated here: {error.where}")


def call(code: str) -> str:
    return f"Thought: x\nAction: {interpreter.TOOL}\nAction Input: ```py\n{code}\n```"


MATH = Example(
    0, {"language": "en", "question": "2 + 40?", "files": {}, "gold": {"number": 42}}, "42", "en"
)


def test_interpreter_needs_the_number_in_execution_and_answer():
    needs_sandbox()
    key = "code_interpreter_math"
    for text, correct, rule in (
        (f"{call('print(2 + 40)')}\nObservation: x\nThought: y\nFinal Answer: 42", True, None),
        (f"{call('print(2)')}\nObservation: 42\nThought: y\nFinal Answer: 42", False, "execution"),
        (f"{call('print(42)')}\nObservation: 42\nThought: y\nFinal Answer: 43", False, "answer"),
        (f"{call('print(4')}\nObservation: 42\nThought: 42\nFinal Answer: 42", False, "an error"),
        ("Thought: easy\nFinal Answer: 42", False, "no code"),
    ):
        found = verdict(key, text, MATH)
        assert found.correct == correct and (rule or "in result") in found.rule, text
    assert verdict(key, call("print(4"), MATH).also == {"executable": 0}
    assert verdict(key, call("print(4)"), MATH).also == {"executable": 1}


def test_interpreter_continues_after_what_a_cell_returns():
    needs_sandbox()
    text = call("a = 41")
    step = interpreter.follow(text, MATH)
    assert step is not None and step.begun == step.transcript
    assert step.begun.endswith("\nObservation: Finished execution.\nThought:")
    text = f"{step.transcript} more\n{call('print(a + 1)')}"
    step = interpreter.follow(text, MATH)
    assert step is not None and "stdout:\n\n```\n42\n```" in step.begun
    assert interpreter.follow(step.transcript + " done\nFinal Answer: 42", MATH) is None
    text = "\nObservation: x\nThought: y\n".join([call("1")] * 4)
    assert interpreter.follow(text, MATH) is None  # more than three cells


def test_interpreter_gold_is_right_and_files_are_compared(data):
    needs_sandbox()
    for key in ("code_interpreter_math", "code_interpreter_general"):
        assert ceiling(TASKS[key], TASKS[key].read(data).examples) == 100
    example = TASKS["code_interpreter_general"].read(data).examples[-1]
    assert not verdict("code_interpreter_general", call("print('done')"), example).correct


GOLD = {"kind": "bar", "labels": ["a", "b"], "values": [1, 2]}


def test_charts_compare_data_without_order():
    for series, wrong in (
        (["bar", ["b", "a"], [2, 1]], None),
        (["bar", ["a", "b"], [2, 1]], "other data"),
        (["bar", ["a"], [1]], "other data"),
        (["line", ["a", "b"], [1, 2]], "another kind of chart: line"),
    ):
        assert charts.matches(json.dumps([[series]]), GOLD) == wrong
    assert charts.matches("[]", GOLD) == charts.matches("{", GOLD) == "no figure"
    pie = {"kind": "pie", "labels": ["a", "b"], "values": [1, 3]}
    assert charts.matches(json.dumps([[["pie", ["b", "a"], [0.75, 0.25]]]]), pie) is None


@pytest.mark.slow  # each figure imports matplotlib in a session of its own
def test_interpreter_reads_charts_back_from_the_figure(data):
    pytest.importorskip("matplotlib")
    needs_sandbox()
    task = TASKS["code_interpreter_visualization"]
    examples = task.read(data).examples
    assert ceiling(task, examples) == 100
    found = verdict(task.key, call("print(1)"), examples[0])
    assert not found.correct and found.rule == "no figure" and found.also["executable"] == 1
