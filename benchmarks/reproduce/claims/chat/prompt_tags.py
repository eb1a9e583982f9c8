"""Report 3.2.1: prompts balanced by their tags make a better reward model than random ones.

The pool of prompts is skewed, as people's prompts are: few kinds make most of it. Equally many
prompts are chosen from it at random, by diversity, by complexity, or by both; each choice trains a
reward model. It is judged on held-out pairs of every kind alike.
"""

import numpy as np

from benchmarks.reproduce import family, feedback, stages
from benchmarks.reproduce.claim import Cell, Measured, Outcome, verdict_of
from benchmarks.reproduce.claims.chat import rlhf
from benchmarks.reproduce.lab import Claim, Lab
from benchmarks.reproduce.tables import gap, row
from qwen_jax.data.chat.prompts import choose_weighted
from qwen_jax.synthetic.worlds import instructions, sums, word_problems
from qwen_jax.synthetic.worlds.problem import LANGUAGES, Problem, is_held_out, sample

POOL, CHOSEN = 6000, 400
ARMS = {  # name -> (balance, complexity) of choose_weighted
    "random": (0.0, 0.0),
    "diversity only": (1.0, 0.0),
    "complexity only": (0.0, 2.0),
    "diversity and complexity": (1.0, 1.0),
}
_WORLDS = (("word problem", word_problems), ("sum", sums), ("instruction", instructions))
KINDS = [
    (world, module, level, language)
    for world, module in _WORLDS
    for level in module.LEVELS
    for language in LANGUAGES
]


def cells(lab: Lab) -> list[Cell]:
    """Returns a reward model for each way to choose prompts."""
    steps = lab.form.steps(feedback.REWARD_STEPS)
    cost = lab.cost(family.SIZES[rlhf.SIZE], steps, 32, stages.LENGTH)
    return [
        Cell(arm, seed, lambda arm=arm, seed=seed: _run(lab, arm, seed), **cost)
        for seed in lab.form.seeds
        for arm in ARMS
    ]


def pool(seed: int, number: int = POOL) -> dict[str, tuple[Problem, list[str]]]:
    """Returns question -> (problem, tags); the kinds are as frequent as words (Zipf's law)."""
    rng = np.random.default_rng([seed, 11])
    shares = 1 / np.arange(1, len(KINDS) + 1)
    order = rng.permutation(len(KINDS))
    found: dict[str, tuple[Problem, list[str]]] = {}
    for index in rng.choice(len(KINDS), 3 * number, p=shares / shares.sum()):
        world, module, level, language = KINDS[order[index]]
        problem = module.make(rng, level, language)
        if not is_held_out(problem.key):
            found[problem.question] = problem, tags_of(world, problem)
        if len(found) == number:
            break
    return found


def tags_of(world: str, problem: Problem) -> list[str]:
    """Returns what a prompt is about; a harder one has more tags."""
    parts = [f"{world}, {part}, {problem.language}" for part in problem.level.split(", ")]
    return [world, *parts, *(["steps"] * any(mark in problem.steps for mark in ";；"))]


def _run(lab: Lab, arm: str, seed: int) -> dict[str, object]:
    start, found = rlhf.sft_folder(lab, seed), pool(seed)
    model, _ = rlhf.sft_model(lab, seed)
    balance, complexity = ARMS[arm]
    tags = {question: tags for question, (_, tags) in found.items()}
    chosen = choose_weighted(tags, CHOSEN, seed=seed, balance=balance, complexity=complexity)
    folder = feedback.reward_model(
        lab, f"tags_{arm.replace(' ', '_')}_{seed}", start,
        _pairs([found[question][0] for question in chosen]), seed=seed,
    )  # fmt: skip
    asked = [
        problem
        for _, module in _WORLDS
        for problem in sample(
            module.make, module.LEVELS, lab.form.items // len(_WORLDS), seed=0, held_out=True
        )
    ]
    kinds = {tag for question in chosen for tag in tags[question]}
    return {
        "right": stages.pair_accuracy(
            lab, model, family.tokenizer(lab), folder, _pairs(asked), "every_kind"
        ),
        "tags": len(kinds) / len({tag for given in tags.values() for tag in given}),
    }


def _pairs(problems: list[Problem]) -> list[dict[str, str]]:
    return [
        {"prompt": each.question, "chosen": each.answer, "rejected": each.wrong}
        for each in problems
    ]


def judge(lab: Lab, measured: Measured) -> Outcome:
    """Compares prompts that are chosen by diversity and complexity with random ones."""
    rows = [row(measured, arm, "right", f"{arm}: held-out pairs right") for arm in ARMS]
    rows += [row(measured, arm, "tags", f"{arm}: tags that are covered") for arm in ARMS]
    both = "diversity and complexity"
    found = gap(measured, both, "random", "right")
    parts = ", ".join(
        f"{arm} {100 * gap(measured, arm, 'random', 'right').estimate:+.1f}"
        for arm in ("diversity only", "complexity only")
    )
    return Outcome(
        rows,
        verdict_of(found.low, found.high),
        (found.low, found.high),
        f"{CHOSEN} prompts of {POOL:,} chosen by both change the accuracy by "
        f"{100 * found.estimate:+.1f} points against random ones; {parts}",
    )


CLAIMS = (
    Claim(
        number=7,
        name="prompt_tags",
        report="3.2.1",
        title="Prompts balanced by tags make a better reward model",
        statement="About 6,600 tags classify the prompts, and a balanced sampling considers both "
        "diversity and complexity.",
        rule="holds if the 95 % interval of the accuracy on held-out pairs of every kind, prompts "
        "chosen by diversity and complexity minus random ones, lies above zero",
        cells=cells,
        judge=judge,
    ),
)
