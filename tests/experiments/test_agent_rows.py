"""What agents record is accepted by experiments.sft: sessions of the interpreter, and programs."""

import json
import sys

import pytest

import experiments.sft as page
from qwen_jax import sandbox
from qwen_jax.agent import transcript
from qwen_jax.agent.huggingface.agent import HFAgent, from_tool
from qwen_jax.agent.huggingface.record import Recorder
from qwen_jax.agent.huggingface.record import to_sft_rows as rows_of_programs
from qwen_jax.agent.interpreter import Interpreter
from qwen_jax.agent.loop import Budgets, run
from qwen_jax.agent.tools.calculator import calculator
from qwen_jax.cli import flags
from qwen_jax.sandbox import programs
from tests.helpers.scripted_model import react_tokenizer, scripted
from tests.helpers.tiny_checkpoint import write

CELL = "Thought: I count.\nAction: python\nAction Input: ```py\nn = 6 * 7\nprint('seen', n)\n```"
LAST = "Thought: I know.\nFinal Answer: It is 42."
PROGRAM = "I will use the tools `calculator`.\n\n```py\nprint(calculator('2 ** 5'))\n```"


def interpreter_rows(folder):
    model, _ = scripted(react_tokenizer(), [CELL, LAST])
    path, budgets = folder / "session.jsonl", Budgets()
    interpreter = Interpreter(folder)
    tools, messages = [interpreter.tool()], [{"role": "user", "content": "6 * 7?"}]
    with transcript.Recorder(path, {"name": "m"}, model.dialect.name, tools, budgets) as to:
        to.question(messages)
        list(to.record(run(model, tools, messages, budgets)))
    interpreter.close()
    return transcript.to_sft_rows(path)


def program_rows(folder):
    model, _ = scripted(react_tokenizer(), [PROGRAM])
    with Recorder(folder / "programs.jsonl") as recorder:
        HFAgent(model, [from_tool(calculator())], recorder).run("What is 2 ** 5?")
    return rows_of_programs(folder / "programs.jsonl")


@pytest.fixture
def isolated():
    if sys.platform != "linux":
        pytest.skip("the layers are Linux's")
    try:
        programs.python(unsafe=False)
    except sandbox.SandboxError as error:
        pytest.skip(f"untrusted code cannot be isolated here: {error.where}")


def test_sft_trains_on_what_agents_wrote_and_not_on_what_tools_returned(isolated, tmp_path, capsys):
    data = tmp_path / "rows.jsonl"
    rows = [*interpreter_rows(tmp_path), *program_rows(tmp_path)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = write(tmp_path / "model", context_length=8192)
    arguments = [f"--init_from={model}", f"--data.conversations={data}", "--preview=9"]
    arguments += [
        "--data.eval_fraction=0",
        "--data.context_length=8192",
        f"--run_dir={tmp_path / 'run'}",
    ]
    page.main(flags.parse("", page.RECIPES, ["sft", "--recipe=smoke", *arguments])[1])
    shown = capsys.readouterr().out
    assert shown.count("<|im_start|>assistant") == 2
    trained = "".join(part.partition("⟧")[0] for part in shown.split("⟦")[1:])
    assert "print('seen', n)" in trained and "Final Answer: It is 42.<|im_end|>" in trained
    assert PROGRAM + "<|im_end|>" in trained
    assert "seen 42" in shown and "seen 42" not in trained and "6 * 7?" not in trained
