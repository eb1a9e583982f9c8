"""Public names of qwen_jax.evaluate."""

import importlib.util

import pytest

from qwen_jax import evaluate


def test_names_are_importable():
    from qwen_jax.evaluate import TASKS, Task, extract_answer, math_equal, pass_at_k, run

    assert math_equal("2/4", "1/2") and not math_equal("2/4", "1/2", strict=True)
    assert not math_equal("2/4", "1/2", True)
    assert extract_answer(r"so \boxed{7}", kind="math") == "7"
    assert extract_answer("", kind="boxed") is None
    assert pass_at_k(4, 1, 2) == 0.5
    assert callable(run) and isinstance(TASKS["mmlu"], Task)
    assert all(getattr(evaluate, name) for name in evaluate.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        evaluate.nothing  # noqa: B018


@pytest.mark.skipif(
    importlib.util.find_spec("qwen_jax.evaluate.pairwise") is None, reason="no pairwise judging"
)
def test_elo_is_importable():
    assert callable(evaluate.elo)
