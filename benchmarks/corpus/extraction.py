"""Word-level F1 of extracted text: ours, plain trafilatura and plain resiliparse.

All extractors get the same pages: pages with gold article bodies (article-extraction-benchmark, see
the data folder's README), and synthetic Chinese pages whose charset is declared, undeclared or
declared incorrectly.

    python -m benchmarks.corpus.extraction --output=benchmarks/results/extraction.md
"""

import collections
import dataclasses
import gzip
import json
import os
import pathlib
import random
import statistics

from benchmarks.corpus import packages
from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.corpus.dedup.minhash import words
from qwen_jax.corpus.sources import charset
from qwen_jax.corpus.sources.page_worker import PageWorker
from qwen_jax.errors import ConfigError

CHARSETS = (  # (name, codec of the bytes, charset declared in the page)
    ("utf-8", "utf-8", "utf-8"),
    ("gbk, declared", "gbk", "gbk"),
    ("gbk, not declared", "gbk", None),
    ("gbk, declared utf-8", "gbk", "utf-8"),
    ("gbk, declared iso-8859-1", "gbk", "iso-8859-1"),
    ("gb18030, declared gb2312", "gb18030", "gb2312"),
    ("big5, not declared", "big5", None),
    ("utf-16 with BOM", "utf-16", None),
)


@dataclasses.dataclass(frozen=True)
class Config:
    """The pages to measure."""

    shared: str = option(
        os.environ.get("QWEN_JAX_SHARED", "../shared"),
        "folder of public data that contains data/html/zyte",
    )
    chinese_pages: int = option(40, "number of Chinese pages in each charset")
    output: str = option("", "Markdown file for the results")


def ours(extractor: str):
    """Returns an extractor like the read stage's: charset detection, a process, a time limit."""
    worker = PageWorker(extractor, 10.0)

    def extract(content: bytes) -> str:
        return worker.extract(charset.decode(content)[0])[0]

    extract.close = worker.close
    return extract


def plain_trafilatura(content: bytes) -> str:
    import trafilatura

    return trafilatura.extract(content, include_comments=False) or ""


def plain_resiliparse(content: bytes) -> str:
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    return extract_plain_text(
        bytes_to_str(content, detect_encoding(content) or "utf-8"), main_content=True
    )


def f1(found: str, gold: str) -> tuple[float, float, float]:
    """Returns (F1, precision, recall) over the multisets of words."""
    a, b = (collections.Counter(words(text).split()) for text in (found, gold))
    both = (a & b).total()
    precision, recall = both / max(1, a.total()), both / max(1, b.total())
    return 2 * precision * recall / max(1e-9, precision + recall), precision, recall


def gold_pages(shared: str) -> list[tuple[bytes, str]]:
    folder = pathlib.Path(shared) / "data/html/zyte"
    if not folder.exists():
        raise ConfigError(
            "the gold pages are missing.", str(folder), "set --shared to the folder of public data."
        )
    truth = json.loads((folder / "ground-truth.json").read_text(encoding="utf-8"))
    return [
        (gzip.decompress((folder / f"html/{name}.html.gz").read_bytes()), row["articleBody"])
        for name, row in sorted(truth.items())
    ]


def chinese_pages(
    shared: str, number: int, codec: str, declared: str | None
) -> list[tuple[bytes, str]]:
    """Returns (page, text): Chinese responses as articles within a menu, links and a footer."""
    rows = json.loads((pathlib.Path(shared) / "data/chat/alpaca_zh_demo.json").read_text("utf-8"))
    rng, pages = random.Random(0), []
    texts = [row["output"] for row in rows if len(row["output"]) > 250]
    links = "".join(
        f"<li><a href='/{name}'>{name}</a></li>"
        for name in ("首页", "新闻", "体育", "财经", "科技", "登录", "注册")
    )
    for text in rng.sample(texts, min(number, len(texts))):
        text = text.encode(codec, "ignore").decode(codec)
        body = "".join(f"<p>{line}</p>" for line in text.splitlines() if line.strip())
        meta = f"<meta charset='{declared}'>" if declared else ""
        page = (
            f"<html><head>{meta}<title>文章</title></head><body><nav><ul>{links}</ul></nav>"
            f"<div class='main'><article><h1>文章</h1>{body}</article></div>"
            f"<div class='sidebar'><ul>{links}</ul></div>"
            "<footer>版权所有 网站地图 联系我们 隐私政策</footer></body></html>"
        )
        pages.append((page.encode(codec, "ignore"), text))
    return pages


def main(config: Config) -> None:
    """Prints the tables and writes them to --output."""
    extractors = {
        "ours, article (trafilatura)": ours("article"),
        "plain trafilatura": plain_trafilatura,
        "ours, article_fast (resiliparse)": ours("article_fast"),
        "plain resiliparse": plain_resiliparse,
    }
    lines = [
        packages.head(("trafilatura", "resiliparse", "lxml")),
        "Words of each page against its gold body, mean over pages.",
        "",
        "| 181 pages | F1 | precision | recall | without text |",
        "|---|---|---|---|---|",
    ]
    pages = gold_pages(config.shared)
    for name, extract in extractors.items():
        texts = [extract(content) for content, _ in pages]
        scores = [f1(text, gold) for text, (_, gold) in zip(texts, pages, strict=True)]
        means = " | ".join(
            f"{statistics.fmean(column):.3f}" for column in zip(*scores, strict=True)
        )
        lines.append(f"| {name} | {means} | {sum(not text.strip() for text in texts)} |")
        print(lines[-1], flush=True)
    lines += [
        "",
        "Synthetic Chinese pages (a menu, a sidebar and a footer around a response of an "
        "instruction set), F1 of characters:",
        "",
        f"| charset | {' | '.join(extractors)} |",
        "|---|" + "---|" * len(extractors),
    ]
    for name, codec, declared in CHARSETS:
        pages = chinese_pages(config.shared, config.chinese_pages, codec, declared)
        row = [
            statistics.fmean(f1(extract(content), gold)[0] for content, gold in pages)
            for extract in extractors.values()
        ]
        lines.append(f"| {name} | {' | '.join(f'{value:.3f}' for value in row)} |")
        print(lines[-1], flush=True)
    for extract in extractors.values():
        getattr(extract, "close", lambda: None)()
    if config.output:
        pathlib.Path(config.output).write_text(
            "# Extraction\n\n" + "\n".join(lines) + "\n", "utf-8"
        )


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
