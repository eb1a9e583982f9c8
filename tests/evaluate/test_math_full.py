"""MATH's full test set, on problems of ours in the distribution's files."""

import json
import pathlib
import tarfile
import zipfile

import pytest

from qwen_jax.errors import DataError
from qwen_jax.evaluate.data_files import DataFolders
from qwen_jax.evaluate.prompts import questions
from qwen_jax.evaluate.summary import ceiling, summarize
from qwen_jax.evaluate.tasks import TASKS, math_full
from tests.helpers.math_files import PROBLEMS, write_math

SHOTS = [
    {"problem": "One? \\\nTwo.}", "solution": "a\\\\\nb\n$\\frac{1}{2}$"},
    {"problem": "p", "solution": "s {}"},
]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> pathlib.Path:
    monkeypatch.setattr(math_full, "QUESTIONS", len(PROBLEMS))
    (tmp_path / "minerva_math_4shot.json").write_text(json.dumps(SHOTS))
    return tmp_path


def read(folder: pathlib.Path, key: str = "math_full") -> tuple[questions.Work, DataFolders]:
    data = DataFolders([folder])
    return questions.read(TASKS[key], data, None), data


def test_read_takes_a_folder_a_tar_and_a_zip_file(folder, tmp_path):
    write_math(folder / "MATH")
    found, data = read(folder)
    assert [one.id for one in found.examples][:3] == [
        "algebra level 1/1",
        "algebra level ?/9",
        "algebra level 5/10",
    ]
    assert found.examples[2].answer == r"\frac{5}{2}" and len(found.examples) == len(PROBLEMS)
    assert len(data.hashes["MATH/test"]) == 64
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "minerva_math_4shot.json").write_text(json.dumps(SHOTS))
    with tarfile.open(packed / "MATH.tar", "w:gz") as file:
        file.add(folder / "MATH", "MATH")
    assert read(packed)[0].examples == found.examples
    with zipfile.ZipFile(packed / "MATH.zip", "w") as file:
        for path in (folder / "MATH").rglob("*.json"):
            file.write(path, path.relative_to(folder))
    (packed / "MATH.tar").unlink()
    work, data = read(packed)
    assert work.examples == found.examples and "MATH.zip" in data.hashes


def test_scores_of_subjects_and_levels(folder):
    write_math(folder / "MATH")
    work, _ = read(folder)
    samples = [
        {
            "id": one.id,
            "subject": one.subject,
            "correct": "algebra" in one.subject,
            "extracted": "",
            "truncated": 0,
            "completion": "",
            "completion_tokens": 1,
            "finish": "stop",
            "rule": "",
        }
        for one in work.examples
    ]
    record = summarize(work.task, samples)
    assert record["groups"]["algebra"]["n"] == 3
    assert record["groups"]["algebra"]["score"] == 100
    assert record["groups"]["level 5"]["score"] == 50 and record["groups"]["level ?"]["n"] == 1
    assert len(record["groups"]) == 7 + 6


@pytest.mark.parametrize("key", ["math_full", "math_full@lm_eval"])
def test_right_completions_are_right(folder, key):
    write_math(folder / "MATH")
    work, _ = read(folder, key)
    assert ceiling(work.task, work.examples) == 100


def test_lm_eval_corrects_the_latex_of_the_worked_examples(folder):
    write_math(folder / "MATH")
    published, corrected = (read(folder, key)[0] for key in ("math_full", "math_full@lm_eval"))
    first = published.examples[0]
    assert "One? \\\nTwo.}\n" in published.prompt(first)
    assert "One? \\\\\nTwo.\n" in corrected.prompt(first)
    for one in (published, corrected):
        assert "Solution: a\\\\\nb\n$\\frac{1}{2}$\n\nProblem:\np\n" in one.prompt(first)
        assert one.prompt(first).endswith("Problem:\nWhat is $2 + 2$?\n\nSolution:")


@pytest.mark.parametrize(
    "content, error",
    [
        (b"[]", r"no problem, level or solution.*algebra/1.json"),
        (b"{", r"not JSON.*algebra/1.json"),
        (b'{"problem": "", "level": "Level 1", "solution": "4"}', r"no \\boxed"),
        (b'{"problem": "", "level": "9", "solution": "\\\\boxed{4}"}', r"level '9'"),
    ],
)
def test_read_names_a_damaged_file(folder, content, error):
    write_math(folder / "MATH")
    (folder / "MATH/test/algebra/1.json").write_bytes(content)
    with pytest.raises(DataError, match=f"(?s){error}"):
        read(folder)


def test_read_refuses_what_is_missing_or_damaged(folder):
    with pytest.raises(DataError, match=r"(?s)no folder has MATH\.tar.*hendrycks/math"):
        read(folder)
    (folder / "MATH.tar").write_bytes(b"\x1f\x8b not gzip")
    with pytest.raises(DataError, match=r"(?s)tar file is damaged.*MATH\.tar"):
        read(folder)
    (folder / "MATH.tar").unlink()
    write_math(folder / "MATH")
    (folder / "MATH/test/algebra/1.json").unlink()
    with pytest.raises(DataError, match="8 problems, but the published file has 9"):
        read(folder)
