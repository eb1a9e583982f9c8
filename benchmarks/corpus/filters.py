"""Accuracy and speed of each filter on labeled text: rules, perplexity, linear classifiers.

    python -m benchmarks.corpus.filters                   # writes benchmarks/results/filters.md

filter_texts.py generates the texts; filter_classifiers.py has the classifiers and their peers.
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

MANUAL_REVIEW = """Reviewed manually (2026-11-27). Correctly rejected as pages and kept as
instructions: bare lists of names, cities and words (run_length, short_lines, new_lines,
stop_characters), English text in the Chinese sets (run_length), sums without words
(units_with_letters), ASCII drawings (alphanumeric). Wrongly rejected: some responses that restate
their prompt (duplicate n-grams, top n-grams), short code without a fence, and slogans in quotation
marks without a full stop. The English rule rejects as many such responses in the English half of
the data (compare dpo_en with dpo_zh; this is why a Chinese n-gram has twice the units). Texts under
50 characters are entries ("A, of B. One poem is extant.") and responses of one sentence: too short
for a page, good as instructions. For a source of short entries set `chinese.characters` lower, or
join its entries. wikitext2 has spaces around punctuation, which therefore counts as words without
letters: an artifact of that file."""

RESULTS = pathlib.Path(__file__).resolve().parents[1] / "results"


@dataclasses.dataclass(frozen=True)
class Config:
    """The data and the output."""

    shared: str = option(os.environ.get("QWEN_JAX_SHARED", "../shared"), "folder of public data")
    output: str = option(str(RESULTS / "filters.md"), "Markdown file for the results")


def main(config: Config) -> None:
    """Measures all filters and writes the page."""
    shared = pathlib.Path(config.shared)
    good = good_texts(shared / "data")
    bad = bad_texts(shared / "data", good)
    about = machine()
    lines = [
        "# Filters on labeled text",
        "",
        f"{about['date']}, {about['cpus']} CPU cores, Python {about['python']}, numpy "
        f"{np.__version__}; other programs ran at the same time, rates are per CPU second. "
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
    """Returns tables of rejected texts by rule."""
    lines = [
        "## Rules",
        "",
        "| good text | texts | rejected | by length | by rule | texts/s |",
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
    """Returns a table of the Chinese texts that a rule other than length rejects.

    The start of each text is printed, but is not part of the results.
    """
    lines = [
        "Every Chinese text that a rule other than length rejects:",
        "",
        "| text | number | rule | value |",
        "|---|---:|---|---:|",
    ]
    for name in (
        "zh_song_authors (classical)",
        "alpaca_zh responses as pages",
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
    return [*lines, "", MANUAL_REVIEW]


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
    """Fits an n-gram filter per language on 60 % of the good text, and measures the rest."""
    tokenizer = Tokenizer.from_file(shared / "reference/qwen.tiktoken")
    lines = [
        "## Perplexity (3-grams of the released vocabulary)",
        "",
        "One model per language is fitted on 60 % of the good text. 15 % set the limits (the 1 % "
        "with the highest and 0.5 % with the lowest perplexity are rejected), 25 % are clean text.",
        "",
        "| language | text | texts | perplexity too high | too low | bits per byte, median |",
        "|---|---|---:|---:|---:|---:|",
    ]
    sources = {
        "en": (
            "c4_demo",
            "wikitext2, parts of a section",
            "zyte, gold articles in English",
            "dpo_en chosen as pages",
            "alpaca_en responses as instructions",
        ),
        "zh": (
            "zh_song_authors (classical)",
            "alpaca_zh responses as pages",
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
        "To a model of a few hundred thousand tokens, the lines outside an article are ordinary "
        "words: rules and the classifier detect them, perplexity does not.",
        "",
    ]


def personal(good: dict) -> list[str]:
    """Counts the masked items in public text; tests cover the patterns."""
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
    """Identifies the language of texts whose language is known."""
    lines = ["## Languages", "", "| text | texts | found | MB/s |", "|---|---:|---|---:|"]
    for name, (_, kind, texts) in good.items():
        if "pages" in name or kind == "code":  # repeated, or known by kind
            continue
        started = time.process_time()
        found = collections.Counter(identify(text)[0] or "none" for text in texts)
        rate = sum(len(t.encode()) for t in texts) / (time.process_time() - started) / 1e6
        shown = ", ".join(f"{label} {n:,}" for label, n in found.most_common(6))
        lines.append(f"| {name} | {len(texts):,} | {shown} | {rate:.1f} |")
    return [
        *lines,
        "",
        "The sets contain responses in other languages, code and sums. Nearly all prose of some "
        "length is identified correctly.",
        "",
    ]


if __name__ == "__main__":
    flags.run(main, __doc__, {"filters": Config()})
