"""Before the claims: each toy world is neither out of reach of a small model nor too easy for it.

Plain SFT on one world at a time, on the seeds that settings were chosen on.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.reproduce import family, study
from benchmarks.reproduce.bootstrap import mean
from benchmarks.reproduce.claim import Cell, Measured, Outcome, Row
from benchmarks.reproduce.claims.chat import assistant, tools
from benchmarks.reproduce.claims.specialists import code
from benchmarks.reproduce.code_scoring import passes
from benchmarks.reproduce.lab import Claim, Lab
from benchmarks.reproduce.learner import train
from benchmarks.reproduce.scoring import answers
from benchmarks.reproduce.study import Probe, conversations, probe
from qwen_jax.synthetic.worlds import instructions, programs, sums, word_problems
from qwen_jax.synthetic.worlds.problem import Problem, is_right, sample

SIZE, STEPS = "0.6m", 4000
CHOSEN_ON = (0, 1, 2)  # seeds
_NEW = 56  # tokens of a response: the steps of a sum of three digits
_REACHED = 0.6  # of the problems of a level
_SECONDS = 120  # of training, on two quiet cores
Pairs = list[tuple[str, str]]
World = Callable[[Lab, int, int], tuple[Pairs, list[str], Probe]]


def _problems(make: Any, levels: Sequence[str], right: Any, response: str) -> World:
    """Returns (lab, seed, number) -> pairs to train on, levels of held-out problems, probe."""

    def world(lab: Lab, seed: int, number: int) -> tuple[Pairs, list[str], Probe]:
        made: list[Problem] = sample(make, tuple(levels), number, seed=seed, held_out=False)
        asked = sample(make, tuple(levels), lab.form.items, seed=0, held_out=True, distinct=True)
        pairs = [(each.question, getattr(each, response)) for each in made]
        graded = dataclasses.replace(probe(asked, right), max_new_tokens=_NEW)
        return pairs, [each.level for each in asked], graded

    return world


def _programs(lab: Lab, seed: int, number: int) -> tuple[Pairs, list[str], Probe]:
    made = code.training_programs(number, seed, programs.LEVELS)
    asked = code.held_out_programs(lab.form.items, programs.LEVELS)
    graded = Probe([p.prompt for p in asked], lambda texts: passes(asked, texts), code.NEW)
    return code.chat_pairs(made), [each.level for each in asked], graded


def _stories(lab: Lab, seed: int, number: int) -> tuple[Pairs, list[str], Probe]:
    sides = assistant.story_questions(number // 2, seed, held_out=False)
    known, unknown = assistant.story_questions(lab.form.items // 2, 0, held_out=True)
    levels = ["in the story"] * len(known) + ["not in the story"] * len(unknown)
    made = [pair for pairs in zip(*sides, strict=True) for pair in pairs]
    return made, levels, assistant.graded(known + unknown)


def _calls(lab: Lab, seed: int, number: int) -> tuple[Pairs, list[str], Probe]:
    made, asked = (
        tools.problems(size, which, held_out=held)
        for size, which, held in ((number, seed, False), (lab.form.items, 0, True))
    )
    pairs = [(each.question, tools.with_tool(each)[1][1]) for each in made]
    right = [f"Observation: {each.result}" for each in asked]
    graded = Probe(
        [each.question for each in asked],
        lambda texts: [
            int(tools.observation(text) == result)
            for text, result in zip(texts, right, strict=True)
        ],
        32,
    )
    return pairs, [each.level for each in asked], graded


WORLDS: dict[str, World] = {
    "sums": _problems(sums.make, sums.LEVELS, is_right, "answer"),
    "sums with steps": _problems(sums.make, sums.LEVELS, is_right, "steps"),
    "word problems": _problems(word_problems.make, word_problems.LEVELS, is_right, "steps"),
    "instructions": _problems(
        instructions.make, instructions.LEVELS, instructions.is_right, "answer"
    ),
    "programs": _programs,
    "stories": _stories,
    "tool calls": _calls,
}


def cells(lab: Lab) -> list[Cell]:
    """Returns a cell for each world and seed that settings were chosen on."""
    cost = lab.cost(family.SIZES[SIZE], lab.form.steps(STEPS), study.BATCH, study.LENGTH)
    seeds = CHOSEN_ON if lab.form.name == "full" else CHOSEN_ON[:1]
    return [
        Cell(world, seed, lambda world=world, seed=seed: _run(lab, world, seed), **cost)
        for seed in seeds
        for world in WORLDS
    ]


def _run(lab: Lab, world: str, seed: int) -> dict[str, Any]:
    """Returns level -> 1 for each held-out problem that is right, and the seconds of training."""
    model, start = family.base(lab, SIZE)
    steps = lab.form.steps(STEPS)
    pairs, levels, asked = WORLDS[world](lab, seed, study.PER_STEP * steps)
    began = time.time()
    rows = conversations(lab, pairs)
    params = train(model, rows, study.schedule(steps), seed=seed, start=start)
    seconds = time.time() - began
    texts = answers(
        model, params, family.tokenizer(lab), asked.questions, max_new_tokens=asked.max_new_tokens
    )
    right = np.array(asked.grade(texts))
    by_level = {level: right[np.array(levels) == level].tolist() for level in dict.fromkeys(levels)}
    return {"right": by_level, "seconds": seconds}


def judge(lab: Lab, measured: Measured) -> Outcome:
    """Looks for a level that is reached and one that is not in each world."""
    rows, failed, best = [], [], []
    for world, by_seed in measured.items():
        shares = []
        for level in next(iter(by_seed.values()))["right"]:
            values = [found["right"][level] for _, found in sorted(by_seed.items())]
            per_seed = tuple(sum(each) / len(each) for each in values)
            rows.append(Row(f"{world}: {level}", *mean(values), per_seed=per_seed))
            shares.append(rows[-1].ours)
        best.append(max(shares))
        if max(shares) < _REACHED:
            failed.append(f"{world} is out of reach")
        elif min(shares) >= _REACHED and len(shares) > 1:
            failed.append(f"{world} is easy at every level")
    seconds = [found["seconds"] for by_seed in measured.values() for found in by_seed.values()]
    return Outcome(
        rows,
        "does not show" if failed else "holds",
        (min(best), max(best)),
        f"SFT took {min(seconds):.0f} to {max(seconds):.0f} s a world"
        + (f"; {'; '.join(failed)}" if failed else "; every world passes"),
    )


CLAIMS = (
    Claim(
        number=-1,
        name="gate",
        report="-",
        title="The toy worlds can be learned, and not all of them at once",
        statement="(Not in the report.) A claim about training is only tested on problems that a "
        "model of this size can learn.",
        rule=f"a world passes if plain SFT of 0.6M parameters, which takes at most {_SECONDS} s on "
        f"two quiet cores, is right on {_REACHED:.0%} of its easiest level and not on its hardest",
        cells=cells,
        judge=judge,
    ),
)
