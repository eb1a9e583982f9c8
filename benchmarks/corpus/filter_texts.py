"""Text with known labels: good text from public data, and bad text derived from it.

Bad text consists of shuffled words, noise, lists of words, repeated sentences, and the parts of web
pages outside the article.
"""

import gzip
import os
import pathlib
import random
from collections.abc import Callable

from benchmarks.corpus.decontamination import training_texts
from qwen_jax.corpus.sources import extract
from qwen_jax.utils.files import read_json
from qwen_jax.utils.jsonl import read_rows


def good_texts(data: pathlib.Path) -> dict[str, tuple[str, str, list[str]]]:
    """Returns name -> (language, kind, texts)."""
    texts = training_texts(data)
    gold = read_json(data / "html/zyte/ground-truth.json")
    article = [row["articleBody"] for row in gold.values()]
    return {
        "c4_demo": ("en", "web", texts["c4_demo"]),
        "wikitext2, parts of a section": (
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
        "alpaca_zh responses as instructions": (
            "zh",
            "instruction",
            responses(data, "alpaca_zh_demo"),
        ),
        "alpaca_zh responses as pages": ("zh", "web", responses(data, "alpaca_zh_demo")),
        "dpo_zh chosen as instructions": ("zh", "instruction", chosen(data, "dpo_zh_demo")),
        "dpo_zh chosen as pages": ("zh", "web", chosen(data, "dpo_zh_demo")),
        "alpaca_en responses as instructions": (
            "en",
            "instruction",
            responses(data, "alpaca_en_demo"),
        ),
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


def responses(data: pathlib.Path, name: str) -> list[str]:
    """Returns the responses in an instruction set."""
    return [row["output"] for _, row in read_rows(data / f"chat/{name}.json") if row["output"]]


def chosen(data: pathlib.Path, name: str) -> list[str]:
    """Returns the chosen response of each pair."""
    return [row["chosen"]["value"] for _, row in read_rows(data / f"preference/{name}.json")]


def bad_texts(data: pathlib.Path, good: dict) -> dict[str, tuple[str, list[str]]]:
    """Returns kind -> (language, texts)."""
    rng = random.Random(0)
    english = [
        t
        for name in ("c4_demo", "zyte, gold articles in English")
        for t in good[name][2]
        if len(t.split()) > 80
    ]
    chinese = [
        t
        for name in ("zh_song_authors (classical)", "alpaca_zh responses as pages")
        for t in good[name][2]
        if len(t) > 120
    ][:600]
    found = {"page without its article": ("en", boilerplate(data))}
    for language, texts, split, join in (
        ("en", english, str.split, " ".join),
        ("zh", chinese, list, "".join),
    ):
        makers = _makers(language, texts, split, join, rng)
        for kind, make in makers.items():
            found[f"{kind} ({language})"] = language, [make(t) for t in texts[:300]]
    return found


def _makers(
    language: str,
    texts: list[str],
    split: Callable[[str], list[str]],
    join: Callable[[list[str]], str],
    rng: random.Random,
) -> dict[str, Callable[[str], str]]:
    """Returns kind -> function from a good text to a bad text of that kind."""
    vocabulary = [unit for text in texts[:200] for unit in split(text) if unit.isalpha()]
    return {
        "words in random order": lambda t: join(rng.sample(split(t), len(split(t)))),
        "list of words": lambda t: ("、" if language == "zh" else ", ").join(
            join(rng.choices(vocabulary, k=2)) for _ in range(60)
        ),
        "one sentence over and over": lambda t: join(split(t)[:25]) * 12,
        "noise": lambda t: "".join(
            chr(rng.randrange(0x4E00, 0x9FA0))
            if language == "zh"
            else chr(rng.randrange(97, 123))
            if rng.random() < 0.8
            else " "
            for _ in range(400)
        ),
    }


def boilerplate(data: pathlib.Path) -> list[str]:
    """Returns the lines of each page outside its article: menus, notices, teasers, comments."""
    gold = read_json(data / "html/zyte/ground-truth.json")
    found = []
    for path in sorted((data / "html/zyte/html").glob("*.html.gz")):
        article = "".join(gold[path.name.split(".")[0]]["articleBody"].split())
        page = gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
        if page.count(" the ") < 5:
            continue  # the labels are for English pages
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
