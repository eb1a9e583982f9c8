"""HellaSwag: hellaswag_val.jsonl, with the marks of WikiHow pages."""

import pytest

from qwen_jax.evaluate.tasks import TASKS
from qwen_jax.evaluate.tasks.appendix import hellaswag
from tests.helpers import benchmark_rows

TASK = TASKS["hellaswag"]
CONTEXTS = (  # activity, ctx_a, ctx_b, right ending
    ("Baking bread", "A man kneads dough on a board.", "he", 0),
    (
        "Cleaning shoes",
        "[header] How to clean shoes [title] Take the laces out. [step] They",
        "",
        3,
    ),
    ("Rowing", "Two boats leave the shore.", "the first boat", 1),
    ("Painting a fence", "A girl opens a can of paint.", "she", 2),
    ("Archery", "A target stands on the grass.", "an archer", 0),
    ("Sewing", "Cloth lies under the needle.", "a hand", 1),
    ("Shoveling snow", "Snow covers the path.", "the neighbor", 2),
    ("Making tea", "Water boils in a kettle.", "a woman", 3),
    ("Juggling", "A boy throws three balls.", "one ball", 0),
    ("Gardening", "[header] How to plant bulbs [title] Dig a hole. [step] It", "", 1),
)
ENDINGS = ["waits for a while.", "goes on [substeps] slowly.", "  stops.", "begins again."]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(hellaswag, "QUESTIONS", 10)
    rows = [
        {
            "ind": i,
            "activity_label": activity,
            "ctx_a": first,
            "ctx_b": second,
            "ctx": f"{first} {second}".strip(),
            "split": "val",
            "split_type": "indomain",
            "label": label,
            "endings": ENDINGS,
            "source_id": f"own~{i}",
        }
        for i, (activity, first, second, label) in enumerate(CONTEXTS)
    ]
    benchmark_rows.write(tmp_path / hellaswag.FILE, rows)
    return tmp_path


def test_hellaswag_cleans_its_rows(folder):
    work = benchmark_rows.read(TASK, folder)
    first, second = work.examples[:2]
    assert work.prompt(first) == "Baking bread: A man kneads dough on a board. He"
    assert work.prompt(second) == "Cleaning shoes: How to clean shoes. Take the laces out. They"
    assert TASK.choices(first) == (
        " waits for a while.",
        " goes on slowly.",
        " stops.",
        " begins again.",
    )
    assert second.answer == "D" and TASK.per_byte
    benchmark_rows.assert_gold_is_right(TASK, work)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"label": 4}, "the answer is 4"),
        ({"label": ""}, "the answer is ''"),  # as in the test file
        ({"endings": ENDINGS[:3]}, "3 endings"),
        ({"endings": [*ENDINGS[:3], 4]}, "not a list of texts"),
        ({"ctx_b": None}, "ctx_b is 'None'"),
        ({"ctx_a": 1}, "ctx_a is '1'"),
    ],
)
def test_hellaswag_refuses_malformed_rows(folder, change, what):
    benchmark_rows.assert_refused(
        TASK, folder, hellaswag.FILE, 8, lambda row: row.update(change), what
    )
