"""Report 3.4, Tables 6 to 9: tool use before and after SFT, and what a tool is worth.

The tool is a calculator, called in the report's ReAct form. Arithmetic word problems have numbers
of three digits, which a model of this size does not add by itself. Questions that need no tool are
instructions. SFT is on a few worked examples (the seeds), or on many (their filtered expansion).
"""

import re
from collections.abc import Sequence

import numpy as np

from benchmarks.reproduce import family, study
from benchmarks.reproduce.claim import Cell, Measured, Outcome, verdict_of
from benchmarks.reproduce.lab import Claim, Lab
from benchmarks.reproduce.learner import chat_example, train
from benchmarks.reproduce.scoring import responses
from benchmarks.reproduce.tables import gap, row
from qwen_jax.config import ModelConfig
from qwen_jax.data.chat.sft_rows import PackedRows
from qwen_jax.grading import arithmetic
from qwen_jax.synthetic.worlds import instructions
from qwen_jax.synthetic.worlds.problem import LANGUAGES, Problem, is_held_out, is_right, sample
from qwen_jax.types import Params

SIZE, STEPS = "0.6m", 4000
SEEDS = 40  # worked examples before the expansion
ARMS = ("before SFT", "without the tool", "seeds", "expansion")
_CALL = re.compile(r"Action: calculator\nAction Input: ([^\n]+)")
_STORIES = {
    "en": (
        ("A farm has {a} sheep and buys {b} more. How many sheep are there?", "+"),
        ("A library has {a} books and lends {b} of them. How many books are left?", "-"),
        ("{a} people came on Monday and {b} on Tuesday. How many came on both days?", "+"),
    ),
    "zh": (
        ("农场有{a}只羊，又买了{b}只。现在有多少只羊？", "+"),
        ("图书馆有{a}本书，借出{b}本。还剩多少本书？", "-"),
        ("星期一来了{a}人，星期二来了{b}人。两天一共来了多少人？", "+"),
    ),
}
Turns = list[tuple[str, str]]


def cells(lab: Lab) -> list[Cell]:
    """Returns an arm for each way of training; three seeds."""
    cost = lab.cost(family.SIZES[SIZE], lab.form.steps(STEPS), study.BATCH, study.LENGTH)
    return [
        Cell(arm, seed, lambda arm=arm, seed=seed: _run(lab, arm, seed), **cost)
        for seed in lab.form.costly().seeds
        for arm in ARMS
    ]


def problems(number: int, seed: int, *, held_out: bool) -> list[Problem]:
    """Returns word problems with numbers of three digits; `steps` has the expression."""
    rng, found = np.random.default_rng([seed, int(held_out)]), []
    while len(found) < number:
        language = LANGUAGES[len(found) % 2]
        kind = int(rng.integers(3))
        text, operator = _STORIES[language][kind]
        b, a = sorted(int(value) for value in rng.integers(100, 1000, 2))
        key = f"{kind} {a} {b}"
        if is_held_out(key) != held_out:
            continue
        result, expression = (a + b if operator == "+" else a - b), f"{a} {operator} {b}"
        found.append(
            Problem(
                question=text.format(a=a, b=b),
                answer=f"{expression} = {result}",
                steps=expression,
                wrong=f"{expression} = {result + 10}",
                result=str(result),
                level="three digits",
                language=language,
                key=key,
            )
        )
    return found


def with_tool(problem: Problem) -> Turns:
    """Returns the conversation in which the calculator is called, and its result used."""
    return [
        ("user", problem.question),
        ("assistant", f"Action: calculator\nAction Input: {problem.steps}"),
        ("user", f"Observation: {problem.result}"),
        ("assistant", problem.answer),
    ]


def observation(text: str) -> str | None:
    """Returns what the calculator answers to a call in a response; None without a call."""
    call = _CALL.search(text)
    if call is None:
        return None
    value = arithmetic.value(call[1])
    return f"Observation: {'error' if value is None else value}"


def _conversations(arm: str, seed: int, number: int) -> list[Turns]:
    """Returns the examples of an arm; a third of them need no tool."""
    known = problems(SEEDS if arm == "seeds" else number, seed, held_out=False)
    math = [
        [("user", each.question), ("assistant", each.answer)]
        if arm == "without the tool"
        else with_tool(each)
        for each in known
    ]
    others = sample(
        instructions.make, instructions.LEVELS, len(math) // 2, seed=seed, held_out=False
    )
    plain: list[Turns] = [[("user", each.question), ("assistant", each.answer)] for each in others]
    found = math + plain
    return [found[i] for i in np.random.default_rng(seed).permutation(len(found))]


def _trained(lab: Lab, arm: str, seed: int) -> tuple[ModelConfig, Params]:
    model, start = family.base(lab, SIZE)
    if arm == "before SFT":
        return model, start
    steps, tokenizer = lab.form.steps(STEPS), family.tokenizer(lab)
    rows = PackedRows(
        [chat_example(turns, tokenizer) for turns in _conversations(arm, seed, 8 * steps)],
        context_length=study.LENGTH,
    )
    return model, train(model, rows, study.schedule(steps), seed=seed, start=start)


def _run(lab: Lab, arm: str, seed: int) -> dict[str, list[int]]:
    """Returns whether each answer is right, and whether the tool was called as it should be."""
    model, params = _trained(lab, arm, seed)
    tokenizer = family.tokenizer(lab)

    def respond(turns: Sequence[str | Turns]) -> list[str]:
        found = responses(model, params, tokenizer, turns, max_new_tokens=32)
        return [each.text for each in found]

    asked = problems(lab.form.items, 0, held_out=True)
    texts = respond([each.question for each in asked])
    observed = [observation(text) for text in texts]
    called = [i for i, each in enumerate(observed) if each is not None]
    second: list[str | Turns] = [
        [
            ("user", asked[i].question),
            ("assistant", texts[i]),
            ("user", str(observed[i])),
        ]
        for i in called
    ]
    final = list(texts)
    for i, text in zip(called, respond(second) if second else [], strict=True):
        final[i] = text
    unneeded = sample(
        instructions.make, instructions.LEVELS, lab.form.items, seed=0, held_out=True, distinct=True
    )
    others = respond([each.question for each in unneeded])
    return {
        "right": [int(is_right(p, text)) for p, text in zip(asked, final, strict=True)],
        "called": [int(each is not None) for each in observed],
        "right input": [
            int(each == f"Observation: {p.result}") for p, each in zip(asked, observed, strict=True)
        ],
        "false positives": [int(observation(text) is not None) for text in others],
    }


def judge(lab: Lab, measured: Measured) -> Outcome:
    """Compares answers with the tool to those without it, on the same problems."""
    report = {
        "called": "98 % (tool selection, 14B-Chat, Table 6)",
        "false positives": "2.4 % (14B-Chat, Table 6)",
    }
    rows = [
        row(measured, arm, key, f"{arm}: {key}", report=report.get(key, ""))
        for key in ("right", "called", "right input", "false positives")
        for arm in ARMS
    ]
    found = gap(measured, "expansion", "without the tool", "right")
    more = gap(measured, "expansion", "seeds", "right input")
    return Outcome(
        rows,
        verdict_of(found.low, found.high),
        (found.low, found.high),
        f"with the tool {100 * found.estimate:+.1f} points more answers are right; against the "
        f"seeds, the expansion changes right calls by {100 * more.estimate:+.1f} points",
    )


CLAIMS = (
    Claim(
        number=10,
        name="tools",
        report="3.4, Tables 6 to 9",
        title="After SFT a model uses a tool, and answers more with it",
        statement="Trained on about 2,000 samples of self-instruct, Qwen-Chat selects the right "
        "tool in 98 % of the cases and solves more problems with a code interpreter.",
        rule="holds if the 95 % interval of right answers with the tool (expansion) minus without "
        "it, on the same held-out word problems, lies above zero",
        cells=cells,
        judge=judge,
    ),
)
