"""Report 2.2, Figure 3: merges for other languages improve compression without hurting English.

The report grows cl100k by Chinese and other languages. Here a vocabulary is learned on English
documentation and then grown on Chinese text and source code; cl100k itself is an arm of
experiments.compression, since no clone has its file.
"""

import numpy as np

from benchmarks.reproduce import family
from benchmarks.reproduce.claim import Cell, Measured, Outcome, verdict_of
from benchmarks.reproduce.lab import Claim, Lab
from benchmarks.reproduce.tables import gap, row
from qwen_jax.synthetic.worlds import stories
from qwen_jax.tokenizer import extend
from qwen_jax.tokenizer.bpe import Tokenizer

_LEARNED, _GROWN = 1500, 250  # tokens; the second for Chinese, and again for code
_TEXTS = 600  # documents of each kind that a vocabulary is learned on
_UNHARMED = 0.01  # English may lose 1 % of its compression
KINDS = ("English", "Chinese", "code")


def cells(lab: Lab) -> list[Cell]:
    """Returns the learned vocabulary and the grown one; a seed is a choice of documents."""
    return [
        Cell(arm, seed, lambda arm=arm, seed=seed: _run(lab, arm, seed))
        for seed in lab.form.seeds
        for arm in ("learned", "grown")
    ]


def _run(lab: Lab, arm: str, seed: int) -> dict[str, list[float]]:
    """Returns kind -> bytes per token of each held-out document."""
    train, held_out = _texts(lab, seed)
    ranks = extend.train(train["English"], vocab_size=_LEARNED)
    if arm == "grown":
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
    for kind, texts in all_texts.items():
        items_here = min(items, len(texts) // 2)
        chosen = [texts[i][:20_000] for i in rng.permutation(len(texts))[: number + items_here]]
        sides[0][kind], sides[1][kind] = chosen[items_here:], chosen[:items_here]
    return sides


def judge(lab: Lab, measured: Measured) -> Outcome:
    """Compares bytes per token of each kind before and after growing."""
    rows = [
        row(measured, arm, kind, f"{kind}, {arm} (bytes per token)", percent=False)
        for kind in KINDS
        for arm in ("learned", "grown")
    ]
    gains = {kind: gap(measured, "grown", "learned", kind) for kind in KINDS}
    english = row(measured, "learned", "English", "").ours
    harmed = gains["English"].high < -_UNHARMED * english
    weaker = min(gains["Chinese"], gains["code"], key=lambda each: each.low)
    return Outcome(
        rows,
        "contradicted" if harmed else verdict_of(weaker.low, weaker.high),
        (weaker.low, weaker.high),
        "bytes per token change by "
        + ", ".join(f"{each.estimate:+.2f} ({kind})" for kind, each in gains.items()),
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
