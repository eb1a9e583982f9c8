"""Report 4, Tables 10 and 11: continued pretraining on code, chat SFT in stages, what it costs.

All arms continue from one base with equal tokens, then get the same small SFT on programs.
"""

from collections.abc import Sequence

import numpy as np

from benchmarks.reproduce import family, study
from benchmarks.reproduce.bootstrap import difference
from benchmarks.reproduce.claim import Cell, Measured, Outcome, verdict_of
from benchmarks.reproduce.code_scoring import passes
from benchmarks.reproduce.lab import Claim, Lab, rows_of
from benchmarks.reproduce.learner import Schedule, TextRows, held_out_losses, train
from benchmarks.reproduce.scoring import answers, continuations
from benchmarks.reproduce.study import conversations
from benchmarks.reproduce.tables import gap, row
from qwen_jax.config import ModelConfig
from qwen_jax.synthetic.worlds import programs
from qwen_jax.synthetic.worlds.problem import LANGUAGES, is_held_out
from qwen_jax.types import Params

SIZE, NEW = "0.6m", 40  # tokens of a body, at most
CONTINUED, SFT, BATCH = 4000, 2000, 2
_CHUNKS = 24  # held-out parts of 2,048 tokens
MIXES = {  # arm -> shares of the sources; "programs" is text made here, one per document
    "text only": {"docs": 1.0},
    "code only": {"code": 0.3, "programs": 0.7},
    "code and text": {"code": 0.2, "programs": 0.5, "docs": 0.3},
}
LEVELS = programs.LEVELS[:4]


def training_programs(
    number: int, seed: int, levels: Sequence[str] = LEVELS
) -> list[programs.Program]:
    """Returns random programs in both programming languages, none of them held out."""
    return _programs(number, seed, levels, held_out=False)


def held_out_programs(number: int, levels: Sequence[str] = LEVELS) -> list[programs.Program]:
    """Returns programs that no training text has, in both programming languages."""
    return _programs(number, 0, levels, held_out=True)


def _programs(number: int, seed: int, levels, *, held_out: bool) -> list[programs.Program]:
    rng, found = np.random.default_rng([seed, int(held_out)]), []
    while len(found) < number:
        at = len(found)
        program = programs.make(
            rng,
            levels[at % len(levels)],
            LANGUAGES[at // len(levels) % 2],
            programs.PROGRAMMING[at // (2 * len(levels)) % 2],
        )
        if is_held_out(program.key) == held_out:
            found.append(program)
    return found


def cells(lab: Lab) -> list[Cell]:
    """Returns the base, and each mix with an SFT behind it."""
    cost = lab.cost(
        family.SIZES[SIZE],
        lab.form.steps(CONTINUED) + lab.form.steps(SFT),
        BATCH,
        family.LENGTH,
    )
    return [
        Cell(arm, seed, lambda arm=arm, seed=seed: _run(lab, arm, seed), **cost)
        for seed in lab.form.costly().seeds
        for arm in ("base", *MIXES)
    ]


def continued(lab: Lab, arm: str, seed: int) -> tuple[ModelConfig, Params]:
    """Returns the base after continued pretraining on a mix; the base itself for "base"."""
    model, start = family.base(lab, SIZE)
    if arm == "base":
        return model, start
    steps = lab.form.steps(CONTINUED)

    def make() -> Params:
        tokens = _mixture(lab, MIXES[arm], steps * BATCH * family.LENGTH, seed)
        schedule = Schedule(steps, 1e-3, BATCH, warmup=0.03, cosine=False)  # report 4: constant
        return train(model, TextRows(tokens, family.LENGTH), schedule, seed=seed, start=start)

    name = f"code_{arm.replace(' ', '_')}_{seed}"
    return model, lab.model(name, model, family.tokenizer(lab), make)


def _mixture(lab: Lab, shares: dict[str, float], number: int, seed: int) -> np.ndarray:
    text, tokenizer = family.text(lab), family.tokenizer(lab)
    found = training_programs(number // 60, seed)
    tokens: list[int] = []
    for program in found:
        tokens += [tokenizer.end_of_text, *tokenizer.encode(program.prompt + program.body)]
    with_programs = family.Text(
        text.train | {"programs": np.array(tokens, np.uint16)}, text.held_out
    )
    return with_programs.mixture(shares, number, seed)


def _run(lab: Lab, arm: str, seed: int) -> dict:
    model, params = continued(lab, arm, seed)
    tokenizer, problems = family.tokenizer(lab), held_out_programs(lab.form.items)
    raw = continuations(
        model,
        params,
        tokenizer,
        [[tokenizer.end_of_text, *tokenizer.encode(each.prompt)] for each in problems],
        max_new_tokens=NEW,
    )
    steps = lab.form.steps(SFT)
    rows = conversations(lab, chat_pairs(training_programs(study.PER_STEP * steps, seed + 50)))
    chat = train(model, rows, study.schedule(steps), seed=seed, start=params)
    replies = answers(
        model, chat, tokenizer, [each.prompt for each in problems], max_new_tokens=NEW
    )
    docs = family.text(lab).held_out["docs"]
    return {
        "base": passes(problems, raw),
        "chat": passes(problems, replies),
        "docs": held_out_losses(model, params, docs, family.LENGTH, chunks=_CHUNKS),
    }


def chat_pairs(found: Sequence[programs.Program]) -> list[tuple[str, str]]:
    """Returns (prompt, body) of each program: the conversations of the SFT."""
    return [(each.prompt, each.body) for each in found]


def judge(lab: Lab, measured: Measured) -> Outcome:
    """Compares continued pretraining on code and text with the same tokens of text."""
    rows = [
        row(measured, arm, "base", f"{arm}: pass@1, before SFT", report=_REPORT.get(arm, ""))
        for arm in measured
    ]
    found = gap(measured, "code and text", "text only", "base")
    against_base = gap(measured, "code and text", "base", "base")
    return Outcome(
        rows,
        verdict_of(found.low, found.high),
        (found.low, found.high),
        f"continued pretraining on code and text changes pass@1 by {100 * found.estimate:+.1f} "
        f"points against equal tokens of text, and by {100 * against_base.estimate:+.1f} against "
        "the base",
    )


def _judge_chat(lab: Lab, measured: Measured) -> Outcome:
    """Compares pass@1 before and after SFT of the model that continued on code and text."""
    rows = [
        row(measured, arm, key, f"{arm}: pass@1 {name}")
        for arm in measured
        for key, name in (("base", "before SFT"), ("chat", "after SFT"))
    ]
    sides = (rows_of(measured, "code and text", key) for key in ("chat", "base"))
    found = difference(*sides)
    kept = gap(measured, "code and text", "text only", "chat")
    return Outcome(
        rows,
        verdict_of(found.low, found.high),
        (found.low, found.high),
        f"SFT after code and text changes pass@1 by {100 * found.estimate:+.1f} points; after the "
        f"same SFT, code and text are {100 * kept.estimate:+.1f} points ahead of text only",
    )


def _judge_general(lab: Lab, measured: Measured) -> Outcome:
    """Compares the loss on documentation with and without text in continued pretraining."""
    rows = [
        row(measured, arm, "docs", f"{arm}: loss on documentation (nats per token)", percent=False)
        for arm in measured
    ]
    rows += [row(measured, arm, "chat", f"{arm}: pass@1 after SFT") for arm in measured]
    found = gap(measured, "code only", "code and text", "docs")
    against_base = gap(measured, "code and text", "base", "docs")
    return Outcome(
        rows,
        verdict_of(found.low, found.high),
        (found.low, found.high),
        f"with code only, the loss on documentation is {found.estimate:+.2f} nats per token higher "
        f"than with code and text, which changes it by {against_base.estimate:+.2f} from the base",
    )


_REPORT = {  # 7B, HumanEval, Table 10
    "base": "29.9 % (Qwen-7B, HumanEval)",
    "code and text": "40.2 % (Code-Qwen-7B, HumanEval)",
}

CLAIMS = (
    Claim(
        number=11,
        name="code_pretraining",
        report="4, Tables 10 and 11",
        title="Continued pretraining on code raises pass@1",
        statement="Code-Qwen, which continues Qwen on 90 billion tokens of code and text, scores "
        "higher on HumanEval and MBPP than Qwen: 40.2 against 29.9 on HumanEval for 7B.",
        rule="holds if the 95 % interval of pass@1 after continued pretraining on code and text, "
        "minus that after equal tokens of text, lies above zero",
        cells=cells,
        judge=judge,
    ),
    Claim(
        number=11,
        name="code_chat",
        report="4, Table 10",
        title="Chat SFT on code raises pass@1 further",
        statement="Code-Qwen-Chat scores higher than Code-Qwen: 43.3 against 40.2 on HumanEval for "
        "7B.",
        rule="holds if the 95 % interval of pass@1 after SFT minus before it, of the model that "
        "continued on code and text, lies above zero",
        cells=cells,
        judge=_judge_chat,
        group="code_pretraining",
    ),
    Claim(
        number=11,
        name="code_general",
        report="4.1",
        title="Code only loses general ability, code and text keep it",
        statement="Training on code only would lose the abilities of a general assistant, so code "
        "and text are mixed.",
        rule="holds if the 95 % interval of the loss on documentation after code only, minus that "
        "after code and text, lies above zero",
        cells=cells,
        judge=_judge_general,
        group="code_pretraining",
    ),
)
