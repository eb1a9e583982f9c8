"""GAOKAO-Bench: 1,781 objective questions of China's college entrance exam (report, Table 15).

Zero-shot, with the prompts of its authors' own file and their extraction (grading/choices.py). A
question with several parts is one prompt, and each of its parts is an example: 2,944 answers. The
score is the share of points. The authors give half of the points for a part of the right letters in
physics; here that is wrong. Zhang et al. 2023; the folders Data/Objective_Questions and Bench.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from qwen_jax.evaluate.data_files import DataFolders, check_count
from qwen_jax.evaluate.task import Example, Generation, Questions, Task, Verdict
from qwen_jax.evaluate.tasks import published
from qwen_jax.evaluate.tasks.appendix import rows
from qwen_jax.grading.choices import EXAM_KINDS, exam_answers

_FILES = {  # questions, and points of an answer
    "2010-2013_English_MCQs": (105, 1),
    "2010-2022_Biology_MCQs": (150, 6),
    "2010-2022_Chemistry_MCQs": (124, 6),
    "2010-2022_Chinese_Lang_and_Usage_MCQs": (56, 3),
    "2010-2022_Chinese_Modern_Lit": (29, 3),
    "2010-2022_English_Fill_in_Blanks": (30, 1.5),
    "2010-2022_English_Reading_Comp": (124, 2),
    "2010-2022_Geography_MCQs": (34, 4),
    "2010-2022_History_MCQs": (287, 4),
    "2010-2022_Math_II_MCQs": (218, 5),
    "2010-2022_Math_I_MCQs": (214, 5),
    "2010-2022_Physics_MCQs": (64, 6),
    "2010-2022_Political_Science_MCQs": (320, 4),
    "2012-2022_English_Cloze_Test": (26, 2),
}
QUESTIONS = {subject: count for subject, (count, _) in _FILES.items()}
POINTS = {subject: points for subject, (_, points) in _FILES.items()}
ANSWERS = 2_944
PROMPTS = "Bench/Obj_Prompt.json"
_FOLDERS = ("Data/Objective_Questions", "gaokao")


def read(data: DataFolders) -> Questions:
    prompts, found = _prompts(data), []
    for subject, count in QUESTIONS.items():
        name, _ = data.read(*(f"{folder}/{subject}.json" for folder in _FOLDERS))
        content = data.json(name)
        questions = content.get("example") if isinstance(content, dict) else None
        if not isinstance(questions, list):
            raise rows.malformed("no list `example`", name)
        check_count(len(questions), count, "questions", name)
        index = 0
        for number, row in enumerate(questions, 1):
            own = _parts(index, subject, row, prompts[subject], f"{name} example {number}")
            index += len(own)
            found += own
    check_count(len(found), ANSWERS, "answers", _FOLDERS[0])
    return Questions(tuple(found))


def _prompts(data: DataFolders) -> dict[str, tuple[str, str]]:
    """Returns for each file the type of its questions, and what stands before one."""
    name, _ = data.read(PROMPTS, "gaokao/Obj_Prompt.json")
    content = data.json(name)
    listed = content.get("examples") if isinstance(content, dict) else None
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise rows.malformed("no list `examples` of objects", name)
    found = {}
    for number, row in enumerate(listed, 1):
        where = f"{name} example {number}"
        keyword, kind, prefix = (
            rows.value(row, key, str, where) for key in ("keyword", "type", "prefix_prompt")
        )
        rows.position(kind, EXAM_KINDS, where)
        found[keyword] = (kind, prefix)
    if missing := sorted(QUESTIONS.keys() - found):
        raise rows.malformed(f"no prompt for {missing[0]}", name)
    return found


def _parts(
    index: int, subject: str, row: Any, prompt: tuple[str, str], where: str
) -> list[Example]:
    """Returns an example for each answer of a question."""
    if not isinstance(row, Mapping):
        raise rows.malformed("not an object", where)
    kind, prefix = prompt
    question = rows.value(row, "question", str, where)
    answers = rows.texts(row, "answer" if "answer" in row else "standard_answer", where)
    if any(set(one) - set(rows.LETTERS + "FG") or not one for one in answers):
        raise rows.malformed(f"the answers are {answers}, not letters", where)
    if row.get("score") != POINTS[subject]:
        raise rows.malformed(f"it has {row.get('score')} points, not {POINTS[subject]}", where)
    fields = {"question": question, "prefix": prefix, "kind": kind, "answers": tuple(answers)}
    return [
        Example(index + part, {**fields, "part": part}, answer, subject)
        for part, answer in enumerate(answers)
    ]


def template(example: Example, shots: Sequence[Example]) -> str:
    return f"{example.fields['prefix']}{example.fields['question'].strip()}\n"


def grade(text: str, example: Example) -> Verdict:
    answers, kind = example.fields["answers"], example.fields["kind"]
    found = exam_answers(text, kind, len(answers))
    if len(found) != len(answers):
        return Verdict(False, None, f"{kind}: {len(found)} of {len(answers)} answers")
    chosen = found[example.fields["part"]]
    return Verdict(chosen == example.answer, chosen, kind)


def gold(example: Example) -> str:
    """Returns a response with all answers of the question."""
    answers = example.fields["answers"]
    if example.fields["kind"] == "five_out_of_seven":
        return f"【答案】 {' '.join(answers)} <eoa>"
    return "\n".join(f"（{n}）【答案】 {one} <eoa>" for n, one in enumerate(answers, 1))


GAOKAO = Task(
    name="gaokao",
    protocol="qwen",
    read=read,
    template=template,
    files=(PROMPTS, *(f"{_FOLDERS[0]}/{subject}.json" for subject in QUESTIONS)),
    counts=ANSWERS,
    source="Table 15",
    # The beginnings of their prompts: a base model goes on with another question.
    generation=Generation(("请你做一道", "请回答下面的问题"), 1024, grade, gold=gold),
    points=POINTS,
    groups={
        name: frozenset(one for one in QUESTIONS if f"_{name}_" in one)
        for name in ("Chinese", "English", "Math")
    },
    published=published.TABLE_15["Gaokao"],
    checked=False,
)
TASKS = (GAOKAO,)
