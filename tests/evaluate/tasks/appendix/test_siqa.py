"""Social IQa: dev.jsonl with a file of labels from 1 to 3."""

import pytest

from qwen_jax.errors import DataError
from qwen_jax.evaluate.tasks import TASKS
from qwen_jax.evaluate.tasks.appendix import siqa
from tests.helpers import benchmark_rows

TASK = TASKS["siqa"]
ROWS = (
    ("Lee lent Kim a bicycle.", "How does Kim feel?", "grateful angry bored", 1),
    ("Ana lost her keys.", "What will Ana do next?", "sing search sleep", 2),
    ("Tom won the race.", "How does Tom feel?", "sad sorry proud", 3),
    ("Mia missed the bus.", "What will Mia do next?", "wait swim paint", 1),
    ("Raj broke a cup.", "What will Raj do next?", "vote sweep dance", 2),
    ("Eve heard a joke.", "What will Eve do next?", "cry run laugh", 3),
    ("Sam was cold.", "What does Sam need?", "coat ice fan", 1),
    ("Joy helped a child.", "How would you describe Joy?", "cruel kind idle", 2),
    ("Ben forgot lunch.", "How does Ben feel?", "full smug hungry", 3),
    ("Zoe got a letter.", "What will Zoe do next?", "read bake dig", 1),
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(siqa, "QUESTIONS", 10)
    rows = [
        {"context": context, "question": question}
        | dict(zip(("answerA", "answerB", "answerC"), answers.split(), strict=True))
        for context, question, answers, _ in ROWS
    ]
    benchmark_rows.write(tmp_path / siqa.FILE, rows)
    (tmp_path / siqa.LABELS).write_text("\n".join(str(label) for *_, label in ROWS))
    return tmp_path


def test_siqa_reads_rows_with_their_labels(folder):
    work = benchmark_rows.read(TASK, folder)
    assert work.prompt(work.examples[0]) == "Q: Lee lent Kim a bicycle. How does Kim feel?\nA:"
    assert TASK.choices(work.examples[0]) == (" grateful", " angry", " bored")
    assert [one.answer for one in work.examples] == list("ABCABCABCA")
    benchmark_rows.assert_gold_is_right(TASK, work)


def test_siqa_refuses_malformed_rows_and_labels(folder):
    benchmark_rows.assert_refused(
        TASK, folder, siqa.FILE, 1, lambda row: row.update(context=" "), "context is ' '"
    )
    (folder / siqa.LABELS).write_text("1\n" * 9 + "0\n")
    with pytest.raises(DataError, match="(?s)the answer is '0'.*dev-labels.lst row 10"):
        benchmark_rows.read(TASK, folder)
