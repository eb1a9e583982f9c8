"""Report 3, 3.2, 6.2: a base model does not answer as an assistant; SFT and RLHF deviate less.

All get the same questions: instructions, and questions about stories, a half of which the story
does not answer. RLHF is PPO on a reward model of the SFT model's own samples, collected twice.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.reproduce import checker, family, feedback, study
from benchmarks.reproduce.claim import Cell, Curve, Measured, Outcome, Row, verdict_of
from benchmarks.reproduce.lab import Claim, Lab
from benchmarks.reproduce.learner import train
from benchmarks.reproduce.scoring import responses
from benchmarks.reproduce.study import Probe, conversations
from benchmarks.reproduce.tables import gap, row
from qwen_jax.config import ModelConfig
from qwen_jax.grading.repetition import repetition
from qwen_jax.synthetic.worlds import instructions, stories
from qwen_jax.synthetic.worlds.problem import LANGUAGES, is_held_out, sample
from qwen_jax.types import Params

SIZE, STEPS, NEW = "0.6m", 4000, 32
SAMPLES, PROMPTS = 4, 800  # responses per prompt, and prompts, that preferences are collected from
ARMS = ("base", "SFT", "RLHF")
_UNKNOWN = {"en": "The story does not say.", "zh": "故事里没有说。"}
_MEASURES = {
    "ends": "responses that end",
    "repeats": "4-grams that repeat",
    "follows": "instructions that are followed",
    "reads": "answers that the story has",
    "invents": "answers that the story does not have (hallucinated)",
}


def cells(lab: Lab) -> list[Cell]:
    """Returns the base, the model after SFT, and that after RLHF; three seeds."""
    cost = lab.cost(family.SIZES[SIZE], lab.form.steps(STEPS), study.BATCH, study.LENGTH)
    return [
        Cell(arm, seed, lambda arm=arm, seed=seed: _run(lab, arm, seed), **cost)
        for seed in lab.form.costly().seeds
        for arm in ARMS
    ]


def story_questions(
    number: int, seed: int, *, held_out: bool
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Returns questions with answers: of stories that have them, and of stories that do not."""
    rng = np.random.default_rng([seed, int(held_out)])
    known: list[tuple[str, str]] = []
    unknown: list[tuple[str, str]] = []
    while len(known) < number:
        language = LANGUAGES[len(known) % 2]
        story, other = stories.make(rng, language), stories.make(rng, language)
        if is_held_out(story.key) != held_out or is_held_out(other.key) != held_out:
            continue
        thing = other.question
        if "story" in thing or "故事" in thing or other.question == story.question:
            continue  # every story has a place
        if _thing(other) in story.text:
            continue
        known.append((f"{story.text}\n{story.question}", story.answer))
        unknown.append((f"{story.text}\n{other.question}", _UNKNOWN[language]))
    return known, unknown


def _thing(story: stories.Story) -> str:
    """Returns the thing that a story's question names."""
    if story.language == "zh":
        return story.question.split("是")[0]
    return story.question.rstrip("?").split()[-1]


def training_pairs(number: int, seed: int) -> list[tuple[str, str]]:
    """Returns questions with answers: instructions, and as many about stories."""
    followed = sample(
        instructions.make, instructions.LEVELS, number // 2, seed=seed, held_out=False
    )
    known, unknown = story_questions(number // 4, seed, held_out=False)
    pairs = [(each.question, each.answer) for each in followed] + known + unknown
    order = np.random.default_rng(seed).permutation(len(pairs))
    return [pairs[i] for i in order]


def _sft(lab: Lab, seed: int) -> tuple[ModelConfig, Params]:
    model, start = family.base(lab, SIZE)
    steps = lab.form.steps(STEPS)

    def make() -> Params:
        rows = conversations(lab, training_pairs(study.PER_STEP * steps, seed))
        return train(model, rows, study.schedule(steps), seed=seed, start=start)

    return model, lab.model(f"assistant_sft_{seed}", model, family.tokenizer(lab), make)


def _rlhf(lab: Lab, model: ModelConfig, params: Params, seed: int) -> tuple[Params, dict]:
    """Returns the policy after RLHF, with its curves."""

    def collect(policy: Params, turn: int) -> feedback.Pairs:
        asked = training_pairs(PROMPTS, seed + 3 + 1000 * turn)
        return feedback.sampled_pairs(
            lab, model, policy, graded(asked), samples=SAMPLES, seed=seed + 1000 * turn
        )

    prompts = [{"prompt": q, "result": a} for q, a in training_pairs(2000, seed + 1)]
    folder = lab.folder / "models" / f"assistant_sft_{seed}"
    return feedback.align(
        lab, f"assistant_{seed}", folder, model, params, [collect, collect], prompts, seed=seed,
        max_new_tokens=NEW,
    )  # fmt: skip


def graded(pairs: Sequence[tuple[str, str]]) -> Probe:
    """Returns a probe of questions whose responses must be the given answers."""
    answers = [answer for _, answer in pairs]
    return Probe(
        [question for question, _ in pairs],
        lambda texts: [
            int(checker.is_result(text, answer))
            for text, answer in zip(texts, answers, strict=True)
        ],
        NEW,
    )


def _run(lab: Lab, arm: str, seed: int) -> dict[str, Any]:
    model, params = family.base(lab, SIZE) if arm == "base" else _sft(lab, seed)
    tokenizer, curves = family.tokenizer(lab), {}
    if arm == "RLHF":
        params, found = _rlhf(lab, model, params, seed)
        curves = found["curves"]
    items = lab.form.items
    asked = sample(
        instructions.make, instructions.LEVELS, items, seed=0, held_out=True, distinct=True
    )
    known, unknown = story_questions(items, 0, held_out=True)

    def respond(questions: list[str]) -> list[Any]:
        return responses(model, params, tokenizer, questions, max_new_tokens=NEW)

    first = respond([each.question for each in asked])
    second, third = (respond([question for question, _ in side]) for side in (known, unknown))
    return {
        "curves": curves,
        "ends": [float(each.ended) for each in first],
        "repeats": [repetition(each.text) for each in first],
        "follows": [
            float(instructions.is_right(problem, each.text))
            for problem, each in zip(asked, first, strict=True)
        ],
        "reads": [
            float(answer.lower() in each.text.lower())
            for (_, answer), each in zip(known, second, strict=True)
        ],
        "invents": [
            float(answer not in each.text) for (_, answer), each in zip(unknown, third, strict=True)
        ],
    }


def judge(lab: Lab, measured: Measured) -> Outcome:
    """Compares how often SFT and base follow an instruction."""
    rows = [
        row(measured, arm, key, f"{arm}: {name}") for key, name in _MEASURES.items() for arm in ARMS
    ]
    found = gap(measured, "SFT", "base", "follows")
    keys = ("ends", "repeats", "invents")
    ends, repeats, invents = (gap(measured, "SFT", "base", key).estimate for key in keys)
    more = {key: gap(measured, "RLHF", "SFT", key) for key in ("follows", "invents")}
    rows += [Row(f"RLHF minus SFT: {_MEASURES[key]}", *each) for key, each in more.items()]
    curves = next(iter(measured["RLHF"].values()))["curves"]
    return Outcome(
        rows,
        verdict_of(found.low, found.high),
        (found.low, found.high),
        f"SFT follows {100 * found.estimate:+.1f} points more instructions; responses that end "
        f"{100 * ends:+.1f}, repeated 4-grams {100 * repeats:+.1f}, hallucinated answers "
        f"{100 * invents:+.1f} points. RLHF after it changes instructions that are followed by "
        f"{100 * more['follows'].estimate:+.1f} and hallucinated answers by "
        f"{100 * more['invents'].estimate:+.1f} points",
        [Curve(f"RLHF: {name}", "step", name, {"RLHF": line}) for name, line in curves.items()],
    )


CLAIMS = (
    Claim(
        number=0,
        name="assistant",
        report="3, 3.2, 6.2",
        title="A base model is not an assistant; SFT makes it one",
        statement="Pretrained models do not act as assistants; SFT and RLHF align them, so that "
        "they deviate, repeat and hallucinate less.",
        rule="holds if the 95 % interval of SFT minus base on held-out instructions lies above "
        "zero",
        cells=cells,
        judge=judge,
    ),
)
