"""Report 2.1: each part of the data plan lowers the loss at equal tokens; instructions help too.

The corpus is documentation with what crawls have: copies, copies with small changes, boilerplate,
insults, and text without sense. The pipeline's own stages clean it; the scoring models are trained
on the spot. All arms read equally many tokens of what is left.
"""

from typing import Any

import numpy as np

from benchmarks.reproduce import family
from benchmarks.reproduce.claim import Cell, Measured, Outcome, verdict_of
from benchmarks.reproduce.lab import Claim, Lab
from benchmarks.reproduce.learner import Schedule, TextRows, held_out_losses, train
from benchmarks.reproduce.scoring import continuations
from benchmarks.reproduce.tables import gap, row
from qwen_jax.corpus import pipeline
from qwen_jax.corpus.dedup.exact import ExactDedup
from qwen_jax.corpus.dedup.near import NearDedup
from qwen_jax.corpus.filters import linear
from qwen_jax.corpus.filters.linear import LinearFilterStage
from qwen_jax.corpus.filters.perplexity import NgramFilter, PerplexityRules, PerplexityStage
from qwen_jax.corpus.filters.quality_rules import QualityStage
from qwen_jax.corpus.output.tokenize import source_documents
from qwen_jax.corpus.sources.read import Read
from qwen_jax.errors import DataError
from qwen_jax.synthetic.worlds import instructions, stories
from qwen_jax.synthetic.worlds.problem import LANGUAGES, sample
from qwen_jax.utils.jsonl import write_rows

SIZE, STEPS, BATCH, DOCUMENTS = "0.6m", 3000, 2, 1500
ARMS = ("nothing", "deduplication", "+ rules", "+ models")
_CHUNKS = 32  # held-out parts of 2,048 tokens
_CHARACTERS = 6000  # of a document
_PERPLEXITY = PerplexityRules(strangest=0.1, easiest=0.1)  # few texts: no finer quantiles
_ADVERTS = (
    "Click here to subscribe to our newsletter.", "Share this page with your friends.",
    "Buy now and save up to 50 % today only!", "Accept all cookies to continue.",
    "Log in or sign up to see more.", "Copyright, all rights reserved.",
)  # fmt: skip
_LABELED = 500  # rows of the model that scores offensive text, a half of them offensive
_OFFENSIVE = {  # mild, and from templates: {0} is who, {1} what they are called
    "en": (
        ("{0} are all {1}.", "Nobody wants to hear from {1} like {0}.", "Shut up, you {1}.",
         "I hate {0}, they are {1}.", "Get lost, {0}, you {1}."),
        ("the neighbors", "those people", "you and your friends", "drivers", "our visitors"),
        ("idiots", "stupid fools", "worthless liars", "pathetic losers", "disgusting morons"),
    ),
    "zh": (
        ("{0}都是{1}。", "谁想听{0}这种{1}说话。", "闭嘴，你们这些{1}。", "我讨厌{0}，他们是{1}。",
         "{0}，滚开，{1}。"),
        ("邻居们", "那些人", "你和你的朋友", "司机们", "客人们"),
        ("白痴", "蠢货", "没用的骗子", "可悲的废物", "恶心的笨蛋"),
    ),
}  # fmt: skip


def cells(lab: Lab) -> list[Cell]:
    """Returns an arm for each part of the plan; three seeds."""
    cost = lab.cost(family.SIZES[SIZE], lab.form.steps(STEPS), BATCH, family.LENGTH)
    return [
        Cell(arm, seed, lambda arm=arm, seed=seed: _run(lab, arm, seed), **cost)
        for seed in lab.form.costly().seeds
        for arm in ARMS
    ]


def dirty(documents: list[str], rng: np.random.Generator) -> list[str]:
    """Returns the documents, shuffled with copies, changed copies, boilerplate and nonsense."""
    found = list(documents)
    for document in documents:
        kind = rng.random()
        if kind < 0.3:
            found += [document] * 3
        elif kind < 0.5:
            found.append(_changed(document, rng))
        elif kind < 0.7:
            found.append(_boilerplate(rng))
        elif kind < 0.8:
            found.append(offensive(rng))
        elif kind < 0.95:
            found.append(nonsense(document, rng))
    return [found[i] for i in rng.permutation(len(found))]


def _boilerplate(rng: np.random.Generator) -> str:
    return "\n".join(rng.choice(_ADVERTS, int(rng.integers(20, 60))))


def offensive(rng: np.random.Generator, lines: tuple[int, int] = (20, 60)) -> str:
    """Returns mild insults from templates, in English or Chinese."""
    forms, who, names = _OFFENSIVE[LANGUAGES[rng.integers(2)]]
    return "\n".join(
        str(rng.choice(forms)).format(rng.choice(who), rng.choice(names))
        for _ in range(int(rng.integers(*lines)))
    )


def _changed(document: str, rng: np.random.Generator) -> str:
    words = document.split(" ")
    for i in range(int(rng.integers(40)), len(words), 40):
        words[i] = "page"
    return " ".join(words)


def nonsense(document: str, rng: np.random.Generator) -> str:
    """Returns a document with the words of each line in random order."""
    return "\n".join(
        " ".join(rng.permutation(line.split())) if line.strip() else ""
        for line in document.split("\n")
    )


def _run(lab: Lab, arm: str, seed: int) -> dict[str, Any]:
    """Returns the held-out losses, and which share of the documents is left."""
    rng = np.random.default_rng(seed)
    documents = [
        text[:_CHARACTERS]
        for text in family.all_documents(lab)["docs"]
        if len(text) > 400 and not family.is_kept_out(text)
    ]
    number = min(len(documents), max(120, round(DOCUMENTS * lab.form.share)))
    chosen = [documents[i] for i in rng.permutation(len(documents))[:number]]
    reference, crawled = chosen[: number // 3], dirty(chosen[number // 3 :], rng)
    folder = lab.folder / "data_plan" / f"{arm.replace(' ', '_')}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "crawl.jsonl", ({"text": text, "language": "en"} for text in crawled))
    steps = [Read(), *_stages(lab, arm, reference, folder, seed)]
    sources = [f"crawl=text:{folder}/crawl.jsonl"]
    result = pipeline.run(sources, steps, str(folder / "stages"), workers=0)
    kept = [document.text for document in source_documents(result, "crawl")]
    tokenizer = family.tokenizer(lab)
    tokens: list[int] = []
    for text in kept:
        tokens += [tokenizer.end_of_text, *tokenizer.encode(text)]
    if len(tokens) <= family.LENGTH:
        raise DataError(
            f"only {len(kept)} of {len(crawled)} documents are left.", str(folder / "stages"),
            "see counts.json there for the rules that rejected the others.",
        )  # fmt: skip
    model = family.SIZES[SIZE]
    params = train(
        model,
        TextRows(np.array(tokens, np.uint16), family.LENGTH),
        Schedule(lab.form.steps(STEPS), family.RATES[SIZE], BATCH),
        seed=seed,
    )
    held_out = family.text(lab).held_out["docs"]
    return {
        "loss": held_out_losses(model, params, held_out, family.LENGTH, chunks=_CHUNKS),
        "kept": len(kept) / len(crawled),
    }


def _stages(lab: Lab, arm: str, reference: list[str], folder: Any, seed: int) -> list[Any]:
    """Returns the stages of an arm; its perplexity model is against nonsense, its classifiers
    are against boilerplate and insults."""
    stages: list[Any] = []
    if arm != "nothing":
        stages += [ExactDedup("document"), NearDedup()]
    if arm in ("+ rules", "+ models"):
        stages.append(QualityStage())
    if arm == "+ models":
        third = len(reference) // 3
        tokenizer = family.tokenizer(lab)
        NgramFilter.fit(reference[third:], reference[:third], tokenizer, rules=_PERPLEXITY).save(
            folder / "ngram.npz"
        )
        rng = np.random.default_rng([seed, 1])
        adverts = [_boilerplate(rng) for _ in reference]
        _classifier("good", reference, adverts).save(folder / "quality.npz")
        insults = [offensive(rng, (1, 6)) for _ in range(_LABELED // 2)]
        _classifier("offensive", insults, _harmless(reference, rng)).save(folder / "offensive.npz")
        tokenizer_file = str(lab.folder / "tokenizer.tiktoken")
        stages += [
            PerplexityStage((("en", str(folder / "ngram.npz")),), tokenizer_file),
            LinearFilterStage(str(folder / "quality.npz"), "quality", keep_marked=True),
            LinearFilterStage(str(folder / "offensive.npz"), "offensive", keep_marked=False),
        ]
    return stages


def _harmless(reference: list[str], rng: np.random.Generator) -> list[str]:
    """Returns as many harmless texts as insults: lines of documentation, and stories in Chinese."""
    half = _LABELED // 4
    lines = [line for text in reference for line in text.split("\n") if len(line) > 40]
    english = [lines[i] for i in rng.integers(0, len(lines), half)]
    return english + [stories.make(rng, "zh").text for _ in range(half)]


def _classifier(label: str, marked: list[str], others: list[str]) -> linear.LinearFilter:
    """Trains a classifier that marks texts; every third text sets its threshold."""
    texts = [*marked, *others]
    labels = [True] * len(marked) + [False] * len(others)
    sides = [[i for i in range(len(texts)) if (i % 3 == 0) == held] for held in (False, True)]
    train_on, held_out = (([texts[i] for i in s], [labels[i] for i in s]) for s in sides)
    return linear.train(*train_on, label=label, held_out=held_out, settings=linear.RECIPE)


def judge(lab: Lab, measured: Measured) -> Outcome:
    """Compares the whole plan with nothing."""
    rows = [
        row(measured, arm, "loss", f"{arm}: held-out loss (nats per token)", percent=False)
        for arm in ARMS
    ]
    rows += [row(measured, arm, "kept", f"{arm}: documents that are left") for arm in ARMS]
    found = gap(measured, "nothing", ARMS[-1], "loss")
    parts = [
        f"{arm} {gap(measured, before, arm, 'loss').estimate:+.3f}"
        for before, arm in zip(ARMS, ARMS[1:], strict=False)
    ]
    return Outcome(
        rows,
        verdict_of(found.low, found.high),
        (found.low, found.high),
        f"the plan lowers the loss at equal tokens by {found.estimate:+.3f} nats per token: "
        + ", ".join(parts),
    )


_MIXES: dict[str, float] = {"without instructions": 0.0, "with instructions": 0.1}
_SHOTS = 3


def _instruction_cells(lab: Lab) -> list[Cell]:
    cost = lab.cost(family.SIZES[SIZE], lab.form.steps(STEPS), BATCH, family.LENGTH)
    return [
        Cell(arm, seed, lambda arm=arm, seed=seed: _run_instructions(lab, arm, seed), **cost)
        for seed in lab.form.costly().seeds
        for arm in _MIXES
    ]


def _run_instructions(lab: Lab, arm: str, seed: int) -> dict[str, list[int]]:
    """Pretrains with a share of instruction data; returns what is right with three examples."""
    text, tokenizer = family.text(lab), family.tokenizer(lab)
    steps, share = lab.form.steps(STEPS), _MIXES[arm]
    number = steps * BATCH * family.LENGTH
    made = sample(
        instructions.make, instructions.LEVELS, max(400, round(share * number / 20)), seed=seed,
        held_out=False,
    )  # fmt: skip
    tokens = [
        token
        for i in range(0, len(made), 8)
        for token in (tokenizer.end_of_text, *tokenizer.encode(_listed(made[i : i + 8])))
    ]
    mixed = family.Text(
        text.train | {"instructions": np.array(tokens, np.uint16)}, text.held_out
    ).mixture({"docs": 0.8 - share, "worlds": 0.2, "instructions": share}, number, seed)
    model = family.SIZES[SIZE]
    schedule = Schedule(steps, family.RATES[SIZE], BATCH)
    params = train(model, TextRows(mixed, family.LENGTH), schedule, seed=seed)
    asked = sample(
        instructions.make, instructions.LEVELS, lab.form.items, seed=0, held_out=True, distinct=True
    )
    shots = {
        (level, language): sample(
            instructions.make, (level,), _SHOTS, seed=1, held_out=False, languages=(language,)
        )
        for level in instructions.LEVELS
        for language in ("en", "zh")
    }
    prompts = [
        [
            tokenizer.end_of_text,
            *tokenizer.encode(f"{_listed(shots[p.level, p.language])}\n{p.question}\n"),
        ]
        for p in asked
    ]
    texts = continuations(model, params, tokenizer, prompts, max_new_tokens=24)
    return {
        "right": [
            int(instructions.is_right(p, text.split("\n")[0]))
            for p, text in zip(asked, texts, strict=True)
        ]
    }


def _listed(made: list[Any]) -> str:
    return "\n".join(f"{each.question}\n{each.answer}" for each in made)


def _judge_instructions(lab: Lab, measured: Measured) -> Outcome:
    rows = [row(measured, arm, "right", f"{arm}: 3-shot instructions") for arm in _MIXES]
    found = gap(measured, "with instructions", "without instructions", "right")
    return Outcome(
        rows,
        verdict_of(found.low, found.high),
        (found.low, found.high),
        f"a tenth of instruction data in pretraining changes 3-shot accuracy by "
        f"{100 * found.estimate:+.1f} points",
    )


CLAIMS = (
    Claim(
        number=5,
        name="data_plan",
        report="2.1",
        title="Deduplication, rules and scoring models lower the loss at equal tokens",
        statement="Data are deduplicated, and filtered by rules and by models that score language, "
        "quality and offensive content.",
        rule="holds if the 95 % interval of the held-out loss with nothing minus with the whole "
        "plan, at equal tokens, lies above zero",
        cells=cells,
        judge=judge,
    ),
    Claim(
        number=5,
        name="data_instructions",
        report="2.1",
        title="Instruction data in pretraining improve few-shot accuracy",
        statement="High-quality instruction data are mixed into pretraining, since multi-task "
        "instructions enhance zero-shot and few-shot performance.",
        rule="holds if the 95 % interval of 3-shot accuracy with instructions minus without, at "
        "equal tokens, lies above zero",
        cells=_instruction_cells,
        judge=_judge_instructions,
    ),
)
