"""What each filter does on text whose label is known: rules, perplexity, linear classifiers.

    python -m benchmarks.corpus.filters                   # writes benchmarks/results/filters.md

The texts come from filter_texts.py, the classifiers and their peers are in filter_classifiers.py.
"""

import collections
import dataclasses
import os
import pathlib
import random
import time
from collections.abc import Sequence

import numpy as np

from benchmarks.common.timing import machine
from benchmarks.corpus.filter_classifiers import offensive, quality
from benchmarks.corpus.filter_texts import bad_texts, good_texts
from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.corpus.filters.language import identify
from qwen_jax.corpus.filters.perplexity import NgramFilter
from qwen_jax.corpus.filters.pii import mask
from qwen_jax.corpus.filters.quality_rules import rejection
from qwen_jax.tokenizer.bpe import Tokenizer

READ = """Read one by one (2026-11-27). Rightly rejected as pages, and kept as instructions: bare
lists of names, cities and words (run_length, short_lines, new_lines, stop_characters), English text
among the Chinese (run_length), sums without words (units_with_letters), drawings in signs
(alphanumeric). Wrongly: some of the answers that restate their question (duplicate n-grams, top
n-grams), of which the English rule rejects as many in the English half of the same data (compare
dpo_en with dpo_zh: this is why a Chinese n-gram has twice the units), short code without a fence,
and slogans in quotation marks without a full stop. Texts under 50 characters are entries ("A, of B.
One poem is extant.") and answers of one sentence: too short to be a page by themselves, good as
instructions; for a source of short entries set `chinese.characters` lower, or join its entries.
wikitext2 has spaces around its signs, which so count as words without letters: an artifact of that
file."""

RESULTS = pathlib.Path(__file__).resolve().parents[1] / "results"


@dataclasses.dataclass(frozen=True)
class Config:
    """One measurement."""

    shared: str = option(
        os.environ.get("QWEN_JAX_SHARED", "../shared"), "the folder of public data"
    )
    output: str = option(str(RESULTS / "filters.md"), "a Markdown file")


def main(config: Config) -> None:
    """Measures one filter after the other, and writes the page."""
    shared = pathlib.Path(config.shared)
    good = good_texts(shared / "data")
    bad = bad_texts(shared / "data", good)
    about = machine()
    lines = [
        "# Filters on labeled text",
        "",
        f"{about['date']}, {about['cpus']} CPU cores, Python {about['python']}, numpy "
        f"{np.__version__}; other programs ran beside it, rates are of CPU time of one core. "
        "`python -m benchmarks.corpus.filters`",
        "",
    ]
    for part in (
        rules(good, bad),
        perplexity(shared, good, bad),
        quality(good, bad),
        offensive(shared / "data"),
        personal(good),
        languages(good),
    ):
        lines += part
        print("\n".join(part), flush=True)
    pathlib.Path(config.output).write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(config.output)


def rules(good: dict, bad: dict) -> list[str]:
    """Rejected texts by rule."""
    lines = [
        "## Rules",
        "",
        "| good text | texts | rejected | for length | by rule | texts/s |",
        "|---|---:|---:|---:|---|---:|",
    ]
    for name, (language, kind, texts) in good.items():
        lines.append(_rules_row(name, language, kind, texts, length=True))
    lines += [
        "",
        *_why(good),
        "",
        "| bad text | texts | rejected | by rule |",
        "|---|---:|---:|---|",
    ]
    for name, (language, texts) in bad.items():
        lines.append(_rules_row(name, language, "web", texts, length=False))
    return [*lines, ""]


def _why(good: dict) -> list[str]:
    """Each Chinese text that a rule other than length rejects; its beginning is shown to the person
    at the terminal, and kept out of the results."""
    lines = [
        "Every Chinese text that another rule than the length rejects:",
        "",
        "| text | number | rule | value |",
        "|---|---:|---|---:|",
    ]
    for name in (
        "zh_song_authors (classical)",
        "alpaca_zh answers as pages",
        "dpo_zh chosen as pages",
    ):
        language, kind, texts = good[name]
        for number, text in enumerate(texts):
            found = rejection(text, language=language, kind=kind)
            if found and found.rule != "characters":
                lines.append(
                    f"| {name.split(' ')[0]} | {number} | {found.rule} | {found.value:.3g} |"
                )
                print(lines[-1], " ".join(text[:60].split()))
    return [*lines, "", READ]


def _rules_row(name: str, language: str, kind: str, texts: Sequence[str], *, length: bool) -> str:
    started = time.process_time()
    found = [rejection(text, language=language, kind=kind) for text in texts]
    rate = len(texts) / (time.process_time() - started)
    counts = collections.Counter(r.rule for r in found if r)
    short = counts["words"] + counts["characters"]
    if length:
        del counts["words"], counts["characters"]
    by = ", ".join(f"{rule} {n}" for rule, n in counts.most_common(6))
    total = sum(r is not None for r in found)
    if length:
        return f"| {name} | {len(texts):,} | {total:,} | {short:,} | {by} | {rate:,.0f} |"
    return f"| {name} | {len(texts):,} | {total / len(texts):.0%} | {by} |"


def perplexity(shared: pathlib.Path, good: dict, bad: dict) -> list[str]:
    """An n-gram filter of each language, learned from half of the good text, on the rest."""
    tokenizer = Tokenizer.from_file(shared / "reference/qwen.tiktoken")
    lines = [
        "## Perplexity (3-grams of the released vocabulary)",
        "",
        "A model of each language counts 60 % of the good text; 15 % set the limits (the "
        "strangest 1 % and the easiest 0.5 % are given up), 25 % are the clean text.",
        "",
        "| language | text | texts | too strange | too easy | bits per byte, median |",
        "|---|---|---:|---:|---:|---:|",
    ]
    sources = {
        "en": (
            "c4_demo",
            "wikitext2, pieces of a section",
            "zyte, gold articles in English",
            "dpo_en chosen as pages",
            "alpaca_en answers as instructions",
        ),
        "zh": (
            "zh_song_authors (classical)",
            "alpaca_zh answers as pages",
            "dpo_zh chosen as pages",
        ),
    }
    for language, names in sources.items():
        texts = [
            text
            for name in names
            for text in good[name][2]
            if len(text) >= (300 if language == "en" else 50)
        ]
        random.Random(0).shuffle(texts)
        fit, limit = int(0.6 * len(texts)), int(0.75 * len(texts))
        model = NgramFilter.fit(texts[:fit], texts[fit:limit], tokenizer)
        rows = {"clean": texts[limit:]} | {
            kind: t for kind, (of, t) in bad.items() if of == language
        }
        for kind, found in rows.items():
            scores = model.score(found, tokenizer)
            lines.append(
                f"| {language} | {kind} | {len(found):,} | {np.mean(scores > model.limits[1]):.1%} "
                f"| {np.mean(scores < model.limits[0]):.1%} | {np.median(scores):.2f} |"
            )
    return [
        *lines,
        "",
        "Lines of a page outside of its article are ordinary words to a model of "
        "some hundred thousand tokens: rules and the classifier see them, perplexity does not.",
        "",
    ]


def personal(good: dict) -> list[str]:
    """What is masked in the public text; the forms themselves are tested, not counted here."""
    lines = [
        "## Personal data and secrets",
        "",
        "| text | texts | masked | MB/s |",
        "|---|---:|---|---:|",
    ]
    for name, (_, _, texts) in good.items():
        if "pages" in name:
            continue
        counts: collections.Counter[str] = collections.Counter()
        started = time.process_time()
        for text in texts:
            counts.update(mask(text)[1])
        rate = sum(len(t.encode()) for t in texts) / (time.process_time() - started) / 1e6
        shown = ", ".join(f"{kind} {n}" for kind, n in counts.most_common())
        lines.append(f"| {name} | {len(texts):,} | {shown or 'nothing'} | {rate:.1f} |")
    return [*lines, ""]


def languages(good: dict) -> list[str]:
    """What language is found in text whose language is known."""
    lines = ["## Languages", "", "| text | texts | found | MB/s |", "|---|---:|---|---:|"]
    for name, (_, kind, texts) in good.items():
        if "pages" in name or kind == "code":  # the same texts again, or told by their kind
            continue
        started = time.process_time()
        found = collections.Counter(identify(text)[0] or "none" for text in texts)
        rate = sum(len(t.encode()) for t in texts) / (time.process_time() - started) / 1e6
        shown = ", ".join(f"{label} {n:,}" for label, n in found.most_common(6))
        lines.append(f"| {name} | {len(texts):,} | {shown} | {rate:.1f} |")
    return [
        *lines,
        "",
        "Answers in another language than their set's, code and sums are among them; "
        "of prose of some length nearly all is told right.",
        "",
    ]


if __name__ == "__main__":
    flags.run(main, __doc__, {"filters": Config()})
