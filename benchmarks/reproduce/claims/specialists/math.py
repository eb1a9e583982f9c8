"""Report 5, Table 12: math SFT; masking, short sequences, and steps written out."""

from collections.abc import Callable, Sequence

from benchmarks.reproduce.claim import Measured, Outcome, verdict_of
from benchmarks.reproduce.lab import Claim, Lab
from benchmarks.reproduce.learner import Rows
from benchmarks.reproduce.study import PER_STEP, Probe, Study, conversations, probe
from qwen_jax.synthetic.worlds import instructions, sums, word_problems
from qwen_jax.synthetic.worlds.problem import Problem, sample

WORDS = ("one step", "one step, distractor", "two steps")
SUMS = ("one digit", "two digits", "times one digit")


def math_problems(number: int, seed: int) -> list[Problem]:
    """Returns sums and word problems in turns, to train on."""
    half = number // 2
    first = sample(sums.make, SUMS, half, seed=seed, held_out=False)
    second = sample(word_problems.make, WORDS, number - half, seed=seed, held_out=False)
    return [each for pair in zip(first, second, strict=False) for each in pair]


def held_out(lab: Lab) -> dict[str, Probe]:
    """Returns held-out sums and word problems."""
    items = lab.form.items
    return {
        "sums": probe(sample(sums.make, SUMS, items, seed=0, held_out=True, distinct=True)),
        "word problems": probe(
            sample(word_problems.make, WORDS, items, seed=0, held_out=True, distinct=True)
        ),
    }


def _pairs(problems: Sequence[Problem], *, steps: bool = True) -> list[tuple[str, str]]:
    return [(each.question, each.steps if steps else each.answer) for each in problems]


def _math(**changes) -> Callable[[Lab, int, int], Rows]:
    """Returns the rows of an arm that trains on math."""
    written_out = changes.pop("steps", True)

    def rows(lab: Lab, seed: int, steps: int) -> Rows:
        problems = math_problems(PER_STEP * steps, seed)
        return conversations(lab, _pairs(problems, steps=written_out), **changes)

    return rows


def _general(lab: Lab, seed: int, steps: int) -> Rows:
    """Returns instructions with a tenth of math, as a general chat mix has."""
    number = PER_STEP * steps
    found = sample(
        instructions.make, instructions.LEVELS, number * 9 // 10, seed=seed, held_out=False
    )
    return conversations(lab, _pairs([*found, *math_problems(number // 10, seed)]))


MASKING = Study(
    arms={"masked": _math(), "all tokens": _math(masked=False)}, probes=held_out, points=5
)
MIX = Study(arms={"math": _math(), "general": _general}, probes=held_out)
STEPS = Study(arms={"steps": _math(), "answers only": _math(steps=False)}, probes=held_out)


def _judge(
    study: Study, first: str, second: str, name: str, key: str, what: str
) -> Callable[[Lab, Measured], Outcome]:
    def judge(lab: Lab, measured: Measured) -> Outcome:
        found = study.difference(measured, first, second, name, key)
        keys = (
            {"last": ""} if key == "last" else {"last": ", at the end", "area": ", over training"}
        )
        return Outcome(
            study.rows(measured, keys, {}),
            verdict_of(found.low, found.high),
            (found.low, found.high),
            f"with the best learning rate of each arm, {what} by {100 * found.estimate:+.1f} "
            "points",
            (study.curve(measured, name, f"Accuracy on held-out {name}"),)
            if study.points > 1
            else (),
        )

    return judge


CLAIMS = (
    Claim(
        number=12,
        name="math_sft",
        report="5.2, Table 12",
        title="Math SFT beats general SFT on arithmetic and word problems",
        statement="Math-Qwen-Chat scores higher than Qwen-Chat of the same size on GSM8K, MATH, "
        "Math401 and Math23K: 62.5 against 50.3 on GSM8K for 7B.",
        rule="holds if the 95 % interval of math minus general on held-out word problems, each "
        "with its best learning rate and equal steps, lies above zero",
        cells=MIX.cells,
        judge=_judge(MIX, "math", "general", "word problems", "last", "math SFT differs"),
    ),
    Claim(
        number=12,
        name="math_masking",
        report="5.1",
        title="Masking speeds up math SFT",
        statement="System and user turns are masked in math SFT; in preliminary experiments "
        "training converges faster with the mask.",
        rule="holds if the 95 % interval of masked minus all tokens in the mean accuracy over "
        "training on word problems, each with its best learning rate, lies above zero",
        cells=MASKING.cells,
        judge=_judge(
            MASKING,
            "masked",
            "all tokens",
            "word problems",
            "area",
            "masking changes the mean accuracy over training",
        ),
    ),
    Claim(
        number=12,
        name="math_steps",
        report="5.1",
        title="Steps written out beat answers only",
        statement="Math-Qwen-Chat is trained on worked solutions.",
        rule="holds if the 95 % interval of steps minus answers only on held-out word problems, "
        "each with its best learning rate and equal steps, lies above zero",
        cells=STEPS.cells,
        judge=_judge(STEPS, "steps", "answers only", "word problems", "last", "steps differ"),
    ),
)
