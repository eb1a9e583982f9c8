"""Test sets as evaluation reads them, and the index that a run's training text was filtered with.

Report: 2.1. `read_tasks` reads the same examples as `experiments.evaluate`; `guarded` says which of
them an index has, so that results can name what may have been in the training text, and `occurring`
which of them token shards have.
"""

import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from qwen_jax.corpus.filters.decontaminate import Index
from qwen_jax.corpus.filters.test_items import TestItem
from qwen_jax.data import shards
from qwen_jax.errors import DataError
from qwen_jax.evaluate.data_files import DataFolders
from qwen_jax.evaluate.task import Example
from qwen_jax.evaluate.tasks import select
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.load import load_tokenizer
from qwen_jax.utils.files import read_json

INDEX = "test_sets.npz"  # of prepare_data, in its output
_DOCUMENTS = 256  # searched at a time
_MAX_RUNS = 8  # from a run to the one that it started from, and so on


def read_tasks(
    names: Sequence[str], folders: Sequence[str | os.PathLike], flag: str
) -> Iterator[TestItem]:
    """Yields the texts of the examples of tasks, each text once.

    Args:
      names: tasks and suites of qwen_jax.evaluate.
      folders: with the files of the benchmarks, also in their subfolders.
      flag: names the tasks in errors.

    Raises:
      ConfigError: a task is unknown, or a folder is missing.
      DataError: a file is missing, damaged, or of another version.
    """
    tops = [pathlib.Path(folder) for folder in folders]
    inner = [path for top in tops if top.is_dir() for path in sorted(top.iterdir())]
    data = DataFolders([*tops, *(path for path in inner if path.is_dir())])
    seen: set[str] = set()
    for task in select(tuple(names), flag):
        with data.located():
            examples = task.read(data).examples
        for example in examples:
            for text in example.texts():
                if text not in seen:  # tasks may share examples
                    seen.add(text)
                    yield TestItem(task.name, example.id, text)


def guarded(path: str | os.PathLike) -> Callable[[Sequence[Example]], list[bool]]:
    """Returns a function that says of each example whether an index has a text of it.

    Args:
      path: an index that prepare_data or Index.save wrote.

    Raises:
      DataError: the file is missing or is not an index.
    """
    index = Index.load(path)

    def found(examples: Sequence[Example]) -> list[bool]:
        texts = [(at, text) for at, one in enumerate(examples) for text in one.texts()]
        has = [False] * len(examples)
        for (at, _), matches in zip(
            texts, index.matches_in([text for _, text in texts]), strict=True
        ):
            has[at] = has[at] or bool(matches)
        return has

    return found


def occurring(
    examples: Sequence[Example], folders: Sequence[str | os.PathLike]
) -> Callable[[Sequence[Example]], list[bool]]:
    """Returns a function that says of each of `examples` whether token shards have text of it.

    The rules are those of prepare_data: 13 words in a row, or all of a shorter text. The shards are
    decoded and read once.

    Args:
      folders: shard folders, with the tokenizer in their parents.

    Raises:
      DataError: a folder is not one of shards.
    """
    items = (
        TestItem("", str(number), text)
        for number, one in enumerate(examples)
        for text in one.texts()
    )
    index, found = Index.build(items), set()
    for folder in map(pathlib.Path, folders):
        opened = shards.open_shards(folder)
        tokenizer = load_tokenizer(folder.parent)
        documents = _texts(opened, tokenizer)
        while texts := list(itertools.islice(documents, _DOCUMENTS)):
            matches = itertools.chain.from_iterable(index.matches_in(texts))
            found.update(examples[int(match.item)].texts() for match in matches)
    return lambda some: [one.texts() in found for one in some]


def _texts(opened: shards.Shards, tokenizer: Tokenizer) -> Iterator[str]:
    """Yields the documents of shards as text."""
    for file in opened.files:
        ids, start = np.memmap(file, opened.dtype, "r"), 0
        for end in np.flatnonzero(ids == opened.end_of_text).tolist():
            yield tokenizer.decode(ids[start:end].tolist())
            start = end + 1


def index_of(run: str | os.PathLike) -> pathlib.Path | None:
    """Returns the index of the corpus that a run was trained on.

    It is looked for in the folders of data.sources, of the run and of the runs that it started from
    (init_from). None: there is none, or the folder is not that of a run.

    Args:
      run: a run folder.
    """
    folder = pathlib.Path(run)
    for _ in range(_MAX_RUNS):
        try:
            raw = read_json(folder / "config.json")
        except DataError:
            return None
        data = raw.get("data")
        for source in data.get("sources") or () if isinstance(data, dict) else ():
            place = pathlib.Path(str(source))
            if not place.exists():  # folder=weight
                place = pathlib.Path(str(source).rpartition("=")[0])
            for parent in list(place.parents)[:3]:  # OUTPUT/shards/NAME/train
                if (parent / INDEX).is_file():
                    return parent / INDEX
        start = raw.get("init_from")
        if not isinstance(start, str) or not start:
            return None
        folder = pathlib.Path(start)
    return None
