"""PIQA: valid.jsonl with a file of labels."""

import pytest

from qwen_jax.errors import DataError
from qwen_jax.evaluate.tasks import TASKS
from qwen_jax.evaluate.tasks.appendix import piqa
from tests.helpers import benchmark_rows

TASK = TASKS["piqa"]
GOALS = (
    ("Dry wet shoes", "Stuff them with newspaper.", "Put them into the bath.", 0),
    ("Open a tight jar", "Freeze the lid.", "Run hot water over the lid.", 1),
    ("Keep a door open", "Push a wedge under it.", "Push a feather under it.", 0),
    ("Find a stud in a wall", "Paint the wall.", "Tap along the wall.", 1),
    ("Sharpen a pencil", "Turn it in a sharpener.", "Turn it in a cup.", 0),
    ("Cool soup", "Cover it with a lid.", "Stir it in a wide bowl.", 1),
    ("Hang a picture", "Use a nail.", "Use a noodle.", 0),
    ("Clean a window", "Wipe it with mud.", "Wipe it with a damp cloth.", 1),
    ("Carry eggs", "In a carton.", "In a sieve.", 0),
    ("Soften butter", "Leave it in the freezer.", "Leave it on the table.", 1),
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(piqa, "QUESTIONS", 10)
    rows = [{"goal": goal, "sol1": one, "sol2": two} for goal, one, two, _ in GOALS]
    benchmark_rows.write(tmp_path / piqa.FILE, rows)
    (tmp_path / piqa.LABELS).write_text("".join(f"{label}\n" for *_, label in GOALS))
    return tmp_path


def test_piqa_reads_rows_with_their_labels(folder):
    work = benchmark_rows.read(TASK, folder)
    assert work.prompt(work.examples[1]) == "Question: Open a tight jar\nAnswer:"
    assert TASK.choices(work.examples[1]) == (" Freeze the lid.", " Run hot water over the lid.")
    assert [one.answer for one in work.examples] == list("ABABABABAB")
    benchmark_rows.assert_gold_is_right(TASK, work)


def test_piqa_refuses_malformed_rows_and_labels(folder):
    benchmark_rows.assert_refused(
        TASK, folder, piqa.FILE, 5, lambda row: row.pop("sol2"), "sol2 is 'None'"
    )
    labels = folder / piqa.LABELS
    labels.write_text("0\n1\n2\n" + "0\n" * 7)
    with pytest.raises(DataError, match="(?s)the answer is '2'.*valid-labels.lst row 3"):
        benchmark_rows.read(TASK, folder)
    labels.write_text("0\n" * 9)
    with pytest.raises(DataError, match="(?s)9 labels for 10 questions.*valid-labels.lst"):
        benchmark_rows.read(TASK, folder)
    labels.unlink()
    with pytest.raises(DataError, match="(?s)no folder has piqa/valid-labels.lst.*yonatanbisk"):
        benchmark_rows.read(TASK, folder)
