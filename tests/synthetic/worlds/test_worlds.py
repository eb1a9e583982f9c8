"""The toy worlds: every answer is right, every wrong one wrong, and held-out problems stay out."""

import json
import shutil
import subprocess

import numpy as np
import pytest

from qwen_jax.errors import ConfigError
from qwen_jax.synthetic.worlds import expressions, instructions, programs, stories, sums
from qwen_jax.synthetic.worlds import word_problems as words
from qwen_jax.synthetic.worlds.problem import LANGUAGES, final_number, is_held_out, is_right, sample

WORLDS = ((sums.make, sums.LEVELS), (words.make, words.LEVELS))


@pytest.mark.parametrize(("make", "levels"), WORLDS, ids=["sums", "word problems"])
def test_answers_are_right_and_wrong_ones_wrong(make, levels):
    for each in sample(make, levels, 600, seed=3, held_out=False):
        assert is_right(each, each.answer), each
        assert is_right(each, each.steps), each
        assert not is_right(each, each.wrong), each


def test_every_step_of_a_sum_is_true():
    for each in sample(sums.make, sums.LEVELS[:5], 600, seed=1, held_out=False, languages=("en",)):
        for step in each.steps.rstrip(".").split("; "):
            if "=" in step:
                left, right = step.split(" = ")
                assert eval(left) == eval(right), each.steps  # noqa: S307 our own digits


@pytest.mark.parametrize(("make", "levels"), WORLDS, ids=["sums", "word problems"])
def test_no_held_out_problem_is_in_training_data_of_any_seed(make, levels):
    held_out = {each.key for each in sample(make, levels, 300, seed=0, held_out=True)}
    for seed in range(5):
        trained = {each.key for each in sample(make, levels, 1000, seed=seed, held_out=False)}
        assert not trained & held_out


def test_both_orders_of_a_sum_are_on_the_same_side():
    rng = np.random.default_rng(0)
    keys = {}
    for _ in range(3000):
        each = sums.make(rng, "one digit", "en")
        expression = each.answer.split(" = ")[0]
        keys[expression] = each.key
    for expression, key in keys.items():
        a, operator, b = expression.split()
        if operator == "+" and f"{b} + {a}" in keys:
            assert keys[f"{b} + {a}"] == key


def test_sample_is_a_function_of_its_seed_and_takes_turns():
    first = sample(sums.make, sums.LEVELS, 24, seed=5, held_out=False)
    assert first == sample(sums.make, sums.LEVELS, 24, seed=5, held_out=False)
    assert first != sample(sums.make, sums.LEVELS, 24, seed=6, held_out=False)
    assert [each.level for each in first[:4]] == ["one digit"] * 2 + ["two digits"] * 2
    assert [each.language for each in first[:2]] == list(LANGUAGES)


def test_distinct_problems_end_when_a_level_has_no_more():
    found = sample(sums.make, ("one digit",), 160, seed=0, held_out=True, distinct=True)
    assert len({each.question for each in found}) == len(found) < 160


def test_unknown_level_is_named():
    with pytest.raises(ConfigError, match="two digits"):
        sums.make(np.random.default_rng(0), "two digit", "en")


@pytest.mark.parametrize(
    ("text", "number"),
    [("7 + 5 = 12.", 12), ("答案是-3。", -3), ("3.5", 3.5), ("1,200", 1200), ("none", None)],
)
def test_final_number(text, number):
    assert final_number(text) == number


def test_instructions_have_one_right_answer():
    for each in sample(instructions.make, instructions.LEVELS, 600, seed=0, held_out=False):
        assert instructions.is_right(each, each.answer + ".")
        assert not instructions.is_right(each, each.wrong), each


def test_stories_contain_their_answers():
    rng = np.random.default_rng(0)
    for index in range(300):
        story = stories.make(rng, LANGUAGES[index % 2])
        assert story.answer in story.text


def _programs(number: int, programming: str) -> list[programs.Program]:
    rng = np.random.default_rng(1)
    return [
        programs.make(rng, programs.LEVELS[i % 6], LANGUAGES[i // 6 % 2], programming)
        for i in range(number)
    ]


def test_solutions_in_python_pass_their_tests():
    for each in _programs(240, "python"):
        names: dict = {}
        exec(each.prompt + each.body, names)  # noqa: S102 our own templates
        assert [names["f"](*a) for a, _ in each.tests] == [value for _, value in each.tests], each


def test_solutions_in_javascript_pass_their_tests(tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    lines = []
    for each in _programs(60, "javascript"):
        cases = json.dumps([[list(a), value] for a, value in each.tests])
        lines.append(
            f"{{{each.prompt}{each.body}\nfor (const [a, e] of {cases})"
            "if (JSON.stringify(f(...a)) !== JSON.stringify(e)) throw new Error(f.toString());}"
        )
    path = tmp_path / "all.js"
    path.write_text("\n".join(lines))
    found = subprocess.run([node, str(path)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]


def test_tests_find_a_changed_operator():
    rng = np.random.default_rng(2)
    found = 0
    for _ in range(500):
        tree = expressions.random_expression(rng, int(rng.integers(1, 4)))
        changed = expressions.mutant(tree, rng)
        points = rng.integers(-20, 21, (8, 2)).tolist()
        found += any(expressions.value(tree, *p) != expressions.value(changed, *p) for p in points)
    assert found >= 0.95 * 500


def test_programs_are_held_out_in_both_languages_together():
    keys: dict[str, set[str]] = {language: set() for language in LANGUAGES}
    rng = np.random.default_rng(4)
    for index in range(2000):
        language = LANGUAGES[index % 2]
        keys[language].add(programs.make(rng, "one operator", language, "python").key)
    both = keys["en"] & keys["zh"]
    assert len(both) > 50
    assert 0.02 < sum(map(is_held_out, both)) / len(both) < 0.3
