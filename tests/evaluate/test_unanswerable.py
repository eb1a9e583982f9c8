"""Questions without an answer: their number, languages, and the task."""

import re

from qwen_jax.evaluate import TASKS
from qwen_jax.evaluate.data_files import DataFolders
from qwen_jax.evaluate.summary import ceiling

TASK = TASKS["unanswerable"]


def test_read_has_thirty_different_questions_in_each_language():
    examples = TASK.read(DataFolders([])).examples
    questions = [one.fields["question"] for one in examples]
    assert len(set(questions)) == 60
    for language, has_chinese in (("en", False), ("zh", True)):
        own = [one.fields["question"] for one in examples if one.fields["language"] == language]
        assert len(own) == 30
        assert all(bool(re.search("[\u4e00-\u9fff]", text)) == has_chinese for text in own)
    assert {one.subject for one in examples} == TASK.groups["English"] | TASK.groups["Chinese"]
    assert ceiling(TASK, examples) == 100


def test_grade_counts_every_other_answer_as_a_hallucination():
    example, generation = TASK.read(DataFolders([])).examples[0], TASK.generation
    assert generation is not None
    for text, correct, extracted in (
        ("I do not know this novel.", True, "does not know"),
        ("It has 12 chapters.", False, "answers"),
        ("", False, None),
    ):
        verdict = generation.grade(text, example)
        assert (verdict.correct, verdict.extracted) == (correct, extracted)
