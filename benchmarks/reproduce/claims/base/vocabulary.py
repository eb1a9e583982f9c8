"""Report 2.2, Figure 3: merges for other languages improve compression without hurting English.

The report grows cl100k by Chinese and other languages. Here a vocabulary is learned on English
documentation and then grown on Chinese text and source code. cl100k itself is grown where its file
is at hand: cl100k_base.tiktoken in the folder that $QWEN_JAX_CL100K names.
"""

import os
import pathlib

import numpy as np

from benchmarks.reproduce import family
from benchmarks.reproduce.claim import Cell, Measured, Outcome, verdict_of
from benchmarks.reproduce.lab import Claim, Lab
from benchmarks.reproduce.tables import gap, row
from qwen_jax.synthetic.worlds import stories
from qwen_jax.tokenizer import extend
from qwen_jax.tokenizer.bpe import Tokenizer, read_ranks

_LEARNED, _GROWN = 1500, 250  # tokens; the second for Chinese, and again for code
_TEXTS = 600  # documents of each kind that a vocabulary is learned on
_UNHARMED = 0.01  # English may lose 1 % of its compression
_CL100K = "QWEN_JAX_CL100K"
ARMS = {"learned": "grown", "cl100k": "cl100k, grown"}  # before -> after
KINDS = ("English", "Chinese", "code")


def cells(lab: Lab) -> list[Cell]:
    """Returns each vocabulary and the grown one; a seed is a choice of documents."""
    return [
        Cell(arm, seed, lambda arm=arm, seed=seed: _run(lab, arm, seed))
        for seed in lab.form.seeds
        for pair in ARMS.items()
        for arm in pair
        if arm in ("learned", "grown") or _cl100k() is not None
    ]


def _cl100k() -> pathlib.Path | None:
    """Returns the file of cl100k_base; None if it is not at hand."""
    path = pathlib.Path(os.environ.get(_CL100K, ".")) / "cl100k_base.tiktoken"
    return path if path.exists() else None


def _run(lab: Lab, arm: str, seed: int) -> dict[str, list[float]]:
    """Returns kind -> bytes per token of each held-out document."""
    train, held_out = _texts(lab, seed)
    if arm.startswith("cl100k"):
        path = _cl100k()
        assert path is not None
        ranks = extend.qwen_base(read_ranks(path))  # as in the report: digits one by one
    else:
        ranks = extend.train(train["English"], vocab_size=_LEARNED)
    if arm.endswith("grown"):
        for kind in ("Chinese", "code"):
            ranks = extend.grow(ranks, train[kind], num_new=_GROWN, allow_fewer=True)
    tokenizer = Tokenizer(ranks)
    return {
        kind: [
            len(text.encode()) / len(ids)
            for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True)
        ]
        for kind, texts in held_out.items()
    }


def _texts(lab: Lab, seed: int) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Returns documents to learn on and held-out ones, equally many for every seed."""
    rng, documents = np.random.default_rng(seed), family.all_documents(lab)
    number, items = max(60, round(_TEXTS * lab.form.share)), lab.form.items
    made = np.random.default_rng([seed, 1])
    all_texts = {
        "English": documents["docs"],
        "Chinese": [stories.make(made, "zh").text for _ in range(number + items)],
        "code": documents["code"],
    }
    sides: tuple[dict[str, list[str]], dict[str, list[str]]] = ({}, {})
    for kind, found in all_texts.items():
        texts = [text for text in found if text.strip()]  # an empty page has no tokens
        items_here = min(items, len(texts) // 2)
        chosen = [texts[i][:20_000] for i in rng.permutation(len(texts))[: number + items_here]]
        sides[0][kind], sides[1][kind] = chosen[items_here:], chosen[:items_here]
    return sides


def judge(lab: Lab, measured: Measured) -> Outcome:
    """Compares bytes per token of each kind before and after growing."""
    present = {before: after for before, after in ARMS.items() if before in measured}
    rows = [
        row(measured, arm, kind, f"{kind}, {arm} (bytes per token)", percent=False)
        for pair in present.items()
        for kind in KINDS
        for arm in pair
    ]
    gains = {
        (before, kind): gap(measured, after, before, kind)
        for before, after in present.items()
        for kind in KINDS
    }
    harmed = any(
        found.high < -_UNHARMED * row(measured, before, kind, "").ours
        for (before, kind), found in gains.items()
        if kind == "English"
    )
    helped = [found for (_, kind), found in gains.items() if kind != "English"]
    weaker = min(helped, key=lambda each: each.low)
    changes = ", ".join(
        f"{each.estimate:+.2f} ({kind}, {before})" for (before, kind), each in gains.items()
    )
    absent = "" if "cl100k" in measured else f"; cl100k is skipped: ${_CL100K} does not name it"
    return Outcome(
        rows,
        "contradicted" if harmed else verdict_of(weaker.low, weaker.high),
        (weaker.low, weaker.high),
        f"growing changes bytes per token by {changes}; the Chinese texts are stories from "
        f"templates, whose gain is larger than that of other Chinese text{absent}",
    )


CLAIMS = (
    Claim(
        number=1,
        name="vocabulary",
        report="2.2, Figure 3",
        title="Merges for Chinese and code improve their compression, and leave English alone",
        statement="cl100k is extended by Chinese and other languages; the vocabulary compresses "
        "most languages better than others do, without a loss in English.",
        rule="holds if the 95 % interval of bytes per token, grown minus learned, lies above zero "
        "for both Chinese and code, and English does not lose 1 %",
        cells=cells,
        judge=judge,
    ),
)
