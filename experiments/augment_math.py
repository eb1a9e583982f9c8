"""Makes data for math fine-tuning from problems with known answers. Report: 5.1.

A model rephrases each problem, and solves the problems and their paraphrases several times. A
solution is kept if its answer is right, all of its equations are true, and its steps are new.
Generated arithmetic in English and Chinese, with every step written out, is added.

    python -m experiments.augment_math --checkpoint=runs/chat --problems=train.jsonl \\
        --test_sets=benchmarks --output=data/math
Only arithmetic, without a model:
    python -m experiments.augment_math --arithmetic=10000 --output=data/math
Then: experiments.math_qwen --data.conversations=data/math/conversations.jsonl

Problems are .json or .jsonl rows with question (or problem) and answer (or solution), such as the
training sets of GSM8K and MATH. A killed run resumes with the same command; the responses are in
OUTPUT/responses.jsonl. --test_sets leaves out problems that share a 13-gram with a benchmark.
"""

import collections
import dataclasses
import hashlib
import pathlib

from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.corpus.filters.decontaminate import Index
from qwen_jax.corpus.filters.test_items import read_test_sets
from qwen_jax.errors import ConfigError
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.ranges import ONE_OR_MORE, SEED, ZERO_OR_MORE, Checked, limits_of
from qwen_jax.synthetic import math_solutions
from qwen_jax.synthetic.math_solutions import MathProblem
from qwen_jax.synthetic.response_cache import ResponseCache
from qwen_jax.utils.append_only import AppendOnly
from qwen_jax.utils.jsonl import write_rows

from . import self_instruct


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """Settings of the augmentation."""

    checkpoint: str = option("", "chat model that solves and rephrases: a run or released folder")
    tokenizer: str | None = option(None, "folder or file; None: the one in the checkpoint's folder")
    problems: tuple[str, ...] = option((), "files of problems with answers")
    test_sets: str | None = option(
        None, "folder of test sets: leave out problems that share a 13-gram; None: off"
    )
    solutions: int = option(8, "solutions to sample per problem and paraphrase", ONE_OR_MORE)
    paraphrases: int = option(1, "paraphrases to sample per problem", ZERO_OR_MORE)
    arithmetic: int = option(10_000, "generated arithmetic problems", ZERO_OR_MORE)
    seed: int = option(0, "random seed of sampling and of the arithmetic", SEED)
    temperature: float = option(
        0.7, "sampling temperature (Yuan et al.)", limits_of(SamplingParams, "temperature")
    )
    max_new_tokens: int = option(512, "maximum tokens per response", ONE_OR_MORE)
    rows: int = option(16, "maximum responses decoded at once", ONE_OR_MORE)
    output: str = option("runs/augment_math", "output folder; a killed run resumes in it")


RECIPE = Config()
SMOKE = dataclasses.replace(
    RECIPE, solutions=2, arithmetic=24, max_new_tokens=16, output="runs/augment_math_smoke"
)


def main(config: Config) -> None:
    """Writes OUTPUT/conversations.jsonl.

    Raises:
      ConfigError: there are problems without a model, or nothing to make.
    """
    if bool(config.checkpoint) != bool(config.problems):
        raise ConfigError(
            "a model solves problems: one of them is missing.",
            "--checkpoint, --problems",
            "set both, or neither to make only arithmetic.",
        )
    if not config.problems and not config.arithmetic:
        raise ConfigError(
            "there is nothing to make.", "--problems, --arithmetic", "set one of them."
        )
    counts: collections.Counter[str] = collections.Counter()
    rows = model_rows(config, read(config, counts), counts) if config.problems else []
    rows += math_solutions.arithmetic_rows(config.arithmetic, seed=config.seed)
    counts["arithmetic"] = config.arithmetic
    path = pathlib.Path(config.output) / "conversations.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(path, rows)
    for name, number in sorted(counts.items()):
        flags.log(f"{name}: {number:,}")
    flags.log(f"{path}: {len(rows):,} conversations")


def read(config: Config, counts: collections.Counter[str]) -> list[MathProblem]:
    """Reads the problems, without those that share a 13-gram with a test set."""
    problems = [each for path in config.problems for each in math_solutions.read_problems(path)]
    if config.test_sets is None:
        return problems
    matches = Index.build(read_test_sets(config.test_sets)).matches_in(
        [each.question for each in problems]
    )
    counts["problems: in a test set"] = sum(map(bool, matches))
    return [each for each, found in zip(problems, matches, strict=True) if not found]


def model_rows(
    config: Config, problems: list[MathProblem], counts: collections.Counter[str]
) -> list[dict]:
    """Returns the conversations that the model writes and the checker confirms."""
    made_from = {
        "problems": hashlib.sha256(repr(problems).encode()).hexdigest()[:16],
        "seed": config.seed,
        "temperature": config.temperature,
        "max_new_tokens": config.max_new_tokens,
    }
    asking = self_instruct.Config(
        checkpoint=config.checkpoint,
        tokenizer=config.tokenizer,
        temperature=config.temperature,
        top_p=1.0,
        max_new_tokens=config.max_new_tokens,
        rows=config.rows,
    )
    path = pathlib.Path(config.output) / "responses.jsonl"
    with AppendOnly(path, made_from) as file, self_instruct.ProgressBar() as bar:
        cache = ResponseCache(
            file,
            lambda: self_instruct.open_model(asking, file),
            seed=config.seed,
            progress=bar.show,
        )
        new = math_solutions.rephrase(cache, problems, config.paraphrases, counts)
        return [
            *math_solutions.solve(cache, problems, config.solutions, counts),
            *math_solutions.solve(cache, new, config.solutions, counts, name="solve paraphrases"),
        ]


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": RECIPE, "smoke": SMOKE})
