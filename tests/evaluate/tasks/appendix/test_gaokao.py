"""GAOKAO-Bench: a JSON file per kind of question, its authors' prompts, and points."""

import json

import pytest

from qwen_jax.errors import DataError
from qwen_jax.evaluate.summary import summarize
from qwen_jax.evaluate.tasks import TASKS
from qwen_jax.evaluate.tasks.appendix import gaokao
from tests.helpers import benchmark_rows

TASK = TASKS["gaokao"]
FOLDER = "Data/Objective_Questions"
ROWS = {  # file: kind, points, questions with their answers
    "2010-2013_English_MCQs": (
        "single_choice", 1, (("21. I _ here. A. am B. is C. are D. be", ["A"]),
                             ("22. She _ late. A. am B. is C. are D. be", ["B"]),
                             ("23. They _ home. A. am B. is C. are D. be", ["C"])),
    ),
    "2010-2022_Physics_MCQs": (
        "multi_choice", 6, (("关于力，正确的是 A. 一 B. 二 C. 三 D. 四", ["BC"]),
                            ("关于光，正确的是 A. 一 B. 二 C. 三 D. 四", ["D"])),
    ),
    "2010-2022_English_Reading_Comp": (
        "multi_question_choice", 2, (("Read. 1. Who? 2. Where? 3. Why?", ["C", "A", "D"]),
                                     ("Read. 4. When? 5. How?", ["B", "B"])),
    ),
    "2012-2022_English_Cloze_Test": (
        "five_out_of_seven", 2, (("Fill in _ _ _ _ _ from A to G.", ["G", "A", "F", "C", "B"]),),
    ),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(gaokao, "QUESTIONS", {name: len(one[2]) for name, one in ROWS.items()})
    monkeypatch.setattr(gaokao, "ANSWERS", 15)
    prompts = []
    for name, (kind, points, questions) in ROWS.items():
        examples = [
            {"year": "2012", "category": "own", "question": f" {question} ", "answer": answers,
             "analysis": "", "index": i, "score": points}
            for i, (question, answers) in enumerate(questions)
        ]  # fmt: skip
        write(tmp_path / FOLDER / f"{name}.json", {"keywords": name, "example": examples})
        prompts.append({"type": kind, "keyword": name, "prefix_prompt": f"题型{len(prompts)}\n"})
    write(tmp_path / gaokao.PROMPTS, {"examples": prompts})
    return tmp_path


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def test_gaokao_has_an_example_for_each_answer(folder):
    work = benchmark_rows.read(TASK, folder)
    assert work.prompt(work.examples[1]) == "题型0\n22. She _ late. A. am B. is C. are D. be\n"
    reading = [one for one in work.examples if "Reading" in one.subject]
    assert [(one.index, one.answer) for one in reading] == list(enumerate("CADBB"))
    assert len({work.prompt(one) for one in reading}) == 2
    assert len(work.examples) == 15
    benchmark_rows.assert_gold_is_right(TASK, work)


def test_gaokao_grades_each_part_of_a_completion(folder):
    work = benchmark_rows.read(TASK, folder)
    reading = [one for one in work.examples if "Reading" in one.subject][:3]
    text = "（1）【答案】 C <eoa>\n（2）【答案】：B <eoa>\n（3）【答案】 D <eoa>"
    assert [TASK.generation.verdict(text, one).correct for one in reading] == [True, False, True]
    few = TASK.generation.verdict("【答案】 C", reading[0])
    assert (few.correct, few.extracted) == (False, None) and "1 of 3" in few.rule


def test_gaokao_scores_the_share_of_points(folder):
    work = benchmark_rows.read(TASK, folder)
    samples = [
        {
            "subject": one.subject,
            "correct": "Physics" in one.subject,
            "extracted": "A",
            "truncated": 0,
            "completion": "A",
            "completion_tokens": 1,
            "finish": "stop",
            "rule": "r",
        }
        for one in work.examples
    ]
    record = summarize(TASK, samples)
    assert record["average"] == "points" and record["points"]["2010-2022_Physics_MCQs"] == 6
    assert record["score"] == pytest.approx(100 * 12 / (3 + 12 + 10 + 10))
    assert sum(gaokao.POINTS[one.subject] for one in work.examples) == 35


def test_gaokao_has_the_published_sizes():
    counts = {name: count for name, (count, _) in gaokao._FILES.items()}
    assert sum(counts.values()) == 1_781 and TASK.counts == 2_944 and len(TASK.files) == 15


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"score": 2}, "it has 2 points, not 1"),
        ({"answer": []}, "not a list of texts"),
        ({"answer": ["H"]}, r"the answers are \['H'\]"),
        ({"question": ""}, "question is ''"),
    ],
)
def test_gaokao_refuses_malformed_rows(folder, change, what):
    path = folder / FOLDER / "2010-2013_English_MCQs.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["example"][1].update(change)
    write(path, content)
    with pytest.raises(DataError, match=f"(?s){what}.*2010-2013_English_MCQs.json example 2"):
        benchmark_rows.read(TASK, folder)


def test_gaokao_refuses_other_files(folder):
    path = folder / gaokao.PROMPTS
    content = json.loads(path.read_text(encoding="utf-8"))
    for changed, what in (
        ([], "no list `examples`"),
        ({"examples": content["examples"][:3]}, "no prompt for 2012-2022_English_Cloze_Test"),
        ({"examples": [{**content["examples"][0], "type": "x"}]}, "the answer is 'x'"),
    ):
        write(path, changed)
        with pytest.raises(DataError, match=f"(?s){what}.*Obj_Prompt.json"):
            benchmark_rows.read(TASK, folder)
    write(path, content)
    write(folder / FOLDER / "2010-2022_Physics_MCQs.json", {"example": []})
    with pytest.raises(DataError, match="(?s)0 questions.* has 2.*Physics"):
        benchmark_rows.read(TASK, folder)
