"""Compares how well tokenizers compress text, by language. Report: 2.2, Figure 3.

    python -m experiments.compression --tokenizers=A,B --texts=zh=news.jsonl,en=books
    ... --texts=zh.txt,en.txt            # a file or folder without LANGUAGE= is named after itself
    ... --tokenizers=base=cl100k_base.tiktoken,ours=runs/mine --output=runs/compression

A tokenizer is a folder (a run, or a released Qwen), a .tiktoken file, a tokenizer.json, or a
vocab.json with the merges.txt next to it. A cell is the bytes per token, and in brackets its ratio
to that of the first tokenizer: above 1, the text has fewer tokens. Texts are read as by
experiments.prepare_data --sources.
"""

import dataclasses
import pathlib
from collections.abc import Iterable

from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.corpus.sources.read import documents
from qwen_jax.errors import ConfigError
from qwen_jax.ranges import ONE_OR_MORE, Checked
from qwen_jax.tokenizer.compression import compression, format_table, plot
from qwen_jax.tokenizer.load import load_tokenizer
from qwen_jax.utils.files import write_json


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """The tokenizers and the texts."""

    tokenizers: tuple[str, ...] = option(
        (), "folders or files of tokenizers, as PATH or NAME=PATH; the first is the baseline"
    )
    texts: tuple[str, ...] = option(
        (), "files or folders of text, as PATH or LANGUAGE=PATH; those of one language are joined"
    )
    megabytes: float = option(10.0, "MB of text of each language to encode at most", ONE_OR_MORE)
    output: str | None = option(
        None, "folder for compression.json and compression.png; None: only print the table"
    )


RECIPE = Config()


def main(config: Config) -> None:
    """Prints the table, and writes it and its plot to the output folder."""
    for name in ("tokenizers", "texts"):
        if not getattr(config, name):
            raise ConfigError(f"no {name} are set.", f"--{name}", "pass at least one path.")
    named = _named(config.tokenizers)
    if len(dict(named)) < len(named):
        raise ConfigError(
            "two tokenizers have one name.", "--tokenizers", "name them, as in NAME=PATH."
        )
    tokenizers = {name: load_tokenizer(path) for name, path in named}
    texts: dict[str, list[str]] = {}
    for language, path in _named(config.texts):
        room = config.megabytes * 1e6 - sum(map(_size, texts.get(language, ())))
        texts[language] = [*texts.get(language, ()), *_read(path, room)]
    rows = compression(tokenizers, texts)
    print(format_table(rows))
    if config.output is not None:
        folder = pathlib.Path(config.output)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "compression.json", [row._asdict() for row in rows])
        plot(rows, folder / "compression.png")
        print(folder / "compression.json")


def _named(values: tuple[str, ...]) -> list[tuple[str, str]]:
    """Returns (name, path) of PATH or NAME=PATH; a path is named after its last part."""
    found = []
    for value in values:
        name, equals, path = value.partition("=")
        if not equals or "/" in name:
            last = pathlib.Path(value)
            name, path = last.name.partition(".")[0] if last.is_file() else last.name, value
        found.append((name, path))
    return found


def _read(path: str, room: float) -> Iterable[str]:
    """Yields documents of up to `room` bytes in total."""
    for document in documents(path):
        if room <= 0:
            return
        room -= _size(document.text)
        yield document.text


def _size(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": RECIPE})
