"""Open Natural Questions: NQ-open.dev.jsonl, several answers, exact match."""

import pytest

from qwen_jax.evaluate.tasks import TASKS
from qwen_jax.evaluate.tasks.appendix import natural_questions
from tests.helpers import benchmark_rows

TASK = TASKS["natural_questions"]
ROWS = (
    ("who wrote the letters from the tower", ["Ada Finch"]),
    ("when did the harbor line open", ["May 3, 1911", "1911"]),
    ("how many bells does st. mary's have", ["eight", "8"]),
    ("where is the river quell", ["in the north", "the north"]),
    ("who plays the miller in the film", ["Jo Lind-Berg"]),
    ("what is the capital of the island", ["Porto"]),
    ("when was the first kite festival", ["June 1920"]),
    ("who sings on the blue record", ["The Lamps", "Ida and the Lamps"]),
    ("what does the green flag mean", ["Go!"]),
    ("who found the cave", ["a shepherd"]),
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(natural_questions, "QUESTIONS", 10)
    rows = [{"question": question, "answer": answers} for question, answers in ROWS]
    benchmark_rows.write(tmp_path / "NQ-open.dev.jsonl", rows)
    return tmp_path


def test_natural_questions_are_graded_by_exact_match(folder):
    work = benchmark_rows.read(TASK, folder)
    assert work.prompt(work.examples[2]) == (
        "Answer these questions:\n\nQ: how many bells does st. mary's have?\nA:"
    )
    benchmark_rows.assert_gold_is_right(TASK, work)
    for index, text, correct in (
        (0, " ada  finch.", True),
        (0, " Ada", False),
        (1, " May 3, 1911", True),
        (1, " In 1911", False),
        (7, " lamps", True),
        (9, " The shepherd", True),
        (9, "", False),
    ):
        found = TASK.generation.verdict(text, work.examples[index])
        assert found.correct == correct and found.extracted == (text.strip() or None)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"answer": "1911"}, "answer is '1911', not a list"),
        ({"answer": []}, "not a list of texts"),
        ({"answer": [1911]}, "not a list of texts"),
        ({"question": " "}, "question is ' '"),
    ],
)
def test_natural_questions_refuse_malformed_rows(folder, change, what):
    benchmark_rows.assert_refused(
        TASK, folder, "NQ-open.dev.jsonl", 2, lambda row: row.update(change), what
    )
