"""Where completions end, what a chat answer's code is, pass@k."""

import itertools
import textwrap

import pytest

from qwen_jax.errors import ConfigError
from qwen_jax.grading import code


def test_cut_completion_stops_at_the_first_stop_string():
    text = "    return 1\n\nprint(2)\ndef f():"
    assert code.cut_completion(text, code.CODEX_STOPS) == "    return 1\n"
    assert code.cut(text, code.QWEN_STOPS) == ("    return 1", "\n\n")
    assert code.cut("no stop [DONE", code.MBPP_STOPS) == ("no stop [DONE", None)


def test_cut_at_brace_ends_with_the_function():
    body = '  if (x) { return "}"; } // }\n  return 1;\n}\n\nint other() {}'
    assert code.cut_at_brace(body) == '  if (x) { return "}"; } // }\n  return 1;\n}'
    assert code.cut_at_brace("a }\n}\nb", 2) == "a }\n}"
    assert code.cut_at_brace("a {") == "a {"
    quoted = "  if (x == '//') {\n    y = '}';\n  }\n}"
    assert code.cut_at_brace(quoted + "\nb", quoted=True) == quoted
    lifetimes = "  fn f(x: &'a str) { g::<'a>(x); }\n}"
    assert code.cut_at_brace(lifetimes + "}") == lifetimes


BODY = "    x = 1\n\n    return x"


@pytest.mark.parametrize(
    "answer, body",
    [
        (f"Sure:\n```python\nimport os\ndef f(a):\n{BODY}\n```\nThat is it.", BODY),
        (f"def f(a):\n{BODY}\n\nprint(f(1))", BODY),
        (f"def other(a):\n{BODY}\nx", BODY),
        ("x = 1\nreturn x", "    x = 1\n    return x"),
    ],
)
def test_qwen_chat_body_is_the_functions_body(answer, body):
    assert code.qwen_chat_body(answer, "f") == body


def test_chat_code_keeps_imports_and_helpers():
    program = "import os\n\n\ndef helper():\n    pass\n\n\ndef f():\n    return helper()\n"
    answer = f"An example:\n```\nf(1)\n```\nand\n```python\n{program}```\n"
    assert code.chat_code(answer, "def f") == program
    assert code.chat_code(answer) == program  # the longest
    assert code.chat_code("return 1") == "return 1"


def test_pass_at_k_is_the_share_of_draws_with_a_success():
    for n in range(1, 9):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
            assert code.pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize("n, c, k", [(3, 1, 4), (3, 4, 1), (3, -1, 1), (3, 1, 0), (0, 0, 1)])
def test_pass_at_k_refuses_what_cannot_be_estimated(n, c, k):
    with pytest.raises(ConfigError, match="pass_at_k"):
        code.pass_at_k(n, c, k)


def test_fenced_blocks_takes_an_open_block():
    assert code.fenced_blocks(textwrap.dedent("a\n```py\nb\n```\nc\n```\nd")) == ["b\n", "d"]
