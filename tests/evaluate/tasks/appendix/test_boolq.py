"""BoolQ: dev.jsonl with a passage, a question and true or false."""

import pytest

from qwen_jax.evaluate.tasks import TASKS
from qwen_jax.evaluate.tasks.appendix import boolq
from tests.helpers import benchmark_rows

TASK = TASKS["boolq"]
QUESTIONS = (
    ("is the lantern hotel still open", "The Lantern Hotel closed in spring.", False),
    ("can otters hold hands", "Otters asleep on water often hold hands.", True),
    ("is a tomato a fruit", "Botanists call the tomato a fruit.", True),
    ("does the north line stop at mill road", "The north line passes Mill Road.", False),
    ("is glass made from sand", "Sand is melted to make glass.", True),
    ("do all owls hunt at night", "Some owls hunt by day.", False),
    ("was the old bridge rebuilt", "The old bridge was rebuilt in stone.", True),
    ("is the lake saltwater", "The lake is fed by rain and is fresh.", False),
    ("can the door be opened from inside", "From inside, the door opens freely.", True),
    ("does the train carry bicycles", "Bicycles are not carried.", False),
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(boolq, "QUESTIONS", 10)
    benchmark_rows.write(
        tmp_path / "boolq/dev.jsonl",
        [
            {"question": question, "title": "t", "answer": answer, "passage": passage}
            for question, passage, answer in QUESTIONS
        ],
    )
    return tmp_path


def test_boolq_reads_its_rows(folder):
    work = benchmark_rows.read(TASK, folder)
    assert work.prompt(work.examples[1]) == (
        "Otters asleep on water often hold hands.\nQuestion: can otters hold hands?\nAnswer:"
    )
    assert TASK.choices(work.examples[1]) == (" no", " yes")
    assert [one.answer for one in work.examples[:4]] == ["no", "yes", "yes", "no"]
    assert work.examples[0].texts() == ("is the lantern hotel still open",)
    benchmark_rows.assert_gold_is_right(TASK, work)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"answer": 1}, "answer is '1', not a bool"),
        ({"answer": "true"}, "answer is 'true'"),
        ({"passage": ""}, "passage is ''"),
        ({"question": None}, "question is 'None'"),
    ],
)
def test_boolq_refuses_malformed_rows(folder, change, what):
    benchmark_rows.assert_refused(
        TASK, folder, "boolq/dev.jsonl", 3, lambda row: row.update(change), what
    )
