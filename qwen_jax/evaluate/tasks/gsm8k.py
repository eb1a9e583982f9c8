"""GSM8K: 1,319 word problems, by completion (report 2.6, Table 2; 3.3, Table 5; 5, Table 12).

Base models see the eight fixed examples of the released script, and the last run of digits counts.
Chat models see the question alone, or four fixed examples in the user's turn, and the last number
counts. `gsm8k@lm_eval` samples five examples from the training set for each question; an answer
must follow "####" (the score), or is the last number (score_flexible). Cobbe et al. 2021;
test.jsonl and train.jsonl, here gsm8k_test.jsonl and gsm8k_train.jsonl.
"""

import dataclasses
import random
from collections.abc import Sequence

from qwen_jax.errors import DataError
from qwen_jax.evaluate.data_files import DataFolders, check_count
from qwen_jax.evaluate.task import (
    LM_EVAL_MAX_NEW_TOKENS,
    Example,
    Generation,
    Questions,
    Task,
    Verdict,
)
from qwen_jax.evaluate.tasks import published
from qwen_jax.grading.extract import extract, lm_eval_normalized
from qwen_jax.grading.numbers import gsm8k_equal

QUESTIONS, TRAIN_QUESTIONS = 1_319, 7_473
BASE_SHOTS, CHAT_SHOTS = "qwen_gsm8k_8shot.txt", "qwen_gsm8k_chat_4shot.txt"
_LM_EVAL_SHOTS, _LM_EVAL_SEED = 5, 1234
_STEPS = "Let's think step by step\n"


def questions(data: DataFolders) -> tuple[Example, ...]:
    return _read(data, "test", QUESTIONS)


def _read(data: DataFolders, split: str, count: int) -> tuple[Example, ...]:
    file = f"gsm8k_{split}.jsonl"
    rows, found = data.json_lines(file, f"{split}.jsonl"), []
    for index, row in enumerate(rows):
        _, mark, answer = str(row.get("answer", "")).rpartition("#### ")
        if not mark or "question" not in row:
            raise DataError(
                "no question, or no answer behind ####.",
                f"{file} line {index + 1}",
                "download the file again.",
            )
        found.append(Example(index, row, answer.strip().replace(",", "")))
    check_count(len(found), count, "questions", file)
    return tuple(found)


def read_base(data: DataFolders) -> Questions:
    return Questions(questions(data), {"": (Example(0, {"text": data.text(BASE_SHOTS)}, ""),)})


def read_few_shot(data: DataFolders) -> Questions:
    return Questions(questions(data), {"": (Example(0, {"text": data.text(CHAT_SHOTS)}, ""),)})


def read_lm_eval(data: DataFolders) -> Questions:
    """Every question has examples of its own, sampled in the order of the questions."""
    examples, train = questions(data), _read(data, "train", TRAIN_QUESTIONS)
    rng = random.Random(_LM_EVAL_SEED)
    shots = {one.id: tuple(rng.sample(train, _LM_EVAL_SHOTS)) for one in examples}
    return Questions(examples, shots)


def template(example: Example, shots: Sequence[Example]) -> str:
    """Returns the text of the worked examples, which are one, and the question."""
    question = f"Question: {example.fields['question']}\n{_STEPS}"
    return "\n".join([*(one.fields["text"] for one in shots), question])


def chat_template(example: Example, shots: Sequence[Example]) -> str:
    """Returns the same as a user's turn, which has no newline at its end."""
    return template(example, shots).rstrip("\n")


def lm_eval_template(example: Example, shots: Sequence[Example]) -> str:
    def block(one: Example) -> str:
        return f"Question: {one.fields['question']}\nAnswer:"

    worked = "".join(f"{block(one)} {one.fields['answer']}\n\n" for one in shots)
    return worked + block(example)


def grade_base(text: str, example: Example) -> Verdict:
    found = extract(text, "gsm8k")
    wanted = extract(example.answer, "gsm8k").answer
    return Verdict(found.answer is not None and found.answer == wanted, *found)


def grade_chat(text: str, example: Example) -> Verdict:
    found = extract(text, "gsm8k_chat")
    return Verdict(gsm8k_equal(found.answer, example.answer), *found)


def grade_lm_eval(text: str, example: Example) -> Verdict:
    """lm-eval's strict-match is the verdict, and its flexible-extract another one."""
    wanted = lm_eval_normalized(example.fields["answer"])
    strict, flexible = (extract(text, kind) for kind in ("gsm8k_strict", "gsm8k_flexible"))

    def right(answer: str | None) -> bool:
        return answer is not None and lm_eval_normalized(answer) == wanted

    return Verdict(right(strict.answer), *strict, {"flexible": right(flexible.answer)})


def worked(example: Example) -> str:
    """Returns the distribution's own solution, which ends with "#### ANSWER"."""
    return example.fields["answer"]


GSM8K = Task(
    name="gsm8k",
    protocol="qwen",
    read=read_base,
    template=template,
    files=("gsm8k_test.jsonl", BASE_SHOTS),
    counts=QUESTIONS,
    source="Table 2",
    num_shots=8,
    generation=Generation(("\n\n\n", "\n\n", "Question:"), 512, grade_base, gold=worked),
    published=published.TABLE_2["GSM8K"],
)
CHAT = Task(
    name="gsm8k_chat",
    protocol="qwen",
    read=lambda data: Questions(questions(data)),
    template=lambda example, shots: example.fields["question"],
    files=("gsm8k_test.jsonl",),
    counts=QUESTIONS,
    source="Table 5",
    generation=Generation((), 512, grade_chat, gold=worked),
    chat=True,
    published=published.TABLE_5["GSM8K 0"],
)
CHAT_FEW_SHOT = Task(
    name="gsm8k_chat_few_shot",
    protocol="qwen",
    read=read_few_shot,
    template=chat_template,
    files=("gsm8k_test.jsonl", CHAT_SHOTS),
    counts=QUESTIONS,
    source="Table 5",
    num_shots=4,
    generation=Generation((), 512, grade_chat, gold=worked),
    chat=True,
    published=published.TABLE_5["GSM8K 8"],
)
LM_EVAL = dataclasses.replace(
    GSM8K,
    protocol="lm_eval",
    read=read_lm_eval,
    template=lm_eval_template,
    files=("gsm8k_test.jsonl", "gsm8k_train.jsonl"),
    num_shots=_LM_EVAL_SHOTS,
    generation=Generation(
        ("Question:", "</s>", "<|im_end|>"), LM_EVAL_MAX_NEW_TOKENS, grade_lm_eval, gold=worked
    ),
)
TASKS = (GSM8K, CHAT, CHAT_FEW_SHOT, LM_EVAL)
