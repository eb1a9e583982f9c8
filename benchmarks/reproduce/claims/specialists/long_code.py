"""Report 4.2: with a context of 8,192 tokens, code far back in the file can be used.

Here the context is 1,024 tokens. A file defines constants, then functions; its last line needs the
value of a constant about 750 tokens back. Both arms see equal tokens of such files: in rows of the
full length, or in rows of 256 tokens, which dynamic NTK extends.
"""

import dataclasses

import numpy as np

from benchmarks.reproduce import family
from benchmarks.reproduce.claim import Cell, Measured, Outcome, verdict_of
from benchmarks.reproduce.claims.specialists.code import training_programs
from benchmarks.reproduce.lab import Claim, Lab
from benchmarks.reproduce.learner import Schedule, TextRows, train
from benchmarks.reproduce.scoring import continuations
from benchmarks.reproduce.tables import gap, row
from qwen_jax.tokenizer.bpe import Tokenizer

SIZE, LENGTH, BACK = "0.6m", 1024, 750
STEPS, TOKENS = 2000, 2048  # tokens per step
_CONSTANTS = 8
ARMS = {"rows of 1,024": LENGTH, "rows of 256": family.LENGTH}


def cells(lab: Lab) -> list[Cell]:
    """Returns an arm for each length of a row; three seeds."""
    return [
        Cell(
            arm,
            seed,
            lambda arm=arm, seed=seed: _run(lab, arm, seed),
            **lab.cost(family.SIZES[SIZE], lab.form.steps(STEPS), TOKENS // ARMS[arm], ARMS[arm]),
        )
        for arm in ARMS
        for seed in lab.form.costly().seeds
    ]


def file_of(
    rng: np.random.Generator, tokenizer: Tokenizer, functions: list[str], back: int
) -> tuple[str, str]:
    """Returns a file up to its last assignment, and the number that follows.

    Args:
      back: tokens between the constants and the last line, at least.
    """
    letters = [f"{a}{b}" for a in "ABCDEFGH" for b in "KLMNPQRS"]
    names = [letters[i] for i in rng.choice(len(letters), _CONSTANTS, replace=False)]
    values = [int(value) for value in rng.integers(100, 1000, _CONSTANTS)]
    lines = [f"{name} = {value}" for name, value in zip(names, values, strict=True)]
    between: list[str] = []
    size = 0
    while size < back:
        between.append(functions[rng.integers(len(functions))])
        size += len(tokenizer.encode(between[-1]))
    index = int(rng.integers(_CONSTANTS))
    text = "\n".join([*lines, "", *between, f"# {names[index]}\nresult = "])
    return text, str(values[index])


def _functions(seed: int) -> list[str]:
    return [
        each.prompt + each.body
        for each in training_programs(400, seed)
        if each.programming == "python"
    ]


def _run(lab: Lab, arm: str, seed: int) -> dict[str, list[int]]:
    """Returns for each held-out file whether its constant was completed, far back and near."""
    tokenizer, length = family.tokenizer(lab), ARMS[arm]
    base, start = family.base(lab, SIZE)
    model = dataclasses.replace(base, context_length=length)
    rng, functions, steps = (
        np.random.default_rng([seed, 0]),
        _functions(seed),
        lab.form.steps(STEPS),
    )
    tokens: list[int] = []
    while len(tokens) < steps * TOKENS + 1:
        text, value = file_of(rng, tokenizer, functions, int(rng.integers(20, BACK + 100)))
        tokens += [tokenizer.end_of_text, *tokenizer.encode(f"{text}{value}\n")]
    schedule = Schedule(steps, 1e-3, TOKENS // length, warmup=0.03, cosine=False)
    rows = TextRows(np.array(tokens, np.uint16), length)
    params = train(model, rows, schedule, seed=seed, start=start)
    found = {}
    for name, back in (("far", BACK), ("near", 60)):
        # The same files for all arms and seeds.
        made, others = np.random.default_rng([17, back]), _functions(10_001)
        files = [file_of(made, tokenizer, others, back) for _ in range(lab.form.items)]
        prompts = [[tokenizer.end_of_text, *tokenizer.encode(text)] for text, _ in files]
        texts = continuations(model, params, tokenizer, prompts, max_new_tokens=4)
        found[name] = [
            int(text.split("\n")[0].strip() == value)
            for text, (_, value) in zip(texts, files, strict=True)
        ]
    return found


def judge(lab: Lab, measured: Measured) -> Outcome:
    """Compares long with short rows on constants far back."""
    rows = [
        row(measured, arm, key, f"{arm}: constant {back} tokens back")
        for arm in ARMS
        for key, back in (("far", BACK), ("near", 60))
    ]
    found = gap(measured, "rows of 1,024", "rows of 256", "far")
    return Outcome(
        rows,
        verdict_of(found.low, found.high),
        (found.low, found.high),
        f"training in rows of 1,024 tokens changes the share of constants that are completed from "
        f"{BACK} tokens back by {100 * found.estimate:+.1f} points",
    )


CLAIMS = (
    Claim(
        number=13,
        name="long_code",
        report="4.2",
        title="Long rows let a model complete code from what lies far back",
        statement="Code-Qwen is trained with a context of 8,192 tokens.",
        rule="holds if the 95 % interval of rows of 1,024 minus rows of 256, on constants 750 "
        "tokens back, lies above zero",
        cells=cells,
        judge=judge,
    ),
)
