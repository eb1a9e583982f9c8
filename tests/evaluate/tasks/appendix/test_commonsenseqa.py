"""CommonsenseQA: dev_rand_split.jsonl, with the first eight rows of the training file as shots."""

import pytest

from qwen_jax.evaluate.tasks import TASKS
from qwen_jax.evaluate.tasks.appendix import commonsenseqa
from tests.helpers import benchmark_rows

TASK = TASKS["commonsenseqa"]
QUESTIONS = (
    ("Where do you keep milk cold?", "oven fridge shelf desk car", "B"),
    ("What do you open when it rains?", "book umbrella tin drawer letter", "B"),
    ("Where does a captain work?", "ship kitchen farm mine shop", "A"),
    ("What do you use to cut paper?", "spoon glue scissors rope cup", "C"),
    ("Where do you borrow books?", "bank garage beach library cinema", "D"),
    ("What is a bed for?", "sleeping cooking racing singing digging", "A"),
    ("Where do fish live?", "trees clouds water attics nests", "C"),
    ("What do you wear on your feet?", "gloves hats scarves ties shoes", "E"),
    ("What tells the time?", "clock spade plate door fence", "A"),
    ("Where do you see a play?", "theater bakery pharmacy garage forge", "A"),
)


def rows(prefix: str) -> list[dict]:
    return [
        {
            "answerKey": key,
            "id": f"{prefix}{i}",
            "question": {
                "question_concept": "c",
                "choices": [
                    {"label": label, "text": text}
                    for label, text in zip("ABCDE", choices.split(), strict=True)
                ],
                "stem": f"{prefix}{stem} ",
            },
        }
        for i, (stem, choices, key) in enumerate(QUESTIONS)
    ]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(commonsenseqa, "QUESTIONS", 10)
    monkeypatch.setattr(commonsenseqa, "TRAINING", 10)
    benchmark_rows.write(tmp_path / commonsenseqa.FILE, rows(""))
    benchmark_rows.write(tmp_path / commonsenseqa.SHOTS_FILE, rows("Say: "))
    return tmp_path


def test_commonsenseqa_shows_eight_training_rows(folder):
    work = benchmark_rows.read(TASK, folder)
    blocks = work.prompt(work.examples[9]).split("\n\n")
    assert len(blocks) == 9 and blocks[0] == (
        "Question: Say: Where do you keep milk cold?\n"
        "A. oven\nB. fridge\nC. shelf\nD. desk\nE. car\nAnswer: B"
    )
    assert blocks[8] == (
        "Question: Where do you see a play?\n"
        "A. theater\nB. bakery\nC. pharmacy\nD. garage\nE. forge\nAnswer:"
    )
    assert [block[-9:] for block in blocks[:8]] == [f"Answer: {key}" for key in "BBACDACE"]
    assert TASK.choices(work.examples[0]) == (" A", " B", " C", " D", " E")
    benchmark_rows.assert_gold_is_right(TASK, work)


@pytest.mark.parametrize("file", [commonsenseqa.FILE, commonsenseqa.SHOTS_FILE])
def test_commonsenseqa_refuses_malformed_rows(folder, file):
    for change, what in (
        (lambda row: row.update(answerKey=""), "the answer is ''"),  # as in the test file
        (lambda row: row["question"]["choices"].pop(), "the choices are .*'D'.*, not A to E"),
        (lambda row: row.pop("question"), "question is 'None'"),
    ):
        benchmark_rows.assert_refused(TASK, folder, file, 10, change, what)
