"""call, check_values, check: verdicts on code that cheats."""

import gzip
import json
import os

import pytest

from qwen_jax import sandbox
from qwen_jax.sandbox import programs, wall_clock
from qwen_jax.sandbox.supervisor import Supervisor
from tests.sandbox import escapes

LIMITS = {"seconds": 5, "memory_mb": 256}
QUICK = [
    "os._exit with status 0",
    "an object that equals everything",
    "two answers, one of them right",
]


def verdicts(code):
    hardened = sandbox.check_values(code, "f", [[1]], [2], **LIMITS)
    return hardened.passed, sandbox.check(code, "assert f(1) == 2", **LIMITS).passed


def test_right_code_passes_both():
    assert verdicts("def f(x): return x + 1") == (True, True)
    assert verdicts("def f(x): return x + 2") == (False, False)


@pytest.mark.parametrize("name", QUICK)
def test_check_values_refuses_a_sample_of_cheats(name):
    code, published = escapes.VERDICTS[name]
    hardened, asserts = verdicts(code)
    assert not hardened and (published is None or asserts == published)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(escapes.VERDICTS) - set(QUICK)))
def test_check_values_refuses_every_cheat(name):
    code, published = escapes.VERDICTS[name]
    hardened, asserts = verdicts(code)
    assert not hardened and (published is None or asserts == published)


def test_call_returns_typed_values():
    code = "def f(x): return {x: [True, 1, 1.5, (None,), {'é'}, b'x', 2j, float('inf'), 10 ** 40]}"
    (outcome,) = sandbox.call(code, "f", [["\ud800"]], **LIMITS)
    assert outcome.error is None
    assert repr(outcome.value) == repr(
        {"\ud800": [True, 1, 1.5, (None,), {"é"}, b"x", 2j, float("inf"), 10**40]}
    )


def test_call_gives_each_input_its_own_copy_and_its_own_error():
    code = "def f(x):\n    x.append(1)\n    if len(x) > 2: raise KeyError('many')\n    return x"
    shared = [5]
    outcomes = sandbox.call(code, "f", [[shared], [shared], [[1, 2]]], **LIMITS)
    assert [outcome.value for outcome in outcomes] == [[5, 1], [5, 1], None]
    assert outcomes[2].error == "KeyError: 'many'" and shared == [5]


def test_call_says_why_nothing_was_returned():
    for code, reason in {
        "def f(x): while": "SyntaxError",
        "def g(x): return 1": "KeyError",
        "def f(x): return object()": "a value of type object",
        "def f(x):\n    while True: pass": "time",
        "import os; os._exit(0)": "ended before",
    }.items():
        (outcome,) = sandbox.call(code, "f", [[1]], seconds=1, memory_mb=256, wall_seconds=1)
        assert outcome.error is not None and reason in outcome.error, code


def test_call_keeps_values_before_a_crash():
    code = "import os\ndef f(x):\n    if x == 2: os._exit(3)\n    return x"
    outcomes = sandbox.call(code, "f", [[1], [2], [3]], **LIMITS)
    assert [outcome.value for outcome in outcomes] == [1, None, None]
    assert [outcome.error is None for outcome in outcomes] == [True, False, False]


def human_eval(shared):
    with gzip.open(shared / "data/eval/HumanEval.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def check_row(row):
    program = row["prompt"] + row["canonical_solution"]
    tests = f"{row['test']}\ncheck({row['entry_point']})\n"
    return sandbox.check(program, tests, seconds=20, memory_mb=1024)


def test_check_passes_solutions_of_human_eval(shared):
    assert [check_row(row).reason for row in human_eval(shared)[::16]] == [""] * 11


@pytest.mark.slow
def test_check_passes_every_solution_of_human_eval(shared):
    assert [row["task_id"] for row in human_eval(shared) if not check_row(row).passed] == []


def test_wall_clock_is_a_multiple_of_cpu_time_that_grows_with_the_load(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 0.5, 0.5))
    assert wall_clock.factor() == 10
    monkeypatch.setattr(os, "getloadavg", lambda: (20.0, 0.5, 0.5))
    assert wall_clock.factor() == 40


def test_check_lets_a_program_wait_longer_than_its_cpu_time(monkeypatch):
    """A sleep is what a busy machine looks like: wall clock goes by, and CPU time does not."""
    program = "import time\ntime.sleep(2)"
    assert sandbox.check(program, "assert True", seconds=0.5, memory_mb=256).passed
    monkeypatch.setattr(wall_clock, "factor", lambda: 1.0)
    found = sandbox.check(program, "assert True", seconds=0.5, memory_mb=256)
    assert found.reason == "time: more than 0.5 s of wall clock"
    found = sandbox.check("while True: pass", "", seconds=1, memory_mb=256, wall_seconds=60)
    assert found.reason == "time: more than 1 s of CPU"


@pytest.mark.parametrize("factor, seconds", [(1.0, 120.0), (40.0, 4800.0)])
def test_compilers_have_a_multiple_of_their_cpu_time(monkeypatch, factor, seconds):
    sent = []

    def run(self, payload, limits, *, build_seconds):
        sent.append((payload["steps"], build_seconds))

    monkeypatch.setattr(Supervisor, "run", run)
    monkeypatch.setattr(wall_clock, "factor", lambda: factor)
    steps = [
        {"compile": compiles, "memory_mb": 64, "environment": {}, "command": ["x"]}
        for compiles in (True, False)
    ]
    programs.build({}, steps, programs.limits_of(3, 64, None), False)
    ((made, total),) = sent
    assert [step["seconds"] for step in made] == [seconds, 3] and total == seconds + 3
    assert made[0]["cpu_seconds"] == 120
