"""What the report says about its tables, recomputed from their rows. Report: 2.6, 3.3, 4.3, 5.2."""

from collections.abc import Mapping
from typing import NamedTuple

from qwen_jax.evaluate.tasks import published
from qwen_jax.evaluate.tasks.code import published as code

# (table, its scores, a model of the report, the model that the report compares it with)
_PAIRS = (
    ("Table 2", published.TABLE_2, "Qwen 14B", "LLaMA2 70B"),
    ("Table 2", published.TABLE_2, "Qwen 14B", "LLaMA2 13B"),
    ("Table 2", published.TABLE_2, "Qwen 14B", "Baichuan2 13B"),
    ("Table 2", published.TABLE_2, "Qwen 7B", "LLaMA2 13B"),
    ("Table 2", published.TABLE_2, "Qwen 1.8B", "LLaMA2 7B"),
    ("Table 5", published.TABLE_5, "Qwen-Chat 14B", "GPT-3.5"),
    ("Table 5", published.TABLE_5, "Qwen-Chat 14B", "LLaMA2-Chat 70B"),
    ("Table 10", code.TABLE_10, "Code-Qwen 7B", "CodeGeeX2 6B"),
    ("Table 10", code.TABLE_10, "Code-Qwen 14B", "InstructCodeT5+ 16B"),
    ("Table 10", code.TABLE_10, "Code-Qwen 14B", "StarCoder-Prompted 15B"),
    ("Table 10", code.TABLE_10, "Code-Qwen-Chat 14B", "PaLM-Coder 540B"),
    ("Table 10", code.TABLE_10, "Code-Qwen-Chat 14B", "GPT-4"),
    ("Table 11", code.TABLE_11, "Code-Qwen-Chat 7B", "OctoGeeX 6B"),
    ("Table 11", code.TABLE_11, "Code-Qwen-Chat 7B", "StarCoder 15B"),
    ("Table 11", code.TABLE_11, "Code-Qwen-Chat 14B", "InstructCodeT5+ 16B"),
    ("Table 11", code.TABLE_11, "Code-Qwen-Chat 14B", "GPT-4"),
    ("Table 12", published.TABLE_12, "Math-Qwen-Chat 14B", "GPT-3.5"),
    ("Table 12", published.TABLE_12, "Math-Qwen-Chat 7B", "Minerva 540B"),
)


class Claim(NamedTuple):
    """How a model of the report compares with another one.

    Attributes:
      ahead, behind, equal: benchmarks with the difference of the scores in points.
    """

    table: str
    model: str
    other: str
    ahead: tuple[tuple[str, float], ...]
    behind: tuple[tuple[str, float], ...]
    equal: tuple[str, ...]

    def __str__(self) -> str:
        n = len(self.ahead) + len(self.behind) + len(self.equal)
        text = f"{self.model} is ahead of {self.other} on {len(self.ahead)} of {n} benchmarks"
        for what, pairs in (("ahead", self.ahead), ("behind", self.behind)):
            if pairs:
                text += f"; {what}: " + ", ".join(f"{name} {gap:+.1f}" for name, gap in pairs)
        return text + (f"; equal: {', '.join(self.equal)}" if self.equal else "")


def compare(table: str, scores: Mapping[str, Mapping[str, float]], model: str, other: str) -> Claim:
    """Compares two models on the benchmarks that have scores of both.

    Args:
      scores: benchmark -> model -> score in percent.
    """
    gaps = [
        (name, round(row[model] - row[other], 1))
        for name, row in scores.items()
        if model in row and other in row
    ]
    return Claim(
        table,
        model,
        other,
        tuple(pair for pair in gaps if pair[1] > 0),
        tuple(pair for pair in gaps if pair[1] < 0),
        tuple(name for name, gap in gaps if gap == 0),
    )


def claims() -> list[Claim]:
    """Returns the comparisons that the report draws."""
    return [compare(*pair) for pair in _PAIRS]
