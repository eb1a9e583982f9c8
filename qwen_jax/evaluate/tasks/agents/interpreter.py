"""The code interpreter: mathematics, charts and general files (report 3.4, Tables 7 and 8).

The model writes cells of Python by ReAct, reads what they return, and answers, after at most three
cells. A result is right if the gold number or text is both in what the code returned and in the
final answer; if the wanted file was written; or if a chart shows the gold data. `executable` is the
share of first cells that run without an error, as in Table 7. For the verdict all cells run once
more in a fresh session, so nothing that the model wrote as an observation counts.

The items are ours (experiments.generate_agent_data): the report's 295 are not public. Its charts
are judged by a vision-language model, ours by their data (charts.py).
"""

import contextlib
import math
import pathlib
import re
import tempfile
from collections.abc import Iterator, Sequence

from qwen_jax.agent import interpreter
from qwen_jax.agent.calls import shorten, without_labels
from qwen_jax.agent.tool import Result
from qwen_jax.evaluate.data_files import DataFolders
from qwen_jax.evaluate.task import Example, Generation, Next, Questions, Task, Verdict
from qwen_jax.evaluate.tasks.agents import charts
from qwen_jax.evaluate.tasks.agents.tool_use import rows
from qwen_jax.grading import tool_calls
from qwen_jax.tokenizer.dialects import react

FILE, TOOL = "code_interpreter.jsonl", "code_interpreter"
COUNTS = {"math": 148, "visualization": 326, "general": 116}  # twice those of the report
MAX_CELLS, CELL_SECONDS, MAX_OBSERVATION = 3, 20.0, 2000
_NEEDED = {"id", "category", "level", "language", "question", "files", "gold", "program"}
_OBSERVATION = "\nObservation:"
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:[eE][+-]?\d+)?")
_ANSWERS = {"en": "Final Answer: The result is {}.", "zh": "Final Answer: 结果是{}。"}
_FILES = {"en": "Files in the current folder: {}.", "zh": "当前目录中的文件：{}。"}


def read(data: DataFolders, category: str) -> Questions:
    found = []
    for index, row in enumerate(rows(data, FILE, _NEEDED)):
        if row["category"] == category:
            gold = row["gold"]
            answer = str(gold.get("number", gold.get("text", gold.get("file", "a chart"))))
            subject = " ".join(filter(None, (row["language"], row["level"])))
            found.append(Example(index, row, answer, subject))
    return Questions(tuple(found))


def template(example: Example, shots: Sequence[Example]) -> str:
    """Returns the report's prompt with one tool."""
    question, language = example.fields["question"], example.fields["language"]
    if example.fields["files"]:
        question += "\n" + _FILES[language].format(", ".join(example.fields["files"]))
    tool = react.describe_function(interpreter.definition(TOOL, language))
    return react.prompt(question, [tool])


def cells(text: str) -> list[str]:
    """Returns the code of each call of a transcript; of a call that is not of the tool, ""."""
    found = []
    for part in _parts(text):
        call = tool_calls.first_call(part)
        if call is not None:
            found.append(_code(call) if call.name == TOOL else "")
    return found


def _parts(text: str) -> list[str]:
    """Returns what the model wrote between observations."""
    first, *others = f"\n{text}".split(_OBSERVATION)
    return [first, *("\n" + one.partition("\nThought:")[2] for one in others)]


def _code(call: tool_calls.ReadCall) -> str:
    """Returns the code: in backticks, or the field `code` of JSON, or the plain input."""
    if call.arguments is not None and isinstance(call.arguments.get("code"), str):
        return call.arguments["code"]
    fenced = re.search(r"```(?:\w*\n)?(.*?)(?:```|\Z)", call.input, re.DOTALL)
    return fenced[1] if fenced else call.input.strip("`")


@contextlib.contextmanager
def _session(example: Example, unsafe: bool) -> Iterator[interpreter.Interpreter]:
    with tempfile.TemporaryDirectory(prefix="qwen-jax-cells-") as folder:
        for name, content in example.fields["files"].items():
            (pathlib.Path(folder) / pathlib.Path(name).name).write_text(content, encoding="utf-8")
        session = interpreter.Interpreter(folder, cell_seconds=CELL_SECONDS, unsafe=unsafe)
        try:
            yield session
        finally:
            session.close()


def _run(session: interpreter.Interpreter, code: str) -> Result:
    if not code.strip():
        return Result(f"Error: there is no code, or the tool is not {TOOL}.", is_error=True)
    return session.run(code)


def follow(text: str, example: Example, *, unsafe: bool = False) -> Next | None:
    """Returns the transcript with what its last cell returns, after all cells before it.

    Raises:
      SandboxError: code cannot be isolated here, and `unsafe` is not set.
    """
    written = cells(text)
    pending = tool_calls.first_call(_parts(text)[-1]) is not None
    if not pending or len(written) > MAX_CELLS:
        return None
    result = Result("")
    with _session(example, unsafe) as session:
        for code in written:
            result = _run(session, code)
    shown = without_labels(shorten(result.text, MAX_OBSERVATION)[0])
    begun = f"{text.rstrip()}{_OBSERVATION} {shown}\nThought:"
    return Next([("user", template(example, ()))], begun, begun)


def grade(text: str, example: Example, *, unsafe: bool = False) -> Verdict:
    """Runs all cells and compares what they return, and the answer, with what is right.

    Raises:
      SandboxError: as `follow` does.
    """
    written, gold = cells(text), example.fields["gold"]
    answer = _parts(text)[-1].rpartition("Final Answer:")[2].strip()
    if not written:
        return Verdict(False, answer or None, "no code", {"executable": 0.0})
    with _session(example, unsafe) as session:
        if "chart" in gold:
            session.run(charts.RECORD)
        results = [_run(session, code) for code in written[:MAX_CELLS]]
        executable = {"executable": float(not results[0].is_error)}
        if "chart" in gold:
            shown = session.run(charts.PRINT).text.partition("```\n")[2].rpartition("\n```")[0]
            wrong = charts.matches(shown, gold["chart"])
            return Verdict(wrong is None, wrong or "the chart", wrong or "chart", executable)
        if "file" in gold:
            path = session.folder / gold["file"]
            text = path.read_text("utf-8", "replace") if path.is_file() else ""
            same = text.split() == gold["content"].split()
            return Verdict(same, text[:200] or None, "file", executable)
    if all(result.is_error for result in results):
        return Verdict(False, answer or None, "an error in each cell", executable)
    returned = "\n".join(result.text for result in results if not result.is_error)
    if not _has(returned, gold):
        return Verdict(False, answer or None, "not in the execution result", executable)
    rule = "in result and answer" if (right := _has(answer, gold)) else "not in the answer"
    return Verdict(right, answer or None, rule, executable)


def _has(text: str, gold: dict) -> bool:
    """Returns whether a text has the gold text, or a number within 0.1 % of the gold number."""
    if "text" in gold:
        return re.search(rf"(?<!\w){re.escape(gold['text'])}(?!\w)", text) is not None or (
            not gold["text"].isascii() and gold["text"] in text
        )
    wanted = gold["number"]
    tolerance = 0.0 if isinstance(wanted, int) else 1e-3
    found = (float(one.replace(",", "")) for one in _NUMBER.findall(text))
    return any(math.isclose(one, wanted, rel_tol=tolerance, abs_tol=0.0) for one in found)


def gold(example: Example) -> str:
    fields = example.fields
    written = f"\nAction: {TOOL}\nAction Input: ```py\n{fields['program']}\n```"
    answer = _ANSWERS[fields["language"]].format(example.answer)
    return f"Thought: A short program does it.{written}{_OBSERVATION} ...\nThought: Done.\n{answer}"


def _groups(category: str) -> dict[str, frozenset[str]]:
    if category != "visualization":
        return {"English": frozenset({"en"}), "Chinese": frozenset({"zh"})}
    return {level: frozenset({f"en {level}", f"zh {level}"}) for level in ("hard", "easy")}


TASKS = tuple(
    Task(
        name=f"code_interpreter_{category}",
        protocol="qwen",
        read=lambda data, category=category: read(data, category),
        template=template,
        files=(FILE,),
        counts=count,
        source="Tables 7 and 8, with items of ours",
        generation=Generation(
            (_OBSERVATION,), 512, grade, sandboxed=True, gold=gold, follow=follow
        ),
        groups=_groups(category),
        chat=True,
    )
    for category, count in COUNTS.items()
)
