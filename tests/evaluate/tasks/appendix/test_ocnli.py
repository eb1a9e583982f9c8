"""OCNLI: dev.json, an object per line, and rows without a label."""

import pytest

from qwen_jax.errors import DataError
from qwen_jax.evaluate.tasks import TASKS
from qwen_jax.evaluate.tasks.appendix import ocnli
from tests.helpers import benchmark_rows

TASK = TASKS["ocnli"]
PAIRS = (
    ("他昨天坐火车去了南方。", "他昨天出门了。", "entailment"),
    ("店里只卖茶。", "店里也卖咖啡。", "contradiction"),
    ("她在写信。", "信是写给妈妈的。", "neutral"),
    ("孩子们都睡了。", "院子里很安静。", "-"),
    ("桥去年修好了。", "桥现在可以走。", "entailment"),
    ("今天没有下雨。", "今天下了大雨。", "contradiction"),
    ("老师买了三本书。", "书很贵。", "neutral"),
    ("门是开着的。", "门没有关。", "entailment"),
    ("他不会游泳。", "他是游泳教练。", "contradiction"),
    ("大家在唱歌。", "歌是新写的。", "-"),
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(ocnli, "ROWS", 10)
    monkeypatch.setattr(ocnli, "QUESTIONS", 8)
    rows = [
        {
            "level": "easy",
            "sentence1": first,
            "sentence2": second,
            "label": label,
            **{f"label{n}": "neutral" if label == "-" else label for n in range(5)},
            "genre": "own",
            "prem_id": f"own_{i}",
            "id": i,
        }
        for i, (first, second, label) in enumerate(PAIRS)
    ]
    benchmark_rows.write(tmp_path / ocnli.FILE, rows)
    return tmp_path


def test_ocnli_drops_and_counts_rows_without_a_label(folder):
    work = benchmark_rows.read(TASK, folder)
    assert work.dropped == 2 and [one.index for one in work.examples] == [0, 1, 2, 4, 5, 6, 7, 8]
    assert work.prompt(work.examples[0]) == (
        "语句一：“他昨天坐火车去了南方。”\n语句二：“他昨天出门了。”\n请问这两句话是什么关系？\n"
    )
    assert TASK.choices(work.examples[0]) == ("蕴含", "无关", "矛盾")
    assert work.examples[1].texts() == ("店里只卖茶。\n店里也卖咖啡。",)
    benchmark_rows.assert_gold_is_right(TASK, work)


def test_ocnli_refuses_malformed_rows_and_another_number_of_labels(folder, monkeypatch):
    for change, what in (
        ({"label": "yes"}, "the answer is 'yes'"),
        ({"label": None}, "the answer is None"),
        ({"sentence2": ""}, "sentence2 is ''"),
    ):
        benchmark_rows.assert_refused(
            TASK, folder, ocnli.FILE, 2, lambda row, change=change: row.update(change), what
        )
    monkeypatch.setattr(ocnli, "QUESTIONS", 9)
    with pytest.raises(DataError, match="8 rows with a label, but the published file has 9"):
        benchmark_rows.read(TASK, folder)
