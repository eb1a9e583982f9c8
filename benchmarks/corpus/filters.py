"""What each filter does on text whose label is known: rules, perplexity, linear classifiers.

    python -m benchmarks.corpus.filters                   # writes benchmarks/results/filters.md

Good text is the public text beside the repository. Bad text is made of it (words in random order,
noise, lists of words, lines over and over) or lies around it: what is on a web page outside of its
article. scikit-learn and fastText, where they are installed, learn from the same texts.
"""

import collections
import dataclasses
import gzip
import importlib.util
import os
import pathlib
import random
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.common.timing import machine
from benchmarks.corpus.decontamination import training_texts
from experiments.train_filter import Scores, measure, split
from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.corpus.filters import linear as linear_filter
from qwen_jax.corpus.filters.language import identify
from qwen_jax.corpus.filters.perplexity import NgramFilter
from qwen_jax.corpus.filters.pii import mask
from qwen_jax.corpus.filters.quality_rules import rejection
from qwen_jax.corpus.sources import extract
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.utils.files import read_json
from qwen_jax.utils.jsonl import read_rows

READ = """Read one by one (2026-11-27). Rightly rejected as pages, and kept as instructions: bare
lists of names, cities and words (run_length, short_lines, new_lines, stop_characters), English text
among the Chinese (run_length), sums without words (units_with_letters), drawings in signs
(alphanumeric). Wrongly: some of the answers that restate their question (duplicate n-grams, top
n-grams), of which the English rule rejects as many in the English half of the same data (compare
dpo_en with dpo_zh: this is why a Chinese n-gram has twice the units), short code without a fence,
and slogans in quotation marks without a full stop. Texts under 50 characters are entries ("A, of B.
One poem is extant.") and answers of one sentence: too short to be a page by themselves, good as
instructions; for a source of short entries set `chinese.characters` lower, or join its entries.
wikitext2 has spaces around its signs, which so count as words without letters: an artefact of that
file."""

Labelled = list[tuple[str, str]]  # text and kind

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
        "# Filters on labelled text",
        "",
        f"{about['date']}, {about['cpus']} CPU cores, Python {about['python']}, numpy "
        f"{np.__version__}; other programs ran beside it, rates are of CPU time of one core. "
        "`python -m benchmarks.corpus.filters`",
        "",
    ]
    for part in (
        rules(shared / "data", good, bad),
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


def good_texts(data: pathlib.Path) -> dict[str, tuple[str, str, list[str]]]:
    """Name -> language, kind, texts."""
    texts = training_texts(data)
    gold = read_json(data / "html/zyte/ground-truth.json")
    article = [row["articleBody"] for row in gold.values()]
    return {
        "c4_demo": ("en", "web", texts["c4_demo"]),
        "wikitext2, pieces of a section": (
            "en",
            "text",
            [text for text in texts["wikitext2"] if len(text) > 400],
        ),
        "zyte, gold articles in English": (
            "en",
            "web",
            [text for text in article if text.isascii() or text.count(" the ") > 5],
        ),
        "zh_song_authors (classical)": ("zh", "text", texts["zh_song_authors"]),
        "alpaca_zh answers as instructions": ("zh", "instruction", answers(data, "alpaca_zh_demo")),
        "alpaca_zh answers as pages": ("zh", "web", answers(data, "alpaca_zh_demo")),
        "dpo_zh chosen as instructions": ("zh", "instruction", chosen(data, "dpo_zh_demo")),
        "dpo_zh chosen as pages": ("zh", "web", chosen(data, "dpo_zh_demo")),
        "alpaca_en answers as instructions": ("en", "instruction", answers(data, "alpaca_en_demo")),
        "dpo_en chosen as instructions": ("en", "instruction", chosen(data, "dpo_en_demo")),
        "dpo_en chosen as pages": ("en", "web", chosen(data, "dpo_en_demo")),
        "Python's standard library": (
            "python",
            "code",
            [
                path.read_text(encoding="utf-8", errors="replace")
                for path in sorted(pathlib.Path(os.__file__).parent.glob("*.py"))
            ],
        ),
    }


def answers(data: pathlib.Path, name: str) -> list[str]:
    return [row["output"] for _, row in read_rows(data / f"chat/{name}.json") if row["output"]]


def chosen(data: pathlib.Path, name: str) -> list[str]:
    return [row["chosen"]["value"] for _, row in read_rows(data / f"preference/{name}.json")]


def bad_texts(data: pathlib.Path, good: dict) -> dict[str, tuple[str, list[str]]]:
    """Kind -> language, texts."""
    draw = random.Random(0)
    english = [
        t
        for name in ("c4_demo", "zyte, gold articles in English")
        for t in good[name][2]
        if len(t.split()) > 80
    ]
    chinese = [
        t
        for name in ("zh_song_authors (classical)", "alpaca_zh answers as pages")
        for t in good[name][2]
        if len(t) > 120
    ][:600]
    found = {"page without its article": ("en", boilerplate(data))}
    for language, texts, cut, join in (
        ("en", english, str.split, " ".join),
        ("zh", chinese, list, "".join),
    ):
        makers = _makers(language, texts, cut, join, draw)
        for kind, make in makers.items():
            found[f"{kind} ({language})"] = language, [make(t) for t in texts[:300]]
    return found


def _makers(
    language: str,
    texts: list[str],
    cut: Callable[[str], list[str]],
    join: Callable[[list[str]], str],
    draw: random.Random,
) -> dict[str, Callable[[str], str]]:
    """Kind -> what makes a bad text of that kind from a good one."""
    vocabulary = [unit for text in texts[:200] for unit in cut(text) if unit.isalpha()]
    return {
        "words in random order": lambda t: join(draw.sample(cut(t), len(cut(t)))),
        "list of words": lambda t: ("、" if language == "zh" else ", ").join(
            join(draw.choices(vocabulary, k=2)) for _ in range(60)
        ),
        "one sentence over and over": lambda t: join(cut(t)[:25]) * 12,
        "noise": lambda t: "".join(
            chr(draw.randrange(0x4E00, 0x9FA0))
            if language == "zh"
            else chr(draw.randrange(97, 123))
            if draw.random() < 0.8
            else " "
            for _ in range(400)
        ),
    }


def boilerplate(data: pathlib.Path) -> list[str]:
    """The lines of a page that are not in its article: menus, notices, teasers, comments."""
    gold = read_json(data / "html/zyte/ground-truth.json")
    found = []
    for path in sorted((data / "html/zyte/html").glob("*.html.gz")):
        article = "".join(gold[path.name.split(".")[0]]["articleBody"].split())
        page = gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
        if page.count(" the ") < 5:
            continue  # the labels are of English pages
        try:
            lines = extract.page(page).split("\n")
        except ValueError:
            continue
        text = "\n".join(
            line
            for line in map(str.strip, lines)
            if line and "".join(line.split())[:40] not in article
        )
        if len(text.split()) >= 50:
            found.append(text)
    return found


def rules(data: pathlib.Path, good: dict, bad: dict) -> list[str]:
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
        counts.pop("words", None), counts.pop("characters", None)
    by = ", ".join(f"{rule} {n}" for rule, n in counts.most_common(6))
    total = sum(r is not None for r in found)
    if length:
        return f"| {name} | {len(texts):,} | {total:,} | {short:,} | {by} | {rate:,.0f} |"
    return f"| {name} | {len(texts):,} | {total / len(texts):.0%} | {by} |"


def perplexity(shared: pathlib.Path, good: dict, bad: dict) -> list[str]:
    """An n-gram filter of each language, learnt from half of the good text, on the rest and bad."""
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


def quality(good: dict, bad: dict) -> list[str]:
    """The linear filter of good text, and its peers."""
    rows: Labelled = []
    for name in (
        "c4_demo",
        "wikitext2, pieces of a section",
        "zyte, gold articles in English",
        "zh_song_authors (classical)",
        "alpaca_zh answers as pages",
    ):
        rows += [(text, "good") for text in good[name][2] if len(text) >= 120][:1000]
    rows += [(text, kind) for kind, (_, texts) in bad.items() for text in texts]
    kinds = dict(rows)
    parts = split([(text, kind == "good") for text, kind in kinds.items()], 0.3)
    lines = [
        "## Text quality (linear filter; marks good text)",
        "",
        *_compare(parts, "good"),
        "",
        "| kind of the measured texts | texts | marked good |",
        "|---|---:|---:|",
    ]
    model = _train(parts, "good")[0]
    of_kind: dict[str, list[bool]] = {}
    for text, _ in parts["measured"]:
        of_kind.setdefault(kinds[text], []).append(model.score(text) >= model.threshold)
    lines += [
        f"| {kind} | {len(marks)} | {np.mean(marks):.0%} |"
        for kind, marks in sorted(of_kind.items())
    ]
    return [
        *lines,
        "",
        "Bad text that is made by rule is easier than what the web has: these "
        "figures are of the tool, not of a filter to use.",
        "",
    ]


def offensive(data: pathlib.Path) -> list[str]:
    """Not labels of offence: first questions of a red team against ordinary instructions."""
    rows: dict[str, bool] = {}
    for _, row in read_rows(data / "preference/hh_harmless_test.jsonl.gz"):
        rows[row["chosen"].split("\n\nHuman: ", 1)[1].split("\n\nAssistant:")[0].strip()] = True
    for _, row in read_rows(data / "chat/alpaca_en_demo.json"):
        rows[f"{row['instruction']} {row['input']}".strip()] = False
    for _, row in read_rows(data / "preference/dpo_en_demo.json"):
        rows[row["conversations"][0]["value"]] = False
    for _, row in read_rows(data / "chat/gsm8k_train_2000.jsonl"):
        rows[row["question"]] = False
    parts = split(list(rows.items()), 0.3)
    return [
        "## Offensive text (linear filter): no labelled set was to be had",
        "",
        "Packages have none, and the public data here has no labels of offence. What is "
        "measured is the same tool on a stand-in: first questions of Anthropic's red team "
        "(harmless-base, test) against ordinary instructions. It shows that the tool tells "
        "short texts apart, and says nothing about how well it finds offence on the web: for "
        "that, label text and run `experiments.train_filter`.",
        "",
        *_compare(parts, "red team"),
        "",
    ]


def _train(parts: dict, label: str) -> tuple[linear_filter.LinearFilter, float]:
    started = time.process_time()
    model = linear_filter.train(
        *zip(*parts["training"], strict=True),
        label=label,
        held_out=tuple(zip(*parts["threshold"], strict=True)),
    )
    return model, time.process_time() - started


def _compare(parts: dict, label: str) -> list[str]:
    """A table of ours and of peers; each threshold is the lowest with a precision of 0.9."""
    model, seconds = _train(parts, label)
    texts, labels = (list(x) for x in zip(*parts["measured"], strict=True))
    started = time.process_time()
    scores = np.asarray([model.score(text) for text in texts])
    rate = sum(len(t.encode()) for t in texts) / (time.process_time() - started) / 1e6
    lines = [
        f"{len(parts['training']):,} texts to learn from, {len(parts['threshold']):,} for "
        f"the threshold (precision 0.9), {len(texts):,} measured, {sum(labels):,} of them "
        f"{label}.",
        "",
        "| | precision | recall | area under ROC | training, s | scoring, MB/s |",
        "|---|---:|---:|---:|---:|---:|",
        _row("ours", measure(model, parts["measured"]), scores, labels, seconds, rate),
    ]
    for name, learn in (
        ("scikit-learn, TF-IDF of words and pairs, logistic regression", _sklearn),
        ("fastText, words and pairs", _fasttext),
    ):
        package = "sklearn" if learn is _sklearn else "fasttext"
        if importlib.util.find_spec(package) is None:
            lines.append(f"| {name} | not installed | | | | |")
            continue
        started = time.process_time()
        score = learn(*(list(x) for x in zip(*parts["training"], strict=True)))
        seconds = time.process_time() - started
        held, held_labels = (list(x) for x in zip(*parts["threshold"], strict=True))
        threshold = linear_filter.threshold_for(
            score(held), np.asarray(held_labels, bool), precision=0.9
        )
        started = time.process_time()
        scores = score(texts)
        rate = sum(len(t.encode()) for t in texts) / (time.process_time() - started) / 1e6
        marked = scores >= threshold
        found = Scores(
            len(texts), sum(labels), int(marked.sum()), int((marked & np.asarray(labels)).sum())
        )
        lines.append(_row(name, found, scores, labels, seconds, rate))
    return lines


def _row(name: str, found: Scores, scores, labels, seconds: float, rate: float) -> str:
    ranks = np.empty(len(scores))
    order = np.argsort(scores, kind="stable")
    ranks[order] = np.arange(1, len(scores) + 1)
    positive = np.asarray(labels, bool)
    n, m = positive.sum(), (~positive).sum()
    area = (ranks[positive].sum() - n * (n + 1) / 2) / (n * m)
    return (
        f"| {name} | {found.precision:.3f} | {found.recall:.3f} | {area:.4f} | {seconds:.1f} | "
        f"{rate:.1f} |"
    )


def _sklearn(texts: list[str], labels: list[bool]) -> Callable[[list[str]], np.ndarray]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectors = TfidfVectorizer(
        ngram_range=(1, 2), token_pattern=r"[\u3400-\u9fff]|\w+|[^\w\s]", sublinear_tf=True
    )
    model = LogisticRegression(C=10, max_iter=1000).fit(vectors.fit_transform(texts), labels)
    return lambda these: model.predict_proba(vectors.transform(these))[:, 1]


def _fasttext(texts: list[str], labels: list[bool]) -> Callable[[list[str]], np.ndarray]:
    import fasttext

    from qwen_jax.corpus.filters.decontaminate import units

    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        for text, label in zip(texts, labels, strict=True):
            file.write(f"__label__{int(label)} {' '.join(units(text))}\n")
        file.flush()
        model = fasttext.train_supervised(
            file.name, wordNgrams=2, epoch=25, lr=0.5, thread=1, verbose=0, bucket=1 << 20, dim=50
        )

    def score(these: list[str]) -> np.ndarray:
        found = []
        for text in these:
            names, probabilities = model.predict(" ".join(units(text)), k=2)
            found.append(dict(zip(names, probabilities, strict=True)).get("__label__1", 0.0))
        return np.asarray(found)

    return score


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
