"""Writes the items of the agent benchmarks, and training data for them. Report: 3.4.

    python -m experiments.generate_agent_data --output=data/agents
    python -m experiments.evaluate --checkpoint=runs/chat --tasks=agents --data=data/agents
    python -m experiments.sft --data.conversations=chat.jsonl,data/agents/tool_use_train.jsonl ...

The report's items are not published, so these are ours, from a seed:

    tool_use.jsonl          questions with up to five tools (Table 6)
    code_interpreter.jsonl  mathematics, charts and general files (Tables 7 and 8)
    hf_agent.jsonl          tasks for the agent over tools of Hugging Face (Table 9)
    tool_use_train.jsonl    conversations with other tools, names, values and phrasings

The same settings write the same bytes.
"""

import dataclasses
import pathlib

from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.errors import unknown_name
from qwen_jax.ranges import SEED, ZERO_OR_MORE, Checked
from qwen_jax.synthetic.tool_use import hf_tasks, interpreter_tasks, questions, transcripts
from qwen_jax.utils.jsonl import write_rows


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """Sizes and the seed."""

    output: str = option("data/agents", "output folder")
    seed: int = option(0, "random seed of all items", SEED)
    calls: int = option(600, "questions that need a tool, for the benchmark", ZERO_OR_MORE)
    no_calls: int = option(300, "questions that need none", ZERO_OR_MORE)
    # The report has 74 problems of mathematics, 84 + 79 charts and 58 of general files.
    math: int = option(148, "mathematical problems for the code interpreter", ZERO_OR_MORE)
    hard_charts: int = option(168, "charts of computed data", ZERO_OR_MORE)
    easy_charts: int = option(158, "charts of two columns of a file", ZERO_OR_MORE)
    general: int = option(116, "problems with files", ZERO_OR_MORE)
    # The published set has 27 phrasings and 47 steps.
    hf_run: int = option(540, "tasks for the Hugging Face agent in run mode", ZERO_OR_MORE)
    hf_chats: int = option(188, "conversations in chat mode, of two to four steps", ZERO_OR_MORE)
    train_calls: int = option(2000, "conversations with a call, for training", ZERO_OR_MORE)
    train_no_calls: int = option(1000, "conversations without a call, for training", ZERO_OR_MORE)
    train_format: str = option(
        "react", f"format of the conversations: {', '.join(transcripts.FORMATS)}"
    )

    def __post_init__(self):
        super().__post_init__()
        if self.train_format not in transcripts.FORMATS:
            raise unknown_name("format", self.train_format, transcripts.FORMATS, "--train_format")


RECIPE = Config()
SMOKE = dataclasses.replace(
    RECIPE,
    calls=20, no_calls=10, math=4, hard_charts=4, easy_charts=4, general=4, hf_run=12, hf_chats=4,
    train_calls=20, train_no_calls=10, output="data/agents_smoke",
)  # fmt: skip


def main(config: Config) -> None:
    """Writes the files and prints their sizes."""
    items = questions.items(
        split="test", calls=config.calls, no_calls=config.no_calls, seed=config.seed
    )
    trained = questions.items(
        split="train", calls=config.train_calls, no_calls=config.train_no_calls, seed=config.seed
    )
    programs = interpreter_tasks.items(
        math=config.math,
        hard=config.hard_charts,
        easy=config.easy_charts,
        general=config.general,
        seed=config.seed,
    )
    tasks = hf_tasks.items(run=config.hf_run, chats=config.hf_chats, seed=config.seed)
    files = {
        "tool_use.jsonl": (
            dataclasses.asdict(one) | {"transcript": transcripts.transcript(one)} for one in items
        ),
        "code_interpreter.jsonl": programs,
        "hf_agent.jsonl": tasks,
        "tool_use_train.jsonl": (transcripts.row(one, config.train_format) for one in trained),
    }
    folder = pathlib.Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        rows = list(rows)
        write_rows(folder / name, rows)
        print(f"{folder / name}: {len(rows):,} rows")


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": RECIPE, "smoke": SMOKE})
