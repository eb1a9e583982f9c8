"""experiments.agent: daily work in a folder, end to end; transcripts, batches, the terminal."""

import json
import signal
import subprocess
import sys

import pytest

import experiments.agent as page
from qwen_jax import sandbox
from qwen_jax.agent.events import Delta, Observation, Stopped
from qwen_jax.agent.terminal import Printer, has_color
from qwen_jax.cli import flags
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.sandbox import programs
from tests.helpers.scripted_model import hermes_tokenizer, react_tokenizer, scripted
from tests.helpers.tiny_checkpoint import ROOT, environment, write

REPORT = """\
Thought: The report has the total and the plot.
Action: python
Action Input: ```python
import csv
rows = list(csv.DictReader(open('sales.csv')))
months = sorted({row['month'] for row in rows})
with open('report.md', 'w') as file:
    file.write(f'# Sales\\n\\n{len(rows)} rows, {len(months)} months, total 60.6\\n\\n')
    file.write('![](sales.png)\\n')
```"""
WORK = [
    "Thought: Let me look at the files.\nAction: python\nAction Input: ```\n"
    "import os\nprint(*sorted(os.listdir('.')))\n```",
    ' The sums of the months are next.\nAction: table\nAction Input: {"file": "sales.csv", '
    '"operation": "group", "column": "amount", "by": "month"}',
    ' Is the total right?\nAction: calculator\nAction Input: {"expression": "30.3 + 30.3"}',
    ' Now the plot.\nAction: plot\nAction Input: {"y": [30.3, 30.3], "x": ["Feb", "Jan"], '
    '"kind": "bar", "file": "sales.png"}',
    REPORT.removeprefix("Thought:"),
    " I now know the final answer.\nFinal Answer: The total is 60.6; see report.md.",
]


@pytest.fixture(autouse=True)
def isolated():
    if sys.platform != "linux":
        pytest.skip("the layers are Linux's")
    try:
        programs.python(unsafe=False)
    except sandbox.SandboxError as error:
        pytest.skip(f"untrusted code cannot be isolated here: {error.where}")
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "sales"
    folder.mkdir()
    (folder / "sales.csv").write_text(
        "month,amount\n" + "\n".join(f"{m},{a}" for m in ("Jan", "Feb") for a in (10.1, 20.2))
    )
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the program with a scripted model and typed lines; returns what it prints."""

    def run(script, *arguments, lines=(), tokenizer=None):
        model, engine = scripted(tokenizer or react_tokenizer(), script)
        typed = iter(lines)
        monkeypatch.setattr(page, "load", lambda config: (model, {"name": "scripted"}))
        monkeypatch.setattr("builtins.input", lambda prompt: next(typed, None) or _end())
        recipes = {"default": page.Config()}
        page.main(flags.parse("", recipes, ["agent", "--checkpoint=x", *arguments])[1])
        return capsys.readouterr().out

    return run


def _end():
    raise EOFError


TOOLS = "--tools=python,table,calculator,plot"


def test_agent_sums_a_table_plots_it_and_writes_a_report(run, folder, tmp_path):
    pytest.importorskip("matplotlib")
    record = tmp_path / "session.jsonl"
    arguments = (f"--folder={folder}", TOOLS, f"--record={record}")
    shown = run(WORK, *arguments, lines=["Sum sales.csv, plot it, write a report."])
    assert (folder / "report.md").read_text() == (
        "# Sales\n\n4 rows, 2 months, total 60.6\n\n![](sales.png)\n"
    )
    assert (folder / "sales.png").read_bytes().startswith(b"\x89PNG")
    for text in (
        "Observation: stdout:\n\n```\nsales.csv\n```",
        "Observation: sum of amount by month:\nJan: 30.3\nFeb: 30.3",
        "Observation: 60.6",
        "Observation: ![plot](sales.png)",
        "files written: report.md",
        "Final Answer: The total is 60.6; see report.md.",
    ):
        assert text in shown
    assert "\x1b" not in shown  # not a terminal
    # The replay runs no tool and writes nothing.
    for name in ("report.md", "sales.png"):
        (folder / name).unlink()
    replayed = run(WORK, f"--replay={record}")
    assert "Final Answer: The total is 60.6" in replayed and "are the recorded ones" in replayed
    assert not (folder / "report.md").exists()
    with pytest.raises(DataError, match="differs"):
        run([*WORK[:-1], WORK[-1].replace("60.6", "61")], f"--replay={record}")


def test_agent_answers_a_file_of_questions_and_resumes(run, folder, tmp_path):
    questions, output = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    rows = [
        {"prompt": "Write.", "id": 1},
        {"messages": [{"role": "user", "content": "Loop."}]},
        {"question": "Hello"},
    ]
    questions.write_text("\n".join(map(json.dumps, rows)))
    write = "Action: python\nAction Input: open('out.txt', 'w').write('x' * 3)"
    loop = "Action: python\nAction Input: x"
    script = [write, "Final Answer: written", loop, loop, loop, "Final Answer: hi"]
    arguments = [f"--folder={folder}", "--tools=python", f"--input={questions}"]
    shown = run(script, *arguments, f"--output={output}", "--system=Be brief.")
    assert "2 of 3: repeats" in shown
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["answer"] for row in found] == ["written", None, "hi"]
    assert [row["stopped"] for row in found] == [None, "repeats", None]
    assert [row["calls"] for row in found] == [1, 3, 0] and found[0]["id"] == 1
    assert [m["role"] for m in found[0]["messages"]] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert (tmp_path / "answers.jsonl.files/00000/out.txt").read_text() == "xxx"
    assert not (folder / "out.txt").exists()  # each question has a copy
    whole = output.read_bytes()
    output.write_bytes(b"".join(whole.splitlines(True)[:2]))
    run(["Final Answer: hi"], *arguments, f"--output={output}", "--system=Be brief.")
    assert output.read_bytes() == whole
    with pytest.raises(ConfigError, match="system"):
        run([], *arguments, f"--output={output}", "--system=Be long.")
    questions.write_text('{"text": "no question"}\n')
    with pytest.raises(DataError, match="no question"):
        run([], *arguments, f"--output={tmp_path}/b.jsonl")


def test_agent_has_commands_and_keeps_the_conversation(run, tmp_path):
    block = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "6*7"}}\n</tool_call>'
    script = [block, "It is 42.", "As I said, 42."]
    lines = ["/tools", "/help", "6 * 7?", "Again?", "/reset", "/exit", "never"]
    shown = run(script, "--tools=calculator", lines=lines, tokenizer=hermes_tokenizer())
    assert "calculator: Computes an arithmetic expression exactly" in shown
    assert "Observation: 42\n" in shown and "As I said, 42.\n(new conversation)" in shown


def test_agent_refuses_flags_that_do_not_fit(tmp_path):
    def parse(*arguments):
        return flags.parse("", {"default": page.Config()}, ["agent", *arguments])[1]

    with pytest.raises(ConfigError, match="there is no model"):
        page.main(parse())
    for arguments, says in (
        (("--checkpoint=x", "--server=http://h"), "one model"),
        (("--server=http://h",), "--server and --model go together"),
        (("--checkpoint=x", "--input=a"), "--input and --output go together"),
        (("--checkpoint=x", "--record=a", "--replay=b"), "exclude each other"),
        (("--checkpoint=x", "--tool.language=fr"), "unknown language 'fr'"),
        (("--checkpoint=x", "--max_turns=0"), "at least 1"),
    ):
        with pytest.raises(ConfigError, match=says):
            parse(*arguments)


def test_agent_refuses_unknown_tools_and_takes_tools_of_the_user(run, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="did you mean 'calculator'"):
        run([], "--tools=calculater")
    (tmp_path / "my_tools.py").write_text(
        "from qwen_jax.agent.function import tool\n"
        "@tool\ndef double(n: int) -> int:\n    'Doubles.'\n    return 2 * n\nother = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    script = ['Action: double\nAction Input: {"n": 4}', "Final Answer: 8"]
    assert "Observation: 8\n" in run(script, "--tools=my_tools:double", lines=["2 * 4?"])
    for name, says in (("my_tools:none", "cannot import"), ("my_tools:other", "is not a Tool")):
        with pytest.raises(ConfigError, match=says):
            run([], f"--tools={name}")
    with pytest.raises(ConfigError, match="no such folder"):
        run([], f"--folder={tmp_path}/missing")


@pytest.mark.slow  # compiles a model, in processes of its own
def test_agent_records_and_replays_a_model_of_a_folder(tmp_path):
    write(tmp_path / "tiny", num_layers=1)
    command = [sys.executable, "-m", "experiments.agent", f"--checkpoint={tmp_path}/tiny"]
    command += ["--context=4096", "--max_tokens=60", "--sampling.temperature=1"]

    def start(*arguments, lines=""):
        done = subprocess.run(
            [*command, *arguments],
            cwd=ROOT,
            input=lines,
            env=environment(),
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout + done.stderr

    record = ("--tools=calculator,python", f"--record={tmp_path}/session.jsonl")
    code, shown = start(*record, lines="Hello\n/tools\nAgain\n")
    assert code == 0 and shown.count("(stopped: no answer after 60 tokens (max_tokens))") == 2
    assert "python: Runs Python code" in shown
    code, shown = start(f"--replay={tmp_path}/session.jsonl")
    assert code == 0 and "4 events are the recorded ones" in shown, shown
    code, shown = start(f"--replay={tmp_path}/session.jsonl", "--sampling.seed=1")
    assert code != 0 and "recorded with another seed" in shown


def test_printer_colors_by_kind_and_shows_no_control_characters(monkeypatch):
    texts = []
    printer = Printer(color=True, write=texts.append)
    for event in (
        Delta("thought", "Thought: hm\n"),
        Delta("call", "Action: x"),
        Observation("1", "x", "a\x1b[2Jb", files=("f.png",)),
        Delta("answer", "Final Answer: 3"),
        Stopped("turns", "no answer"),
    ):
        printer.show(event)
    assert "".join(texts) == (
        "\x1b[2mThought: hm\x1b[0m\n\x1b[36mAction: x\x1b[0m\n"
        "\x1b[33mObservation: a\ufffd[2Jb\x1b[0m\n\x1b[33m(file: f.png)\x1b[0m\n"
        "\x1b[1mFinal Answer: 3\x1b[0m\n\x1b[31m(stopped: no answer)\x1b[0m\n"
    )
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert has_color()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not has_color()
