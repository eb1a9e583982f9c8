"""HumanEval and MBPP for chat models, zero-shot. Report: 3.3, Table 5; 4.3, Table 10.

`humaneval_chat` is the released script's: the request names the signature and repeats the problem,
and the body of the function is taken from the answer and put behind the problem. Helper functions
and imports of the answer are lost. `humaneval_chat_full` runs all the code of the same answers.
`mbpp_chat` has the prompt of `mbpp_zero_shot` without its marker, and runs all the code; its script
is not published.
"""

import dataclasses
import re
from collections.abc import Sequence

from qwen_jax.evaluate.task import Example, Generation, Task, Verdict
from qwen_jax.evaluate.tasks import humaneval, mbpp
from qwen_jax.evaluate.tasks.code import published
from qwen_jax.grading.code import chat_code, qwen_chat_body
from qwen_jax.grading.programs import humaneval_program, mbpp_program, pack_chat_program

_MAX_NEW_TOKENS = 1024
_DOCSTRING = re.compile(r"\"\"\"(.*?)\"\"\"|'''(.*?)'''", re.DOTALL)


def humaneval_template(example: Example, shots: Sequence[Example]) -> str:
    prompt, name = example.fields["prompt"], re.escape(example.fields["entry_point"])
    signature = re.search(rf"def\s+({name}.*?):\s*\n", prompt)
    docstring = None if signature is None else _DOCSTRING.search(prompt, signature.end())
    if signature is None or docstring is None:
        return prompt
    lines = (docstring[1] or docstring[2] or "").split("\n")
    description = "\n".join(line.strip() for line in lines)
    return (
        f"Write a Python function `{signature[1]}` to solve the following problem:\n"
        f"{description}\n{prompt}"
    )


def grade_body(text: str, example: Example, *, unsafe: bool = False) -> Verdict:
    """Runs the problem with the body of the answer's function."""
    body = qwen_chat_body(text, example.fields["entry_point"])
    program = humaneval_program(example.fields, body)
    return humaneval.ran(*program, extracted=body, unsafe=unsafe)


def grade_full(text: str, example: Example, *, unsafe: bool = False) -> Verdict:
    """Runs all the code of the answer."""
    problem = {**example.fields, "declaration": example.fields["prompt"]}
    program = pack_chat_program(problem, text, "python").program
    tests = humaneval_program(example.fields, "").tests
    return humaneval.ran(program, tests, extracted=program, unsafe=unsafe)


def mbpp_template(example: Example, shots: Sequence[Example]) -> str:
    return mbpp.template(example, ()).removesuffix("\n[BEGIN]\n")


def grade_mbpp(text: str, example: Example, *, unsafe: bool = False) -> Verdict:
    """Runs all the code of the answer with the problem's asserts."""
    text = chat_code(text, _tested(example))
    return humaneval.ran(*mbpp_program(example.fields, text), extracted=text, unsafe=unsafe)


def _tested(example: Example) -> str:
    """Returns the definition that the first assert needs."""
    found = re.search(
        r"assert\s+\(*(?:(?:set|math\.isclose)\()*(\w+)\(", example.fields["test_list"][0]
    )
    return "" if found is None else f"def {found[1]}"


def _humaneval(name: str, grade) -> Task:
    return Task(
        name=name,
        protocol="qwen",
        read=humaneval.read,
        template=humaneval_template,
        files=("HumanEval.jsonl.gz",),
        counts=humaneval.QUESTIONS,
        source="Table 5",
        generation=Generation(
            (),
            _MAX_NEW_TOKENS,
            grade,
            sandboxed=True,
            gold=lambda e: f"```python\n{e.fields['prompt']}{e.fields['canonical_solution']}\n```",
        ),
        chat=True,
        published=published.HUMANEVAL_CHAT,
    )


MBPP = dataclasses.replace(
    next(task for task in mbpp.TASKS if task.name == "mbpp_zero_shot"),
    name="mbpp_chat",
    template=mbpp_template,
    source="Table 10",
    generation=Generation(
        (),
        _MAX_NEW_TOKENS,
        grade_mbpp,
        sandboxed=True,
        gold=lambda example: f"```python\n{example.fields['code']}\n```",
    ),
    chat=True,
    published=published.TABLE_10["MBPP"],
    checked=False,
)
TASKS = (
    _humaneval("humaneval_chat", grade_body),
    _humaneval("humaneval_chat_full", grade_full),
    MBPP,
)
SUITES = {
    "table10": ("humaneval", "mbpp_zero_shot"),
    "table10_chat": ("humaneval_chat", "mbpp_chat"),
}
