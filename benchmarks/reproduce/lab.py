"""Where claims run: cached cells and models in one folder, costs stated before they are paid."""

import ast
import dataclasses
import hashlib
import pathlib
import shutil
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax

from benchmarks.reproduce.claim import Cell, Form, Measured, Outcome
from qwen_jax.config import ModelConfig
from qwen_jax.errors import ConfigError
from qwen_jax.pretrained.huggingface import load_pretrained, save_pretrained
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.train.telemetry.metrics import flops_per_token, peak_flops
from qwen_jax.types import Params
from qwen_jax.utils.files import read_json, write_json
from qwen_jax.utils.format import format_seconds

_UTILIZATION = 0.35  # of the measured matmul rate, that a small model's step reaches on a CPU


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement of the report that can be tested at a small size."""

    number: int
    name: str  # also its file's name in claims/
    report: str  # section or table
    title: str
    statement: str  # what the report says, in our words
    rule: str  # when it holds; written down before the confirming seeds were run
    cells: Callable[["Lab"], list[Cell]]
    judge: Callable[["Lab", Measured], Outcome]
    group: str = ""  # the name of the claim whose cells these are; empty: its own


@dataclasses.dataclass(frozen=True)
class Lab:
    """The folder of one form of the reproduction."""

    folder: pathlib.Path
    form: Form
    log: Callable[[str], None]

    def run(self, claim: Claim) -> tuple[Measured, dict[str, Any]]:
        """Runs the cells of a claim that have not run yet; returns what all measured, and the cost.

        Each finished cell is a file, so a killed claim loses at most the cell that ran.

        Raises:
          ConfigError: a cell was made by another version of the claim.
        """
        code = _code_of(claim)
        cells = claim.cells(self)
        folder = self.folder / "cells" / (claim.group or claim.name)
        left = [cell for cell in cells if not (folder / f"{cell.name}.json").exists()]
        self._announce(claim, cells, left)
        began, done = time.time(), 0
        measured: Measured = {}
        for cell in cells:
            path = folder / f"{cell.name}.json"
            if not path.exists():
                started = time.time()
                found = cell.run()
                folder.mkdir(parents=True, exist_ok=True)
                write_json(
                    path, {"measured": found, "seconds": time.time() - started, "code": code}
                )
                done += 1
                rest = (time.time() - began) / done * (len(left) - done)
                self.log(
                    f"     {cell.arm}, seed {cell.seed}: {time.time() - started:.0f} s; "
                    f"{done} of {len(left)}, about {format_seconds(rest)} left"
                )
            record = read_json(path)
            if record["code"] != code:
                raise ConfigError(
                    "the cell was made by another version of this claim, so it is not comparable.",
                    str(path),
                    f"use another --output, or delete {self.folder}.",
                )
            measured.setdefault(cell.arm, {})[cell.seed] = record["measured"]
        seconds = sum(read_json(folder / f"{cell.name}.json")["seconds"] for cell in cells)
        return measured, {
            "seconds": round(seconds, 1),
            "tokens": sum(cell.tokens for cell in cells),
            "flops": sum(cell.flops for cell in cells),
        }

    def _announce(self, claim: Claim, cells: list[Cell], left: list[Cell]) -> None:
        tokens, flops = sum(c.tokens for c in left), sum(c.flops for c in left)
        rate = peak_flops(jax.devices()[0])[0] * _UTILIZATION
        self.log(
            f"claim {claim.number}, {claim.title}: {len(cells)} cells, {len(left)} to run; "
            f"{tokens:,} training tokens, {flops:.2e} FLOP, "
            f"{format_seconds(flops / rate)} of training at {rate / 1e9:.0f} GFLOP/s"
        )

    def model(
        self, name: str, config: ModelConfig, tokenizer: Tokenizer, make: Callable[[], Params]
    ) -> Params:
        """Returns the parameters of models/NAME, which `make` trains if the folder is not there.

        The folder is a released checkpoint: experiments.chat and experiments.generate read it.
        """
        folder = self.folder / "models" / name
        if not folder.exists():
            params, partial = make(), folder.with_name(folder.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            save_pretrained(partial, config, params, layout="qwen2", tokenizer=tokenizer)
            partial.rename(folder)
        return load_pretrained(folder)[1]

    def cost(self, config: ModelConfig, steps: int, batch_size: int, length: int):
        """Returns {tokens, flops} of a training run, for a Cell."""
        tokens = steps * batch_size * length
        at_length = dataclasses.replace(config, context_length=length)
        return {"tokens": tokens, "flops": tokens * flops_per_token(at_length)[0]}


def _code_of(claim: Claim) -> str:
    """Returns a hash of the code that makes a claim's cells.

    That is the claim's module and those of this benchmark that it uses, without comments and
    without what only reads cells: judges, texts, and the arithmetic of intervals.
    """
    digest = hashlib.sha256()
    for module in sorted(_modules(sys.modules[claim.judge.__module__]), key=lambda m: m.__name__):
        assert module.__file__ is not None
        tree = ast.parse(pathlib.Path(module.__file__).read_text(encoding="utf-8"))
        tree.body = [node for node in tree.body if not _reads_only(node)]
        digest.update(f"{module.__name__}\0{ast.unparse(tree)}\0".encode())
    return digest.hexdigest()[:16]


_PACKAGE = __name__.rpartition(".")[0]
_READERS = {f"{_PACKAGE}.{name}" for name in ("bootstrap", "claim", "lab", "tables")}


def _modules(module: ModuleType) -> set[ModuleType]:
    """Returns a module with those of this benchmark that it uses, directly or not."""
    found, left = set(), [module]
    while left:
        module = left.pop()
        found.add(module)
        for value in vars(module).values():
            name = value.__name__ if isinstance(value, ModuleType) else _module_name(value)
            if name.startswith(_PACKAGE) and name not in _READERS:
                used = sys.modules[name]
                if used not in found and hasattr(used, "__file__"):
                    left.append(used)
    return found


def _module_name(value: Any) -> str:
    name = getattr(value, "__module__", None)
    return name if isinstance(name, str) else ""


def _reads_only(node: ast.stmt) -> bool:
    """Whether a statement is a docstring, a judge, or the list of claims."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.FunctionDef):
        return node.name.lstrip("_").startswith("judge")
    targets = node.targets if isinstance(node, ast.Assign) else []
    return any(isinstance(target, ast.Name) and target.id == "CLAIMS" for target in targets)


def rows_of(measured: Measured, arm: str, key: str) -> list[list[float]]:
    """Returns [seeds, items] of an arm; a number becomes one item."""
    found = [measured[arm][seed][key] for seed in sorted(measured[arm])]
    return [value if isinstance(value, list) else [value] for value in found]
