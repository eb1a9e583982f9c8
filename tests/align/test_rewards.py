"""Rule-based rewards, and loading them by name."""

import functools
import re
import sys
import types

import numpy as np
import pytest

from qwen_jax.align import rewards
from qwen_jax.align.rewards import RewardFunction, columns_of
from qwen_jax.errors import ConfigError, TrainingError
from tests.helpers.tiny_checkpoint import ROOT


def test_arithmetic_compares_the_last_number_with_the_last_sum():
    prompts = ["What is 2 + 3?", "1+1, then 4*5", "7 - 9"]
    assert rewards.arithmetic(prompts, ["It is 5.", "20", "2"]) == [1.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="no expression a \\+ b"):
        rewards.arithmetic(["Hello"], ["5"])


def test_a_function_that_exits_ends_the_run_with_an_error():
    function = RewardFunction(lambda prompts, completions: sys.exit(0))
    with pytest.raises(TrainingError, match="SystemExit"):
        function(["a"], ["b"], [])


def test_load_function_says_how_to_name_the_module_of_a_file():
    with pytest.raises(ConfigError, match="use my.rewards:exact"):
        rewards.load_function("./my/rewards.py:exact")


def test_load_function_knows_the_former_name_of_the_module(capsys):
    found = rewards.load_function("experiments.rewards:arithmetic")
    assert found is rewards.arithmetic
    (warning,) = capsys.readouterr().err.splitlines()
    assert "experiments.rewards" in warning and "qwen_jax.align.rewards" in warning
    assert rewards.load_function("qwen_jax.align.rewards:arithmetic") is rewards.arithmetic
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["qwen_jax.align.rewards:arithmetik", "no.such.module:f"])
def test_load_function_rejects_unknown_names(name):
    with pytest.raises(ConfigError, match="arithmetic|no.such|No module"):
        rewards.load_function(name)


def test_load_function_prefers_a_user_module_to_a_former_name(monkeypatch, capsys):
    theirs = types.ModuleType("experiments.rewards")
    theirs.arithmetic = lambda prompts, completions: [7.0]
    monkeypatch.setitem(sys.modules, "experiments.rewards", theirs)
    assert rewards.load_function("experiments.rewards:arithmetic") is theirs.arithmetic
    assert capsys.readouterr().err == ""


PROMPTS, COMPLETIONS = ["1+1", "1+1", "2+3"], ["2", "3", "5"]
ROWS = [{"prompt": "1+1", "answer": "2"}] * 2 + [{"prompt": "2+3", "answer": "5", "level": 1}]


def by_position(texts, answers):
    assert (texts, answers) == (PROMPTS, COMPLETIONS)
    return [1, 2, 3]


def with_rows(prompts, completions, *, rows):
    return [row["answer"] == text for row, text in zip(rows, completions, strict=True)]


def as_in_trl(completions, answer, **columns):
    assert columns == {
        "prompts": PROMPTS,
        "prompt": ["1+1", "1+1", "2+3"],
        "level": [None, None, 1],
    }
    return [a == b for a, b in zip(answer, completions, strict=True)]


def with_default(prompts, completions, level=0, scale=(2, 2, 2)):
    assert level == [None, None, 1]
    return scale


def swapped(completions, prompts):
    assert (prompts, completions) == (PROMPTS, COMPLETIONS)
    return [0, 0, 0]


class Judge:
    def __call__(self, prompts, completions, answer):
        return [a == b for a, b in zip(answer, completions, strict=True)]


@pytest.mark.parametrize(
    "function, columns, want",
    [
        (by_position, (), [1, 2, 3]),
        (with_rows, None, [1, 0, 1]),
        (as_in_trl, None, [1, 0, 1]),
        (with_default, ("level", "scale"), [2, 2, 2]),
        (swapped, (), [0, 0, 0]),
        (Judge(), ("answer",), [1, 0, 1]),
        (functools.partial(with_default, scale=[4, 4, 4]), ("level", "scale"), [4, 4, 4]),
        (lambda prompts, completions: np.ones(3), (), [1, 1, 1]),
        (max, (), None),  # no signature in Python: by position
    ],
)
def test_reward_function_is_called_with_what_it_names(function, columns, want):
    found = RewardFunction(function)
    assert found.columns == columns and found.needs_rows == (columns != ())
    found.check(ROWS, "--data.prompts")
    if want is not None:
        np.testing.assert_array_equal(found(PROMPTS, COMPLETIONS, ROWS), np.float32(want))


def test_reward_function_may_change_what_it_gets():
    def changes(prompts, completions, rows, **columns):
        rows[0]["extra"]["changed"] = True
        columns["extra"][1]["changed"] = True
        prompts.clear()
        completions.clear()
        return [0, 0]

    given = ["p", "q"], ["a", "b"], [{"extra": {}}, {"extra": {}}]
    found = RewardFunction(changes)
    found.check(given[2], "--data.prompts")
    assert found(*given).tolist() == [0, 0]
    assert given == (["p", "q"], ["a", "b"], [{"extra": {}}, {"extra": {}}])


@pytest.mark.parametrize(
    "returned, shown",
    [(["1.0", "0"], "1.0"), ([0.5, "1"], "1"), (np.array(["2"]), "2"), ([b"3"], "3"), ("44", "44")],
)
def test_reward_function_refuses_text(returned, shown):
    with pytest.raises(TrainingError, match=f"returned the text '{shown}' as a reward") as caught:
        RewardFunction(lambda prompts, completions: returned)(["p", "q"], ["a", "b"], [])
    assert "float(...)" in caught.value.fix


def test_reward_function_names_a_column_that_no_row_has():
    with pytest.raises(ConfigError, match="(?s)Judge.*takes answer.*rows have prompt") as caught:
        RewardFunction(Judge()).check([{"prompt": "1+1"}], "--data.prompts")
    assert "--data.prompts" in caught.value.where and "--reward_functions" in caught.value.where


@pytest.mark.parametrize(
    "function",
    [lambda: [1.0], lambda texts: [1.0], lambda prompts: [1.0], lambda a, b, c, /: [1.0]],
    ids=["none", "one", "only prompts", "three by position"],
)
def test_reward_function_refuses_a_signature_that_it_cannot_call(function):
    with pytest.raises(ConfigError, match="cannot be called with prompts and completions") as e:
        RewardFunction(function).check([], "--data.prompts")
    assert e.value.where == "--reward_functions"


def test_reward_function_gets_columns_that_only_other_batches_have():
    def level_of(prompts, completions, level=None):
        return [float(level == [None, None])] * 2

    found = RewardFunction(level_of)
    found.check(ROWS, "--data.prompts")
    np.testing.assert_array_equal(found(PROMPTS[:2], COMPLETIONS[:2], ROWS[:2]), [1, 1])


def test_columns_of_unites_the_columns_of_the_functions():
    assert columns_of([RewardFunction(by_position)]) == set()
    assert columns_of(map(RewardFunction, (Judge(), with_default))) == {"answer", "level", "scale"}
    assert columns_of(map(RewardFunction, (Judge(), with_rows))) is None


def test_reward_functions_of_the_guide_work():
    text = (ROOT / "docs/guides/alignment.md").read_text(encoding="utf-8")
    module = {}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(code, module)
    rows = [{"question": "?", "answer": "5 * 250 = 1,250\n#### 1,250"}] * 3
    completions = ["It is 1250.", "5 times 250 is 1,250", "many"]
    gsm8k = RewardFunction(module["gsm8k"])
    gsm8k.check(rows, "--data.prompts")
    np.testing.assert_array_equal(gsm8k(["?"] * 3, completions, rows), [1, 1, 0])
    short = RewardFunction(module["short"])
    np.testing.assert_array_equal(short(["?"] * 2, ["a", "b" * 200], []), [1, 0])


def helper(answer):
    return {"2": 1}[answer]


def raises(prompts, completions, answer):
    return [helper(each) for each in answer]


def test_reward_function_errors_keep_the_traceback_of_the_function():
    with pytest.raises(TrainingError) as caught:
        RewardFunction(raises)(PROMPTS, COMPLETIONS, ROWS)
    text = caught.value.what
    assert text.endswith("KeyError: '5'") and text.startswith("Traceback")
    assert "in raises" in text and "in helper" in text and 'return {"2": 1}[answer]' in text
    assert "in __call__" not in text  # our frames
    assert "raises" in caught.value.where and isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(
    "returned, message",
    [
        ([1.0, None, 2.0], "reward of sample 1 is nan"),
        ([1.0], r"shape \(1,\) for 3 completions"),
        (["a", "b", "c"], "returned the text "),
        (None, r"shape \(\) for 3"),
    ],
)
def test_reward_function_refuses_what_is_not_one_finite_number_per_completion(returned, message):
    def rule(prompts, completions):
        return returned

    with pytest.raises(TrainingError, match=message) as caught:
        RewardFunction(rule)(PROMPTS, COMPLETIONS, [])
    assert "rule" in caught.value.where
