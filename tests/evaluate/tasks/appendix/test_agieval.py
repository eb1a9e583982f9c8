"""AGIEval: a JSONL file per part; prompts in two languages; one letter, several, or a formula."""

import pytest

from qwen_jax.errors import DataError
from qwen_jax.evaluate.tasks import TASKS
from qwen_jax.evaluate.tasks.appendix import agieval
from tests.helpers import benchmark_rows

TASK = TASKS["agieval"]
FOUR = ["(A)one", "(B)two", "(C)three", "(D)four"]
ROWS = {  # part: passage, question, options, label, answer
    "sat-en": (
        ("Nora kept bees on the roof. ", "Where are the bees?", FOUR, "C", None),
        ("Nora kept bees on the roof. ", "Who keeps bees?", FOUR, "A", None),
    ),
    "aqua-rat": ((None, "What is 2 + 3?", [*FOUR, "(E)five"], "E", None),),
    "math": ((None, "Add $1/3$ and $1/3$.", None, None, "\\frac{2}{3}"),),
    "gaokao-mathcloze": ((None, "已知 $x+1=3$, 则 $x=$", None, None, "2"),),
    "gaokao-mathqa": ((None, "下列正确的是", FOUR, "A C", None),),
    "gaokao-physics": (
        (None, "关于光，正确的是（ ）", FOUR, "B", None),
        (None, "关于力，正确的是（ ）", FOUR, ["A", "D"], None),
    ),
    "jec-qa-kd": (
        (None, "下列哪些说法正确?", FOUR, ["A", "C", "D", "。"], None),
        (None, "下列哪项判断错误?", FOUR, [], None),
    ),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setitem(agieval.ROWS, "v1", {part: len(rows) for part, rows in ROWS.items()})
    for part, rows in ROWS.items():
        keys = ("passage", "question", "options", "label", "answer")
        benchmark_rows.write(
            tmp_path / f"data/v1/{part}.jsonl",
            [dict(zip(keys, row, strict=True)) | {"other": None} for row in rows],
        )
    return tmp_path


def test_agieval_prompts_and_answers(folder):
    work = benchmark_rows.read(TASK, folder)
    prompts = {one.id: work.prompt(one) for one in work.examples}
    assert prompts["sat-en/1"] == (
        "Nora kept bees on the roof. Q: Who keeps bees? Answer Choices: "
        "(A)one (B)two (C)three (D)four\nA: Among A through D, the answer is"
    )
    assert prompts["aqua-rat/0"].endswith("(E)five\nA: Among A through E, the answer is")
    assert prompts["math/0"] == "Q: Add $1/3$ and $1/3$.\nA: The answer is"
    assert prompts["gaokao-mathcloze/0"] == "问题：已知 $x+1=3$, 则 $x=$\n答案："
    assert prompts["gaokao-physics/0"] == (
        "问题：关于光，正确的是（ ） 选项：(A)one (B)two (C)three (D)four\n答案：从A到D, 我们应选择"
    )
    assert {one.id: one.answer for one in work.examples} == {
        "sat-en/0": "C", "sat-en/1": "A", "aqua-rat/0": "E", "math/0": "\\frac{2}{3}",
        "gaokao-mathcloze/0": "2", "gaokao-mathqa/0": "AC", "gaokao-physics/0": "B",
        "gaokao-physics/1": "AD", "jec-qa-kd/0": "ACD",
    }  # fmt: skip
    assert work.dropped == 1  # the row with an empty label
    assert work.examples[0].texts()[0].startswith("Nora kept bees on the roof. \nWhere are the")
    benchmark_rows.assert_gold_is_right(TASK, work)


def test_agieval_grades_by_the_rule_of_the_part(folder):
    work = {one.id: one for one in benchmark_rows.read(TASK, folder).examples}
    for name, text, correct, extracted in (
        ("sat-en/0", " (C), not (A)", True, "C"),
        ("sat-en/0", " A or C", False, "A"),
        ("sat-en/0", " unclear", False, None),
        ("gaokao-physics/0", " B，不是C", False, "BC"),  # all letters count in this part
        ("gaokao-physics/1", " D和A", True, "AD"),
        ("gaokao-mathqa/0", " AC", True, "AC"),
        ("math/0", " $2/3$.", True, "$2/3$."),
        ("math/0", " $1/3$.", False, "$1/3$."),
    ):
        found = TASK.generation.verdict(text, work[name])
        assert (found.correct, found.extracted) == (correct, extracted), (name, text)


def test_agieval_refuses_malformed_rows_and_counts(folder, monkeypatch):
    for part, number, change, what in (
        ("sat-en", 2, {"label": "E"}, "the label is 'E', not letters of ABCD"),
        ("sat-en", 1, {"label": None}, "the label is None"),
        ("sat-en", 1, {"options": ["(A)one", 2]}, "options is .*not a list of texts"),
        ("sat-en", 1, {"options": []}, "options is .*not a list of texts"),
        ("sat-en", 1, {"passage": ["x"]}, "the passage is"),
        ("math", 1, {"answer": None}, "answer is 'None'"),
        ("aqua-rat", 1, {"question": ""}, "question is ''"),
    ):
        benchmark_rows.assert_refused(
            TASK,
            folder,
            f"data/v1/{part}.jsonl",
            number,
            lambda row, change=change: row.update(change),
            what,
        )
    monkeypatch.setitem(agieval.WITHOUT_ANSWER, "v1", 0)
    with pytest.raises(DataError, match="1 rows without an answer, but the published file has 0"):
        benchmark_rows.read(TASK, folder)
    (folder / "data/v1/math.jsonl").write_text("")
    with pytest.raises(DataError, match="(?s)0 questions, .* has 1.*data/v1/math.jsonl"):
        benchmark_rows.read(TASK, folder)
    (folder / "data/v1/math.jsonl").unlink()
    with pytest.raises(DataError, match="(?s)no folder has data/v1/math.jsonl.*ruixiangcui"):
        benchmark_rows.read(TASK, folder)


def test_agieval_versions_have_the_published_sizes():
    assert (TASK.counts, TASKS["agieval_v1_1"].counts) == (8_268, 7_272)
    assert len(TASK.files) == len(TASKS["agieval_v1_1"].files) == 21 and TASK.macro
    assert frozenset.union(*TASK.groups.values()) == set(agieval.ROWS["v1_1"])
