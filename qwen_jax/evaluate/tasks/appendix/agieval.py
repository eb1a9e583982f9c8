"""AGIEval: 21 parts of exams in English and Chinese, zero-shot (report, Table 15).

Prompts and extraction are those of its authors, for completion: the first capital letter from A to
F; where several choices may be right, all of them. The answers of the two parts without choices are
graded as in MATH. The score is the mean over the parts, as in the authors' script. `agieval` reads
version 1.0 (data/v1), which the report had; `agieval_v1_1` the revised questions (data/v1_1), which
all have one right choice. Zhong et al. 2023.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from qwen_jax.evaluate.data_files import DataFolders, check_count
from qwen_jax.evaluate.task import Example, Generation, Questions, Task, Verdict
from qwen_jax.evaluate.tasks import published
from qwen_jax.evaluate.tasks.appendix import rows
from qwen_jax.grading.choices import capitals
from qwen_jax.grading.extract import extract
from qwen_jax.grading.math import grade as grade_math

LETTERS = "ABCDEFG"
ENGLISH = {
    "aqua-rat": 254, "gaokao-english": 306, "logiqa-en": 651, "lsat-ar": 230, "lsat-lr": 510,
    "lsat-rc": 269, "math": 1_000, "sat-en": 206, "sat-en-without-passage": 206, "sat-math": 220,
}  # fmt: skip
CHINESE = {
    "gaokao-biology": 210, "gaokao-chemistry": 207, "gaokao-chinese": 246,
    "gaokao-geography": 199, "gaokao-history": 235, "gaokao-mathcloze": 118, "gaokao-mathqa": 351,
    "gaokao-physics": 200, "jec-qa-ca": 1_000, "jec-qa-kd": 1_000, "logiqa-zh": 651,
}  # fmt: skip
ROWS = {
    "v1": ENGLISH | CHINESE,
    "v1_1": ENGLISH
    | CHINESE
    | {
        "gaokao-biology": 230, "gaokao-chemistry": 204, "gaokao-physics": 174,
        "jec-qa-ca": 533, "jec-qa-kd": 479,
    },
}  # fmt: skip
WITHOUT_ANSWER = {"v1": 1, "v1_1": 0}  # a row of jec-qa-kd
SEVERAL = frozenset({"gaokao-physics", "jec-qa-ca", "jec-qa-kd"})  # right choices, in version 1.0


def read(data: DataFolders, version: str) -> Questions:
    found, dropped = [], 0
    for part, count in ROWS[version].items():
        file = f"data/{version}/{part}.jsonl"
        own = list(rows.numbered(data, file, f"agieval/{version}/{part}.jsonl"))
        check_count(len(own), count, "questions", file)
        for index, (where, row) in enumerate(own):
            example = _example(index, part, row, where)
            if example.answer:
                found.append(example)
            else:
                dropped += 1
    check_count(dropped, WITHOUT_ANSWER[version], "rows without an answer", f"data/{version}")
    return Questions(tuple(found), dropped=dropped)


def _example(index: int, part: str, row: Mapping[str, Any], where: str) -> Example:
    question = rows.value(row, "question", str, where)
    passage = row.get("passage") or ""
    if not isinstance(passage, str):
        raise rows.malformed(f"the passage is {str(passage)[:60]!r}, not a text", where)
    # `question` identifies it in training text, `stem` is what the prompt has.
    fields: dict[str, Any] = {"question": f"{passage}\n{question}".strip()}
    fields |= {"passage": passage, "stem": question, "options": row.get("options")}
    if fields["options"] is None:
        return Example(index, fields, rows.value(row, "answer", str, where), part)
    options = rows.texts(row, "options", where)
    letters = LETTERS[: len(options)]
    label = row.get("label")  # "A", "A C", ["A", "C"], ["A", "。"] or []
    listed = label if isinstance(label, list) else [label]
    right = {one for text in listed for one in str(text) if one.isalnum()}
    if not right <= set(letters):
        raise rows.malformed(f"the label is {label!r}, not letters of {letters}", where)
    fields |= dict(zip(letters, options, strict=True))
    return Example(index, fields, "".join(sorted(right)), part)


def template(example: Example, shots: Sequence[Example]) -> str:
    fields, options = example.fields, example.fields["options"]
    if example.subject in ENGLISH:
        stem = f"{fields['passage']}Q: {fields['stem']}"
        if options is None:
            return f"{stem}\nA: The answer is"
        last = LETTERS[len(options) - 1]
        listed = " ".join(options)
        return f"{stem} Answer Choices: {listed}\nA: Among A through {last}, the answer is"
    stem = f"{fields['passage']}问题：{fields['stem']}"
    if options is None:
        return f"{stem}\n答案："
    last = LETTERS[len(options) - 1]
    return f"{stem} 选项：{' '.join(options)}\n答案：从A到{last}, 我们应选择"


def grade(text: str, example: Example) -> Verdict:
    if example.fields["options"] is None:
        found = extract(text, "math")
        if found.answer is None:
            return Verdict(False, *found)
        verdict = grade_math(found.answer, example.answer)
        return Verdict(verdict.equal, found.answer, f"{found.rule}; {verdict.rule}")
    letters = capitals(text)
    if example.subject in SEVERAL or len(example.answer) > 1:
        chosen, rule = "".join(sorted(set(letters))), "all letters"
    else:
        chosen, rule = "".join(letters[:1]), "first letter"
    return Verdict(chosen == example.answer, chosen or None, rule)


def gold(example: Example) -> str:
    if example.fields["options"] is None:
        return f" ${example.answer}$"
    return " " + "".join(f"({letter})" for letter in example.answer)


def _task(name: str, version: str) -> Task:
    return Task(
        name=name,
        protocol="qwen",
        read=functools.partial(read, version=version),
        template=template,
        files=tuple(f"data/{version}/{part}.jsonl" for part in ROWS[version]),
        counts=sum(ROWS[version].values()) - WITHOUT_ANSWER[version],
        source="Table 15",
        generation=Generation(("\n\n", "\nQ:", "\n问题："), 128, grade, symbolic=True, gold=gold),
        macro=True,
        groups={"English": frozenset(ENGLISH), "Chinese": frozenset(CHINESE)},
        published=published.TABLE_15["AGIEval"],
        checked=False,
    )


TASKS = (_task("agieval", "v1"), _task("agieval_v1_1", "v1_1"))
