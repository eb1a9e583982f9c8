"""The agent over tools of Hugging Face: programs, prompts, both modes, the published tasks."""

import json

import pytest

from qwen_jax.agent.huggingface.agent import HFAgent, fakes, from_tool
from qwen_jax.agent.huggingface.program import Program, ProgramError
from qwen_jax.agent.huggingface.prompts import chat_prompt, read_plan, run_prompt
from qwen_jax.agent.huggingface.record import Recorder, to_sft_rows
from qwen_jax.agent.tools.calculator import calculator
from qwen_jax.errors import ConfigError, DataError
from tests.helpers.scripted_model import react_tokenizer, scripted

RECORDED = {
    "translator": ("The translation of {text} to {lang}.", ["text", "lang"]),
    "reader": ("A sound of {text}.", ["text"]),
}


def run(code, **variables):
    return Program({"double": lambda n: 2 * n}, variables).run(code)


def test_program_runs_the_subset():
    code = (
        "total = 0\nfor n in [1, 2, 3]:\n    if n != 2:\n        total += double(n)\n"
        "a, b = (total, 'x')\nf'{a:.1f} {b} {len([a])}' if a > 1 and not b == 'y' else None"
    )
    assert run(code) == "8.0 x 1"
    assert run("x = {'k': [y, -1]}\nx['k'][0]", y=5) == 5
    program = Program({"double": lambda n: 2 * n}, {})
    program.run("print('a', double(2)); b = double(n=3)")
    assert (program.printed, program.calls, program.variables) == (
        ["a 4"],
        ["double"] * 2,
        {"b": 6},
    )
    assert program.run("b + 1") == 7


@pytest.mark.parametrize(
    "code, says",
    [
        ("import os", "not allowed"),
        ("().__class__", "not allowed"),
        ("double.__globals__", "not allowed"),
        ("(lambda: 1)()", "not allowed"),
        ("def f(): pass", "not allowed"),
        ("while True: pass", "not allowed"),
        ("[x for x in [1]]", "not allowed"),
        ("'a' * 10 ** 9", "not allowed"),
        ("2 ** 10 ** 9", "not allowed"),
        ("'%09d' % 3", "not allowed"),
        ("f'{1:>999999999}'", "format"),
        ("f'{double.__class__}'", "not allowed"),
        ("double = 3", "cannot be assigned"),
        ("open('x')", "there is no tool 'open'"),
        ("missing", "no variable 'missing'"),
        ("double('x', 'y')", "TypeError"),
        ("1 / 0", "ZeroDivisionError"),
        ("x = 'a'\nfor i in range(19):\n    x = x + x + x", "too long"),
        ("x = 3\nfor i in range(100):\n    x = x * x", "too large"),
        ("x = [1]\nfor i in range(60):\n    x = [x, x]\nstr(x)", "too long"),
        ("for i in range(19999):\n    i\n    i", "more than 20000 steps"),
        ("range(10 ** 9)", "not allowed"),
        ("range(1000000000)", "too long"),
        ("(" * 500, "not Python"),
        ("-" * 50_000 + "1", "nested|not Python"),
    ],
)
def test_program_refuses(code, says):
    with pytest.raises(ProgramError, match=says):
        run(code)


def test_read_plan_takes_explanations_and_code_apart():
    plan = read_plan(" tools: `reader`, `not a name`.\n\nAnswer:\n```py\nreader('x')\n```\nmore")
    assert plan.named_tools == ("reader",) and plan.code == "reader('x')"
    assert read_plan("no code").code == ""
    assert read_plan("```\nx = 1").code == "x = 1"


def test_run_mode_stops_before_another_task_and_keeps_nothing():
    reply = (
        " tool: `translator` to translate.\n\nAnswer:\n```py\nprint(translator(text, lang='en'))\n"
        '```\n\nTask: "another"\n```py\nreader(1)\n```'
    )
    model, engine = scripted(react_tokenizer(), [reply, reply])
    agent = HFAgent(model, fakes(RECORDED))
    outcome = agent.run("Translate `text`.", text="hola")
    assert outcome.printed == "The translation of hola to en." and outcome.error == ""
    assert outcome.used == outcome.plan.named_tools == ("translator",)
    assert "Task:" not in outcome.plan.code and not engine.busy
    assert run_prompt("Translate `text`.", {"reader": "Reads."}).count("Task:") == 3
    assert agent.run("Translate `text`.").error == "there is no variable 'text'"


def test_chat_mode_keeps_variables_and_what_was_said():
    script = [
        " I use `translator`.\n```py\nt = translator(text=text, lang='en')\n```\nHuman: more",
        " I use `reader`.\n```py\naudio = reader(t)\n```",
        " Hm.",
    ]
    model, engine = scripted(react_tokenizer(), script)
    agent = HFAgent(model, fakes(RECORDED))
    agent.chat("Translate `text`.", text="hola")
    second = agent.chat("Read it.")
    assert second.value == "A sound of The translation of hola to en.."
    assert "Human: Translate `text`.\n\nAssistant: I use `translator`." in engine.prompts[1]
    assert "Human: more" not in engine.prompts[1]
    agent.new_chat()
    assert agent.chat("Again.").error == "the reply has no code"
    assert (
        engine.prompts[2]
        .split("<|im_start|>user\n")[1]
        .startswith(chat_prompt("Again.", {t.name: t.description for t in fakes(RECORDED)}))
    )


def test_replies_are_rows_of_training_if_their_programs_ran(tmp_path):
    path = tmp_path / "record.jsonl"
    script = [
        " I use `translator`.\n```py\nt = translator(text=text, lang='en')\n```\nHuman: more",
        " Hm.",
        " I use `reader`.\n```py\naudio = reader(t)\n```",
    ]
    model, engine = scripted(react_tokenizer(), script)
    with Recorder(path) as recorder:
        agent = HFAgent(model, fakes(RECORDED), recorder)
        agent.chat("Translate `text`.", text="hola")
        agent.chat("Well?")
        agent.chat("Read it.")
    first, last = to_sft_rows(path)
    assert first["messages"][1]["content"] == script[0].removesuffix("\nHuman: more")
    prompts = [engine.prompts[i].split("<|im_start|>user\n")[1] for i in (0, 2)]
    for row, prompt in zip((first, last), prompts, strict=True):
        assert prompt.startswith(row["messages"][0]["content"] + "<|im_end|>")
    with pytest.raises(ConfigError, match="exists"):
        Recorder(path)
    path.write_text('{"prompt": 1}\n')
    with pytest.raises(DataError, match="not a reply"):
        list(to_sft_rows(path))


def test_our_tools_are_functions_of_programs():
    reply = " `calculator`\n```py\nx = calculator('2 ** 5')\ny = calculator(expression='1/0')\n```"
    model, _ = scripted(react_tokenizer(), [reply])
    outcome = HFAgent(model, [from_tool(calculator())]).run("32?")
    assert outcome.variables["x"] == "32" and "division by zero" in outcome.error


def test_published_answers_run(shared):
    path = shared / "data/agents/hf_agent_tasks.json"
    if not path.exists():
        pytest.skip(f"the answers that were published are not at {path}")
    data = json.loads(path.read_text())
    tools = {
        tool.name: tool.function for tool in fakes({k: v[:2] for k, v in data["tools"].items()})
    }
    steps = [[step] for step in data["run"]] + data["chat"]
    count = 0
    for chat in steps:
        variables = {}
        for step in chat:
            variables |= {name: f"<<{name}: image, sound>>" for name in step["inputs"]}
            answers = step["answer"] if isinstance(step["answer"], list) else [step["answer"]]
            results = [Program(tools, dict(variables)).run(answer) for answer in answers]
            assert all(isinstance(result, str) for result in results)
            Program(tools, variables).run(answers[0])
            count += 1
    assert count > 20
