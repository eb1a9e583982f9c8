"""BIG-Bench Hard: 27 tasks with chains of thought (report 2.6, Table 2; 3.3, Table 5).

Base models see three worked examples. `bbh_chat_few_shot` has the same prompt as a user's turn;
`bbh_chat` has the task's sentence, the question, and how to end. The scripts are not published.

Each task's examples are those of its authors' file. The answer is what follows "the answer is".
`bbh@lm_eval` has another end of the prompt, other stop strings, and averages over questions.
Suzgun et al. 2022; the folder bbh and the file bbh_cot_prompts.json.
"""

import dataclasses
import pathlib
import re
from collections.abc import Sequence

from qwen_jax.errors import DataError
from qwen_jax.evaluate.data_files import DataFolders, check_count
from qwen_jax.evaluate.task import Example, Generation, Questions, Task, Verdict
from qwen_jax.evaluate.tasks import published
from qwen_jax.grading.extract import extract

QUESTIONS = 6_511
PROMPTS = "bbh_cot_prompts.json"


def read(data: DataFolders) -> Questions:
    prompts, found, shots = data.json(PROMPTS), [], {}
    for subject in sorted(prompts):
        file = f"bbh/{subject}.json"
        rows = data.json(file).get("examples", [])
        for index, row in enumerate(rows):
            if "input" not in row or "target" not in row:
                raise DataError("no input or target.", f"{file} example {index}", "download it.")
            found.append(Example(index, {"question": row["input"]}, row["target"], subject))
        shots[subject] = (Example(0, {"text": prompts[subject]}, "", subject),)
    check_count(len(found), QUESTIONS, "questions", str(pathlib.PurePath("bbh")))
    return Questions(tuple(found), shots)


def template(example: Example, shots: Sequence[Example]) -> str:
    question = f"Q: {example.fields['question']}\nA: Let's think step by step."
    return "\n\n".join([*(one.fields["text"].strip() for one in shots), question])


def lm_eval_template(example: Example, shots: Sequence[Example]) -> str:
    """A newline follows each "step by step."; in a few examples of the authors it is a space."""
    worked = [re.sub(r"(?<=step by step\.)\s", "\n", one.fields["text"].strip()) for one in shots]
    question = f"Q: {example.fields['question']}\nA: Let's think step by step.\n"
    return "\n\n".join([*worked, question])


def read_chat(data: DataFolders) -> Questions:
    """Reads the same, with the sentence that begins each task's worked examples."""
    found = read(data)
    sentences = {
        subject: one.fields["text"].strip().partition("\n")[0]
        for subject, (one,) in found.shots.items()
    }
    examples = [
        dataclasses.replace(one, fields={**one.fields, "task": sentences[one.subject]})
        for one in found.examples
    ]
    return Questions(tuple(examples), found.shots)


def zero_shot_template(example: Example, shots: Sequence[Example]) -> str:
    return (
        f"{example.fields['task']}\n\nQ: {example.fields['question']}\nThink step by step, "
        'and end with "So the answer is", the answer, and a period.'
    )


def grade(text: str, example: Example) -> Verdict:
    found = extract(text, "bbh")
    return Verdict(found.answer == example.answer, *found)


def grade_lm_eval(text: str, example: Example) -> Verdict:
    found = extract(text, "bbh_lm_eval")
    return Verdict(found.answer == example.answer, *found)


def gold(example: Example) -> str:
    return f"the answer is {example.answer}."


def grade_chat(text: str, example: Example) -> Verdict:
    found = extract(text, "bbh_chat")
    return Verdict(found.answer == example.answer, *found)


BBH = Task(
    name="bbh",
    protocol="qwen",
    read=read,
    template=template,
    files=("bbh", PROMPTS),
    counts=QUESTIONS,
    source="Table 2",
    num_shots=3,
    generation=Generation(("\n\n", "\nQ:"), 1024, grade, gold=gold),
    macro=True,
    published=published.TABLE_2["BBH"],
)
LM_EVAL = dataclasses.replace(
    BBH,
    protocol="lm_eval",
    template=lm_eval_template,
    generation=Generation(("</s>", "Q", "\n\n"), 1024, grade_lm_eval, gold=gold),
    macro=False,
)
_CHAT = dataclasses.replace(
    BBH,
    name="bbh_chat",
    read=read_chat,
    template=zero_shot_template,
    source="Table 5",
    num_shots=0,
    generation=Generation((), 1024, grade_chat, gold=lambda e: f"So the answer is {e.answer}."),
    chat=True,
    published=published.TABLE_5["BBH 0"],
    checked=False,
)
_CHAT_FEW_SHOT = dataclasses.replace(
    _CHAT,
    name="bbh_chat_few_shot",
    template=template,
    num_shots=3,
    published=published.TABLE_5["BBH 3"],
)
TASKS = (BBH, LM_EVAL, _CHAT, _CHAT_FEW_SHOT)
