"""The matrix: which folders are tried, and which combinations do not exist, with the reason."""

import dataclasses

from benchmarks.released.families import FAMILIES
from benchmarks.released.folders import KINDS

FORMS = ("released files", "tokenizer.json", "vocab.json", "full vocabulary", "transformers 4")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One folder.

    Args:
      column: a kind of weights (folders.KINDS), saved by transformers 5, or one of FORMS: who
        wrote the files, or which files the tokenizer has.
    """

    family: str
    column: str

    @property
    def name(self) -> str:
        return f"{self.family}-{self.column.replace(' ', '_')}"

    @property
    def kind(self) -> str:
        """The kind of weights; forms of the tokenizer are tried with grouped heads."""
        if self.column in KINDS:
            return self.column
        return "untied" if self.family == "Qwen-1" else "GQA"

    @property
    def writer(self) -> int | None:
        """The version of transformers that saves the folder; None: it stays as released."""
        if self.family == "Qwen-1" or self.column in FORMS[:4]:
            return None
        return 4 if self.column == "transformers 4" else 5

    @property
    def form(self) -> str:
        """The files of the tokenizer before transformers saves it."""
        return self.column if self.column in ("tokenizer.json", "vocab.json") else "released"


COLUMNS = (*KINDS, *FORMS)
_NOT_QWEN1 = {
    "tied": "Qwen-1's code never ties",
    "GQA": "no key of its config.json",
    "head size": "its code requires heads times head size to be the hidden size",
    "yarn": "no key of its config.json; it has dynamic NTK",
    "linear": "no key of its config.json",
    "sliding": "no key of its config.json",
    "unpadded": "the reference weights are: it is the column untied",
    "released files": "it is the column untied",
    "full vocabulary": "the reference weights have 512 ids (tests/tokenizer/test_bpe.py has all)",
    "tokenizer.json": "released with qwen.tiktoken only",
    "vocab.json": "released with qwen.tiktoken only",
    "transformers 4": "its model is code in the folder, not in transformers",
}


def missing(family: str, column: str) -> str | None:
    """Returns why a combination does not exist."""
    return _NOT_QWEN1.get(column) if family == "Qwen-1" else None


CELLS = [
    Cell(family, column) for column in COLUMNS for family in FAMILIES if not missing(family, column)
]
