"""ARC: its JSONL, with letters or digits as labels and three to five choices."""

import pytest

from qwen_jax.errors import DataError
from qwen_jax.evaluate.summary import floors
from qwen_jax.evaluate.tasks import TASKS
from qwen_jax.evaluate.tasks.appendix import arc
from tests.helpers import benchmark_rows

QUESTIONS = (  # stem, choices, the key as the file has it
    ("Which of these melts first in the sun?", "stone ice iron wood", "B"),
    ("What do roots take from the soil?", "light water wind noise", "B"),
    ("Which animal has no legs?", "dog ant snake bird", "C"),
    ("What moves the tides?", "moon rain fish sand", "1"),
    ("Which is a metal?", "paper glass copper wool", "3"),
    ("Which organ pumps blood?", "lung heart skin bone", "B"),
    ("What does a thermometer measure?", "mass length heat", "C"),
    ("Which planet is nearest to the sun?", "Mars Venus Mercury Saturn", "3"),
    ("Which one is a mixture?", "gold air oxygen iron helium", "B"),
    ("What do bees carry?", "pollen salt sand coal", "A"),
)


@pytest.fixture(params=["Easy", "Challenge"])
def part(request, tmp_path, monkeypatch):
    monkeypatch.setitem(arc.QUESTIONS, request.param, 10)
    rows = []
    for i, (stem, choices, key) in enumerate(QUESTIONS):
        labels = "12345" if key.isdigit() else "ABCDE"
        listed = [{"text": text, "label": labels[j]} for j, text in enumerate(choices.split())]
        rows.append(
            {"id": f"own_{i}", "question": {"stem": stem, "choices": listed}, "answerKey": key}
        )
    benchmark_rows.write(tmp_path / f"arc/ARC-{request.param}-Test.jsonl", rows)
    return request.param


def test_arc_reads_its_rows(part, tmp_path):
    task = TASKS[f"arc_{part.lower()}"]
    work = benchmark_rows.read(task, tmp_path)
    assert [one.answer for one in work.examples] == list("BBCACBCCBA")
    assert work.prompt(work.examples[3]) == "Question: What moves the tides?\nAnswer:"
    assert task.choices(work.examples[6]) == (" mass", " length", " heat")
    assert task.per_byte == (part == "Challenge") and not task.checked
    assert floors(task, work.examples) == {"constant": 40, "longest choice": 60}
    benchmark_rows.assert_gold_is_right(task, work)


def test_arc_refuses_malformed_rows(part, tmp_path, monkeypatch):
    task, file = TASKS[f"arc_{part.lower()}"], f"arc/ARC-{part}-Test.jsonl"
    for number, change, what in (
        (2, lambda row: row.update(answerKey="E"), "the answer is 'E'"),
        (4, lambda row: row.update(answerKey="A"), "the answer is 'A', .*'1', '2'"),
        (5, lambda row: row["question"].pop("stem"), "stem is 'None'"),
        (6, lambda row: row["question"]["choices"].append("x"), "a choice has no label"),
        (9, lambda row: row["question"]["choices"][1].update(text=None), "text is 'None'"),
        (
            9,
            lambda row: row["question"]["choices"].append({"text": "x", "label": "F"}),
            "6 choices",
        ),
    ):
        benchmark_rows.assert_refused(task, tmp_path, file, number, change, what)
    monkeypatch.setitem(arc.QUESTIONS, part, 11)
    with pytest.raises(DataError, match="(?s)10 questions, but the published file has 11"):
        benchmark_rows.read(task, tmp_path)
