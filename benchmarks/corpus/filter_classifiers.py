"""The linear filter on labeled text, against scikit-learn and fastText if installed."""

import importlib.util
import pathlib
import tempfile
import time
from collections.abc import Callable

import numpy as np

from experiments.train_filter import Scores, measure, split
from qwen_jax.corpus.filters import linear as linear_filter
from qwen_jax.utils.jsonl import read_rows

Labeled = list[tuple[str, str]]  # (text, kind)


def quality(good: dict, bad: dict) -> list[str]:
    """Measures the filter for good text and its peers."""
    rows: Labeled = []
    for name in (
        "c4_demo",
        "wikitext2, parts of a section",
        "zyte, gold articles in English",
        "zh_song_authors (classical)",
        "alpaca_zh responses as pages",
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
        "Synthetic bad text is easier than bad web text: these figures describe the method, not "
        "a filter to use.",
        "",
    ]


def offensive(data: pathlib.Path) -> list[str]:
    """Measures a stand-in for offensive text: red-team prompts against ordinary instructions."""
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
        "## Offensive text (linear filter): no labeled set was available",
        "",
        "The public data here has no labels of offensive text. A stand-in is measured: first "
        "prompts of Anthropic's red team (harmless-base, test) against ordinary instructions. "
        "It shows that the filter can distinguish short texts, not how well it finds offensive "
        "text on the web. For that, label text and run `experiments.train_filter`.",
        "",
        *_compare(parts, "red team"),
        "",
    ]


def _train(parts: dict, label: str) -> tuple[linear_filter.LinearFilter, float]:
    started = time.process_time()
    texts, labels = zip(*parts["training"], strict=True)
    held_texts, held_labels = zip(*parts["threshold"], strict=True)
    model = linear_filter.train(texts, labels, label=label, held_out=(held_texts, held_labels))
    return model, time.process_time() - started


def _compare(parts: dict, label: str) -> list[str]:
    """Returns a table of ours and peers; each threshold is the lowest with precision 0.9."""
    model, seconds = _train(parts, label)
    texts, labels = (list(x) for x in zip(*parts["measured"], strict=True))
    started = time.process_time()
    scores = np.asarray([model.score(text) for text in texts])
    rate = sum(len(t.encode()) for t in texts) / (time.process_time() - started) / 1e6
    lines = [
        f"{len(parts['training']):,} training texts, {len(parts['threshold']):,} for "
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
            len(texts),
            sum(labels),
            int(marked.sum()),
            int((marked & np.asarray(labels, bool)).sum()),
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
    from sklearn.feature_extraction.text import (  # pyright: ignore[reportMissingImports]
        TfidfVectorizer,
    )
    from sklearn.linear_model import LogisticRegression  # pyright: ignore[reportMissingImports]

    vectors = TfidfVectorizer(
        ngram_range=(1, 2), token_pattern=r"[\u3400-\u9fff]|\w+|[^\w\s]", sublinear_tf=True
    )
    model = LogisticRegression(C=10, max_iter=1000).fit(vectors.fit_transform(texts), labels)
    return lambda these: model.predict_proba(vectors.transform(these))[:, 1]


def _fasttext(texts: list[str], labels: list[bool]) -> Callable[[list[str]], np.ndarray]:
    import fasttext  # pyright: ignore[reportMissingImports]

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
