"""Augmented mathematics: which solutions and paraphrases are kept, with a scripted model."""

import collections
import dataclasses
import json

import pytest

from experiments import augment_math, self_instruct
from qwen_jax.data.chat.conversations import Counts, read_conversations
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.inference.request import Completion
from qwen_jax.synthetic import math_solutions
from qwen_jax.synthetic.math_solutions import MathProblem, equations, read_problems, solution_fault
from qwen_jax.synthetic.response_cache import Response
from qwen_jax.utils.jsonl import read_rows, write_rows

_APPLES = MathProblem("Anna has 3 boxes with 4 apples and eats 2. How many are left?", "10")


@pytest.mark.parametrize(
    ("text", "finish", "fault"),
    [
        ("3 * 4 = 12; 12 - 2 = 10. The answer is \\boxed{10}.", "stop", None),
        ("3 x 4 is 12 apples, so \\boxed{10.0}", "stop", None),
        ("3 * 4 = 12. The answer is \\boxed{12}.", "stop", "solution: wrong answer"),
        ("3 * 4 = 13; 13 - 2 = 11. \\boxed{10}", "stop", "solution: wrong equation"),
        ("3 * 4 = 12; 12 - 2 = 10. \\boxed{10}", "length", "solution: not finished"),
        ("I do not know.", "stop", "solution: wrong answer"),
    ],
)
def test_a_solution_is_kept_if_its_answer_and_equations_are_right(text, finish, fault):
    assert solution_fault(_APPLES, Response(text, finish)) == fault


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("10 / 3 = 3.33", True),
        ("10 / 3 = 3.34", False),
        ("10 / 4 = 3", False),
        ("1000 * 2 = 2,000", True),
        ("(2 + 3) * 4 = 20", True),
        ("20% * 50 = 10", True),
        ("x = 5", True),  # not a calculation
        ("2 + 2 = 5 + 1", False),
    ],
)
def test_equations_are_checked_up_to_rounding(text, right):
    problem = MathProblem("q", "7")
    found = solution_fault(problem, Response(f"{text}; so \\boxed{{7}}", "stop"))
    assert (found is None) == right


def test_equations_of_a_text():
    assert equations("so 3 * 4 = 12, then\n12 - 2 = $10.") == [("3 * 4", "12"), ("12 - 2", "10")]


def test_problems_are_read_in_the_forms_of_gsm8k_and_math(tmp_path):
    rows = [
        {"question": "a", "answer": "Step.\n#### 1,234"},
        {"problem": "b", "solution": "So $x = \\boxed{\\frac{1}{2}}$."},
        {"question": "c", "answer": "7"},
    ]
    write_rows(tmp_path / "a.jsonl", rows)
    found = read_problems(tmp_path / "a.jsonl")
    assert [each.answer for each in found] == ["1234", "\\frac{1}{2}", "7"]
    write_rows(tmp_path / "b.jsonl", [{"question": "a"}])
    with pytest.raises(DataError, match="no final answer"):
        read_problems(tmp_path / "b.jsonl")


def _model(answer):
    """Returns a model that answers each conversation by a function of its prompt and number."""
    calls = collections.Counter()

    def stream(conversations, seeds):
        assert len(set(seeds)) == len(seeds)
        for index, turns in enumerate(conversations):
            prompt = turns[-1][1]
            text = answer(prompt, calls[prompt])
            calls[prompt] += 1
            yield index, Completion(tokens=(1,), text=text, logprobs=None, finish="stop")

    return stream


def _answer(prompt: str, number: int) -> str:
    if prompt.startswith("Rephrase"):
        return (
            "Of 3 boxes with 4 apples each, Anna eats 2. What number remains?"
            if number == 0
            else "Anna has 5 boxes."
        )
    return (
        "3 * 4 = 12, and 12 - 2 = 10. \\boxed{10}",
        "First 3*4 = 12. Then 12-2 = 10: \\boxed{10}",  # the same steps
        "4 - 2 = 2; 2 + 2 * 4 = 10, so \\boxed{10}",  # others
        "It is \\boxed{9}",
    )[number % 4]


def test_augment_math_keeps_right_and_different_solutions_and_resumes(tmp_path, monkeypatch):
    write_rows(tmp_path / "train.jsonl", [{"question": _APPLES.question, "answer": "10"}])
    opened = []
    monkeypatch.setattr(
        self_instruct, "open_model", lambda config, file: opened.append(1) or _model(_answer)
    )
    config = dataclasses.replace(
        augment_math.RECIPE,
        checkpoint="chat",
        problems=(str(tmp_path / "train.jsonl"),),
        solutions=4,
        paraphrases=2,
        arithmetic=24,
        output=str(tmp_path / "out"),
    )
    lines = []
    monkeypatch.setattr(augment_math.flags, "log", lines.append)
    augment_math.main(config)
    path = tmp_path / "out/conversations.jsonl"
    rows = [row["messages"] for _, row in read_rows(path)]
    assert len(rows) == 2 + 2 + 24 and rows[0][0]["content"] == _APPLES.question
    assert rows[2][0]["content"].startswith("Of 3 boxes")
    assert [row[1]["content"][:5] for row in rows[:4]] == ["3 * 4", "4 - 2"] * 2
    for count in ("solve: kept: 2", "solution: the same steps: 2", "paraphrase: other numbers: 1"):
        assert count in lines
    counts = Counts()
    assert len(list(read_conversations([str(path)], counts))) == 28
    before = path.read_bytes()
    augment_math.main(config)  # from the cache
    assert path.read_bytes() == before and len(opened) == 1


def test_problems_of_a_test_set_are_left_out(tmp_path):
    long = " ".join(f"word{i}" for i in range(20)) + " 5?"
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/gsm8k_test.jsonl").write_text(
        json.dumps({"question": long, "answer": "#### 5"}) + "\n"
    )
    write_rows(
        tmp_path / "train.jsonl",
        [{"question": long, "answer": "5"}, {"question": _APPLES.question, "answer": "10"}],
    )
    config = dataclasses.replace(
        augment_math.RECIPE,
        problems=(str(tmp_path / "train.jsonl"),),
        test_sets=str(tmp_path / "tests"),
    )
    counts: collections.Counter[str] = collections.Counter()
    assert augment_math.read(config, counts) == [_APPLES]
    assert counts["problems: in a test set"] == 1


def test_generated_arithmetic_is_bilingual_and_leaves_out_held_out_sums():
    rows = [row["messages"] for row in math_solutions.arithmetic_rows(240, seed=0)]
    assert sum("=" in row[1]["content"] for row in rows) == 240
    assert any("等于" in row[0]["content"] for row in rows)
    from qwen_jax.synthetic.worlds import sums
    from qwen_jax.synthetic.worlds.problem import sample

    held_out = {e.question for e in sample(sums.make, sums.LEVELS, 200, seed=0, held_out=True)}
    assert not held_out & {row[0]["content"] for row in rows}


def test_augment_math_needs_a_model_for_problems():
    with pytest.raises(ConfigError, match="one of them is missing"):
        augment_math.main(dataclasses.replace(augment_math.RECIPE, problems=("a.jsonl",)))
    with pytest.raises(ConfigError, match="nothing to make"):
        augment_math.main(dataclasses.replace(augment_math.RECIPE, arithmetic=0))
