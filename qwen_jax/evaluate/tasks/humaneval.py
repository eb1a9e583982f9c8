"""HumanEval: 164 Python functions from their docstrings, zero-shot, pass@1 (report, Tables 2, 10).

The released script cuts a completion at its first blank line, and so cuts 37 of the 164 canonical
solutions. `humaneval@lm_eval` stops at the next statement of the module instead. Programs run in
the sandbox, with the published asserts. Chen et al. 2021; HumanEval.jsonl.gz.
"""

from collections.abc import Sequence

from qwen_jax import sandbox
from qwen_jax.errors import DataError
from qwen_jax.evaluate.data_files import DataFolders, check_count
from qwen_jax.evaluate.task import Example, Generation, Questions, Task, Verdict
from qwen_jax.evaluate.tasks.code import published
from qwen_jax.grading import code, programs

QUESTIONS = 164
SECONDS, MEMORY_MB = 10.0, 1024


def read(data: DataFolders) -> Questions:
    file, found = "HumanEval.jsonl.gz", []
    for index, row in enumerate(data.json_lines(file, "HumanEval.jsonl")):
        missing = {"prompt", "test", "entry_point", "canonical_solution"} - row.keys()
        if missing:
            raise DataError(
                f"no {', '.join(sorted(missing))}.", f"{file} line {index + 1}", "download it."
            )
        found.append(Example(index, row, row["canonical_solution"]))
    check_count(len(found), QUESTIONS, "problems", file)
    return Questions(tuple(found))


def template(example: Example, shots: Sequence[Example]) -> str:
    return example.fields["prompt"]


def grade(text: str, example: Example, *, unsafe: bool = False) -> Verdict:
    """Runs the function with its asserts."""
    program = programs.humaneval_program(example.fields, text)
    return ran(*program, extracted=text, unsafe=unsafe)


def ran(program: str, tests: str, *, extracted: str, unsafe: bool = False) -> Verdict:
    """Runs a Python program and its asserts in the sandbox.

    Args:
      unsafe: run even where the kernel isolates neither files nor network.

    Raises:
      SandboxError: code cannot be isolated here, and `unsafe` is not set.
    """
    found = sandbox.check(program, tests, seconds=SECONDS, memory_mb=MEMORY_MB, unsafe=unsafe)
    return Verdict(found.passed, extracted, "asserts" if found.passed else found.reason)


def _task(protocol: str, stops: tuple[str, ...], max_new_tokens: int) -> Task:
    return Task(
        name="humaneval",
        protocol=protocol,
        read=read,
        template=template,
        files=("HumanEval.jsonl.gz",),
        counts=QUESTIONS,
        source="Table 2",
        generation=Generation(
            stops,
            max_new_tokens,
            grade,
            sandboxed=True,
            gold=lambda example: example.fields["canonical_solution"],
        ),
        published=published.HUMANEVAL,
    )


# The end of the text ends a completion anyway, and is no text.
_QWEN_STOPS = tuple(stop for stop in code.QWEN_STOPS if not stop.startswith("<|"))
TASKS = (_task("qwen", _QWEN_STOPS, 512), _task("lm_eval", code.CODEX_STOPS, 1024))
