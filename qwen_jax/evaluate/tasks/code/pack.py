"""HumanEvalPack: HumanEval's problems in six languages, zero-shot (report 4.3, Table 11).

    humanevalpack_LANGUAGE        base models continue the declaration and its comment
    humanevalpack_chat_LANGUAGE   chat models get the instruction, and the same declaration
    humanevalpack_fix_LANGUAGE    chat models get a wrong function with its tests, and fix it

Prompts are OctoPack's, `continue` and `instruct`; they keep the newline at the end of a
continuation, as in HumanEval. A continuation ends where its function's brace closes, in Python
before the next statement of the module. Programs run in the sandbox with the published asserts.
Muennighoff et al. 2023; humanevalpack.jsonl of each language, here humanevalpack_LANGUAGE.jsonl.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qwen_jax import sandbox
from qwen_jax.errors import DataError
from qwen_jax.evaluate.data_files import DataFolders, check_count
from qwen_jax.evaluate.task import Example, Generation, Mean, Questions, Task, Verdict
from qwen_jax.evaluate.tasks.code import packages, published
from qwen_jax.grading import code
from qwen_jax.grading.programs import Program, cut_body, pack_chat_program, pack_program

LANGUAGES = {  # name -> column of Table 11
    "python": "Python",
    "js": "JavaScript",
    "java": "Java",
    "go": "Go",
    "cpp": "C++",
    "rust": "Rust",
}
QUESTIONS = 164
SECONDS, MEMORY_MB = 10.0, 1024
_MAX_NEW_TOKENS = 1024
_FIELDS = """prompt declaration canonical_solution buggy_solution test entry_point
instruction""".split()


def file_of(language: str) -> str:
    return f"humanevalpack_{language}.jsonl"


def read(data: DataFolders, language: str) -> Questions:
    file, found = file_of(language), []
    for index, row in enumerate(data.json_lines(file)):
        if missing := [key for key in _FIELDS if key not in row]:
            raise DataError(
                f"no {', '.join(missing)}.", f"{file} line {index + 1}", "download it again."
            )
        found.append(Example(index, row, row["canonical_solution"]))
    check_count(len(found), QUESTIONS, "problems", file)
    return Questions(tuple(found))


def continue_template(example: Example, shots: Sequence[Example]) -> str:
    return example.fields["prompt"]


def instruct_template(example: Example, shots: Sequence[Example]) -> str:
    return f"{example.fields['instruction'].strip()}\n\n{example.fields['prompt']}".strip()


def fix_template(example: Example, shots: Sequence[Example]) -> str:
    fields = example.fields
    wrong = f"{fields['declaration']}{fields['buggy_solution']}\n{fields['test']}"
    return f"{wrong}\nFix bugs in {fields['entry_point']}.\n\n{fields['declaration']}".strip()


def continued(problem: Mapping[str, Any], text: str, language: str) -> Program:
    """Returns the program of a continuation, which may go on behind its function."""
    return pack_program(problem, cut_body(text, language), language)


def grade(language: str, program_of: Callable[..., Program]) -> Callable[..., Verdict]:
    """Returns a grader that runs a completion's program with the problem's tests.

    Args:
      program_of: problem, completion, language -> program.
    """

    def run(text: str, example: Example, *, unsafe: bool = False) -> Verdict:
        made = program_of(example.fields, text, language)
        found = sandbox.check(
            *made,
            seconds=SECONDS,
            memory_mb=MEMORY_MB,
            language=language,
            files=packages.files(language),
            unsafe=unsafe,
        )
        return Verdict(found.passed, made.program, "asserts" if found.passed else found.reason)

    return run


def answered(example: Example) -> str:
    """Returns the canonical solution as a chat model writes it."""
    return f"```\n{example.fields['prompt']}{example.fields['canonical_solution']}\n```"


def _task(language: str, form: str = "") -> Task:
    chat = bool(form)
    templates = {"": continue_template, "chat": instruct_template, "fix": fix_template}
    return Task(
        name="_".join(filter(None, ("humanevalpack", form, language))),
        protocol="qwen",
        read=lambda data: read(data, language),
        template=templates[form],
        files=(file_of(language),),
        counts=QUESTIONS,
        source="OctoPack" if form == "fix" else "Table 11",
        generation=Generation(
            code.BIGCODE_STOPS if language == "python" and not chat else (),
            _MAX_NEW_TOKENS,
            grade(language, pack_chat_program if chat else continued),
            sandboxed=True,
            language=language,
            gold=answered if chat else lambda example: example.fields["canonical_solution"],
        ),
        chat=chat,
        published={} if form == "fix" else published.TABLE_11[LANGUAGES[language]],
        checked=False,
    )


def _name(form: str) -> str:
    return f"humanevalpack_{form}".rstrip("_")


_FORMS = {
    form: tuple(_task(language, form) for language in LANGUAGES) for form in ("", "chat", "fix")
}
TASKS = tuple(task for tasks in _FORMS.values() for task in tasks)
MEANS = {
    _name(form): Mean(
        tuple(task.key for task in tasks), {} if form == "fix" else published.TABLE_11["mean"]
    )
    for form, tasks in _FORMS.items()
}
SUITES = {
    **{name: mean.tasks for name, mean in MEANS.items()},
    "table11": MEANS["humanevalpack"].tasks,
    "table11_chat": MEANS["humanevalpack_chat"].tasks,
}
