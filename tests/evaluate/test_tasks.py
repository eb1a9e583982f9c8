"""Tasks against published data: prompts, counts, and scores of constant predictors."""

import json
import zipfile

import pytest

from qwen_jax.errors import ConfigError, DataError
from qwen_jax.evaluate.data_files import DataFolders, csv_rows
from qwen_jax.evaluate.prompts import questions
from qwen_jax.evaluate.summary import floors
from qwen_jax.evaluate.tasks import SUITES, TASKS, lettered, published, select


def folders(shared) -> list:
    return [shared / "data/eval", shared / "data/eval_more"]


# Scores of the best constant and of the longest choice, in percent.
FLOORS = {"mmlu": (26.891, 27.895), "ceval": (26.575, 30.034), "cmmlu": (25.259, 29.743)}


@pytest.fixture(scope="module")
def golden(shared):
    path = shared / "reference/eval_prompts/prompts.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("key", FLOORS)
def test_prompts_and_floors_equal_the_published_ones(key, golden, shared):
    work = questions.read(TASKS[key], DataFolders(folders(shared)), None)
    by_place = {(one.subject, one.index): one for one in work.examples}
    expected = [one for one in golden if one["task"] == key]
    assert len(expected) > 50
    for one in expected:
        example = by_place[one["subject"], one["index"]]
        assert work.prompt(example) == one["prompt"]
        assert list(TASKS[key].choices(example)) == one["choices"]
        assert example.answer == one["answer"]
    found = floors(TASKS[key], work.examples)
    assert (round(found["constant"], 3), round(found["longest choice"], 3)) == FLOORS[key]


def test_groups_name_each_subject_once():
    for key, exclusive in (("mmlu", 4), ("ceval", 4)):
        groups = list(TASKS[key].groups.values())[:exclusive]
        assert (
            sum(map(len, groups)) == len(frozenset.union(*groups)) == {"mmlu": 57, "ceval": 52}[key]
        )


def test_published_scores_support_the_sentences_of_the_report():
    scores = published.TABLE_2
    assert all(own["Qwen 14B"] > own["LLaMA2 13B"] for own in scores.values())
    assert {name for name, own in scores.items() if own["Qwen 14B"] > own["LLaMA2 70B"]} == {
        "C-Eval", "MATH", "HumanEval"
    }  # fmt: skip
    assert "LLaMA2 34B" not in scores["C-Eval"] and len(scores["MMLU"]) == 21


def test_published_scores_of_the_appendix():
    for suite in ("table15", "table16", "table17"):
        for key in SUITES[suite]:
            assert sorted(TASKS[key].published) == ["Qwen 1.8B", "Qwen 14B", "Qwen 7B"]
            assert TASKS[key].source == suite.replace("table", "Table ")
            assert TASKS[key].checked == (key == "cmmlu")
    assert TASKS["ocnli"].published["Qwen 7B"] == 47.4
    assert TASKS["natural_questions"].published["Qwen 14B"] == 23.9


def test_missing_files_of_the_appendix_say_where_they_are_from(tmp_path):
    for key in sorted(
        {key for suite in ("table15", "table16", "table17") for key in SUITES[suite]}
    ):
        with pytest.raises(DataError, match="(?s)no folder has .*get it from (?!its authors)"):
            TASKS[key].read(DataFolders([tmp_path]))


def test_select_takes_names_and_suites_once():
    assert [task.key for task in select(("ceval", "table5", "ceval"))] == [
        "ceval",
        *SUITES["table5"],
    ]
    assert all(key in TASKS for keys in SUITES.values() for key in keys)
    with pytest.raises(ConfigError, match="(?s)'mmmlu'.*did you mean 'mmlu'.*ceval"):
        select(("mmmlu",))


def test_data_folders_name_what_is_missing(tmp_path):
    with pytest.raises(ConfigError, match="--data="):
        DataFolders([tmp_path / "no"])
    data = DataFolders([tmp_path])
    with pytest.raises(DataError, match="(?s)no folder has mmlu.zip.*hendrycks"):
        TASKS["mmlu"].read(data)
    (tmp_path / "mmlu.zip").write_bytes(b"PK\x03\x04 truncated")
    with pytest.raises(DataError, match="(?s)zip file is damaged.*mmlu.zip"):
        TASKS["mmlu"].read(data)


def test_data_of_another_version_is_refused(tmp_path, shared):
    with (
        zipfile.ZipFile(shared / "data/eval/ceval.zip") as whole,
        zipfile.ZipFile(tmp_path / "ceval.zip", "w") as part,
    ):
        for name in whole.namelist():
            if "accountant" not in name:
                part.writestr(name, whole.read(name))
    with pytest.raises(DataError, match=r"(?s)1,248 questions.*1,346"):
        TASKS["ceval"].read(DataFolders([tmp_path]))


def test_csv_rows_are_text_as_it_stands():
    assert csv_rows(b'\xef\xbb\xbfa,None\r\n1.50,"x\n y"\n', "f") == [
        ["a", "None"],
        ["1.50", "x\n y"],
    ]
    with pytest.raises(DataError, match="not UTF-8"):
        csv_rows(b"\xff", "f")


def test_read_table_names_a_row_without_an_answer():
    members = {"t.csv": b"question,A,B,C,D,answer\nq,1,2,3,4,B\nq,1,2,3,4,E\n"}
    with pytest.raises(DataError, match="(?s)'E'.*t.csv row 2"):
        lettered.read_table(members, "t.csv", "s")
    with pytest.raises(DataError, match="no D, answer"):
        lettered.read_table({"t.csv": b"question,A,B,C\nq,1,2,3\n"}, "t.csv", "s")
