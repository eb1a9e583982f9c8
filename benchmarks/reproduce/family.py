"""The text, the vocabulary and the base models that the claims share. Report: 2.1 to 2.4.

Text: documentation and source of this computer's Python, and statements of the toy worlds without
any question that is held out. A model of a few million parameters sees two million tokens.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import numpy as np

from benchmarks.reproduce.lab import Lab
from benchmarks.reproduce.learner import Schedule, TextRows, train
from experiments import quickstart
from qwen_jax.config import ModelConfig
from qwen_jax.corpus.output.tokenize import source_documents
from qwen_jax.synthetic.worlds import instructions, programs, stories, sums, word_problems
from qwen_jax.synthetic.worlds.problem import LANGUAGES, is_held_out, sample
from qwen_jax.tokenizer import extend
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.template.builtin import DEFAULT_SYSTEM
from qwen_jax.types import Params
from qwen_jax.utils.files import temporary_path

LENGTH = 256  # tokens of a row of pretraining
_HELD_OUT = 0.05  # of the documents of each source
_LEARNED, _GROWN = 1500, 340  # tokens; with 208 special ones: 2,048
SIZES = {  # ours: deep and narrow, heads of 32 (heads of 4 cannot tell positions apart)
    "0.6m": ModelConfig(
        vocab_size=2048, hidden_size=64, num_layers=7, num_heads=2, ffn_size=176,
        context_length=LENGTH, compute_dtype="float32", unroll_layers=7,
    ),
    "2.6m": ModelConfig(
        vocab_size=2048, hidden_size=160, num_layers=6, num_heads=5, ffn_size=448,
        context_length=LENGTH, compute_dtype="float32", unroll_layers=6,
    ),
    "8.4m": ModelConfig(
        vocab_size=2048, hidden_size=256, num_layers=9, num_heads=8, ffn_size=704,
        context_length=LENGTH, compute_dtype="float32", unroll_layers=9,
    ),
}  # fmt: skip
RATES = {"0.6m": 5e-3, "2.6m": 2.5e-3, "8.4m": 1.5e-3}  # peak learning rates of pretraining
BASE_STEPS, BASE_BATCH = 8000, 2  # rows: 4.1 million tokens, in many small steps


@dataclasses.dataclass(frozen=True)
class Text:
    """Tokens of each source, for training and held out."""

    train: dict[str, np.ndarray]  # uint16 [n]
    held_out: dict[str, np.ndarray]

    def mixture(self, shares: dict[str, float], number: int, seed: int = 0) -> np.ndarray:
        """Returns about `number` tokens: rows of LENGTH of the sources by their shares, shuffled.

        A source that is too small is repeated.
        """
        rows = []
        for name, share in shares.items():
            tokens = self.train[name]
            wanted = round(share * number / LENGTH)
            available = len(tokens) // LENGTH
            table = tokens[: available * LENGTH].reshape(available, LENGTH)
            rows.append(table[np.arange(wanted) % available])
        mixed = np.concatenate(rows)
        return mixed[np.random.default_rng(seed).permutation(len(mixed))].reshape(-1)


SHARES = {"docs": 0.4, "code": 0.1, "worlds": 0.5}


@functools.cache
def tokenizer(lab: Lab) -> Tokenizer:
    """Returns the vocabulary of the family: learned on documentation and both languages' worlds."""
    path = lab.folder / "tokenizer.tiktoken"
    if not path.exists():
        documents = all_documents(lab)
        lab.log("training the vocabulary")
        # The words of ChatML often, so that they are one token each.
        words = f"system\n{DEFAULT_SYSTEM}\nuser\nassistant\n"
        marks = [words] * len(documents["worlds"])
        learned = extend.train(
            [*documents["docs"], *documents["worlds"], *marks], vocab_size=_LEARNED
        )
        Tokenizer(extend.grow(learned, documents["code"], num_new=_GROWN)).save(path)
    return Tokenizer.from_file(path)


@functools.cache
def text(lab: Lab) -> Text:
    """Returns the tokens of all sources; 5 % of the documents are held out."""
    folder = lab.folder / "tokens"
    ours = tokenizer(lab)
    sides: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = ({}, {})
    names = ("docs", "code", "worlds")
    if not all((folder / f"{name}.{s}.npy").exists() for name in names for s in ("train", "eval")):
        folder.mkdir(parents=True, exist_ok=True)
        for name, documents in all_documents(lab).items():
            lab.log(f"tokenizing {name}: {len(documents):,} documents")
            found: tuple[list[int], list[int]] = ([], [])
            for document in documents:
                side = found[is_kept_out(document)]
                side.extend([ours.end_of_text, *ours.encode(document)])
            for side, tokens in zip(("train", "eval"), found, strict=True):
                _save(folder / f"{name}.{side}.npy", np.array(tokens, np.uint16))
    for name in names:
        for side, into in zip(("train", "eval"), sides, strict=True):
            into[name] = np.load(folder / f"{name}.{side}.npy")
    return Text(*sides)


def is_kept_out(document: str) -> bool:
    """Returns whether a document is on the held-out side of the text."""
    return is_held_out(document, _HELD_OUT)


def _save(path: pathlib.Path, array: np.ndarray) -> None:
    partial = temporary_path(path)
    with open(partial, "wb") as file:
        np.save(file, array)
    partial.rename(path)


@functools.cache
def all_documents(lab: Lab) -> dict[str, list[str]]:
    """Returns source -> documents: Python's documentation and source, and the worlds' text."""
    lab.folder.mkdir(parents=True, exist_ok=True)
    result = quickstart.gather(lab.folder)
    found = {
        name: [document.text for document in source_documents(result, name)]
        for name in quickstart.SOURCES
    }
    return found | {"worlds": world_documents(20_000, seed=7)}


def world_documents(number: int, *, seed: int) -> list[str]:
    """Returns plain text of the worlds: sums, word problems with their steps, programs, stories.

    None of it is in the form of a conversation, and nothing that is held out is in it.
    """
    rng = np.random.default_rng(seed)
    makers: list[Callable[[], str]] = [
        lambda: _sums(rng), lambda: _programs(rng), lambda: _stories(rng), lambda: _problems(rng),
        lambda: _lists(rng),
    ]  # fmt: skip
    return [makers[i % len(makers)]() for i in range(number)]


def _lists(rng: np.random.Generator) -> str:
    """Returns lines of words, each twice, as lists in documents recur: they teach to copy."""
    lines: list[str] = []
    while len(lines) < 12:
        problem = instructions.make(rng, "repeat", LANGUAGES[rng.integers(2)])
        if not is_held_out(problem.key):
            lines += [problem.answer] * 2
    return "\n".join(lines)


def _sums(rng: np.random.Generator) -> str:
    found = sample(
        sums.make, sums.LEVELS, 8, seed=int(rng.integers(2**31)), held_out=False, languages=("en",)
    )
    return "\n".join(each.steps if rng.random() < 0.5 else each.answer for each in found)


def _problems(rng: np.random.Generator) -> str:
    found = sample(
        word_problems.make, word_problems.LEVELS, 2, seed=int(rng.integers(2**31)), held_out=False
    )
    return "\n\n".join(f"{each.question}\n{each.steps}" for each in found)


def _programs(rng: np.random.Generator) -> str:
    texts: list[str] = []
    while len(texts) < 2:
        level = programs.LEVELS[rng.integers(len(programs.LEVELS))]
        language = LANGUAGES[rng.integers(2)]
        program = programs.make(rng, level, language, programs.PROGRAMMING[rng.integers(2)])
        if not is_held_out(program.key):
            texts.append(program.prompt + program.body)
    return "\n\n".join(texts)


def _stories(rng: np.random.Generator) -> str:
    language = LANGUAGES[rng.integers(2)]
    return "\n".join(stories.make(rng, language).text for _ in range(3))


def base(
    lab: Lab, size: str, *, seed: int = 0, steps: int = BASE_STEPS
) -> tuple[ModelConfig, Params]:
    """Returns a base model of SIZES, trained on the mixture, from the cache if it is there.

    Args:
      steps: of the full form.
    """
    model, ours = SIZES[size], tokenizer(lab)
    schedule = base_schedule(lab, size, steps)

    def make() -> Params:
        lab.log(f"base {size}, seed {seed}: {schedule.steps} steps of {BASE_BATCH} x {LENGTH}")
        tokens = text(lab).mixture(SHARES, schedule.steps * BASE_BATCH * LENGTH)
        return train(
            model,
            TextRows(tokens, LENGTH),
            schedule,
            seed=seed,
            log=lambda step, loss: lab.log(f"     step {step}: loss {loss:.3f}"),
        )

    name = f"base_{size}_{seed}" if steps == BASE_STEPS else f"base_{size}_{steps}_{seed}"
    return model, lab.model(name, model, ours, make)


def base_schedule(lab: Lab, size: str, steps: int = BASE_STEPS) -> Schedule:
    """Returns how a base model is trained; equal tokens for every size."""
    return Schedule(lab.form.steps(steps), RATES[size], BASE_BATCH)
