"""Report 4.2: code SFT in several stages beats one stage.

All arms start from one model that continued on code and text, and train for equally many steps. The
first stage has many short functions in every phrasing, the second fewer and harder ones. One arm
has both in turn, one a shuffled mix of the same data, one only the second.
"""

from typing import Any

from benchmarks.reproduce import family, study
from benchmarks.reproduce.claim import Cell, Measured, Outcome, verdict_of
from benchmarks.reproduce.claims.specialists import code
from benchmarks.reproduce.code_scoring import passes
from benchmarks.reproduce.lab import Claim, Lab
from benchmarks.reproduce.learner import train
from benchmarks.reproduce.scoring import answers
from benchmarks.reproduce.study import conversations
from benchmarks.reproduce.tables import gap, row
from qwen_jax.synthetic.worlds import programs

FIRST, SECOND = programs.LEVELS[:2], programs.LEVELS[2:]
STEPS, RATE = 2000, 2e-3  # steps of a stage
_HARD = 300  # programs of the second stage: few
ARMS = ("two stages", "one stage, shuffled", "second stage only")


def cells(lab: Lab) -> list[Cell]:
    """Returns an arm for each order of the data; three seeds."""
    steps = lab.form.steps(code.CONTINUED) + 2 * lab.form.steps(STEPS)
    cost = lab.cost(family.SIZES[code.SIZE], steps, study.BATCH, study.LENGTH)
    return [
        Cell(arm, seed, lambda arm=arm, seed=seed: _run(lab, arm, seed), **cost)
        for seed in lab.form.costly().seeds
        for arm in ARMS
    ]


def _run(lab: Lab, arm: str, seed: int) -> dict[str, Any]:
    """Returns whether each held-out program of the second stage's levels passes its tests."""
    model, params = code.continued(lab, "code and text", seed)
    steps = lab.form.steps(STEPS)
    easy = code.chat_pairs(code.training_programs(study.PER_STEP * steps, seed + 70, FIRST))
    hard = code.chat_pairs(code.training_programs(_HARD, seed + 71, SECOND))
    stages = {
        "two stages": [(easy, steps), (hard, steps)],
        # The hard ones as often as the second stage sees them, which has the same number of steps.
        "one stage, shuffled": [(easy + hard * max(1, len(easy) // len(hard)), 2 * steps)],
        "second stage only": [(hard, 2 * steps)],
    }[arm]
    for number, (pairs, length) in enumerate(stages):
        # A new optimizer in each stage, as in experiments.code_chat.
        schedule = study.schedule(length, RATE)
        params = train(model, conversations(lab, pairs), schedule, seed=seed + number, start=params)
    asked = code.held_out_programs(lab.form.items, SECOND)
    replies = answers(
        model, params, family.tokenizer(lab), [each.prompt for each in asked],
        max_new_tokens=code.NEW,
    )  # fmt: skip
    return {"right": passes(asked, replies)}


def judge(lab: Lab, measured: Measured) -> Outcome:
    """Compares two stages with the shuffled mix of the same data."""
    rows = [row(measured, arm, "right", f"{arm}: pass@1 of the harder levels") for arm in ARMS]
    found = gap(measured, ARMS[0], ARMS[1], "right")
    alone = gap(measured, ARMS[0], ARMS[2], "right")
    return Outcome(
        rows,
        verdict_of(found.low, found.high),
        (found.low, found.high),
        f"at equal steps, two stages are {100 * found.estimate:+.1f} points ahead of one with the "
        f"same data shuffled, and {100 * alone.estimate:+.1f} ahead of only the second",
    )


CLAIMS = (
    Claim(
        number=11,
        name="code_stages",
        report="4.2",
        title="Code SFT in several stages beats one stage",
        statement="A multi-stage SFT strategy yields the best performance for Code-Qwen-Chat.",
        rule="holds if the 95 % interval of pass@1 on harder programs, two stages minus one stage "
        "with the same data shuffled, lies above zero",
        cells=cells,
        judge=judge,
    ),
)
