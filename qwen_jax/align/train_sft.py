"""A fine-tuning run: packed conversations, loss on the assistant's turns. Report: 3.1."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from qwen_jax.config import ModelConfig, option
from qwen_jax.data.chat.conversations import Counts, read_conversations
from qwen_jax.data.chat.sft_rows import Example, PackedRows, encode, trained_bytes
from qwen_jax.data.document import Document
from qwen_jax.data.split import Split
from qwen_jax.errors import ConfigError
from qwen_jax.pretrained.start import StageConfig, start_of
from qwen_jax.ranges import ABOVE_ZERO, Checked, Range, limits_of
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.template.tokens import VARIABLES_HELP, parse_variables
from qwen_jax.train.attempts.folder import CONFIG, beginning
from qwen_jax.train.attempts.staged import local
from qwen_jax.train.job import row_length
from qwen_jax.train.language_model import make_objective
from qwen_jax.train.run_folder import flatten_json
from qwen_jax.train.supervised import Benchmarks, HeldOut, language_evaluation, with_benchmarks
from qwen_jax.train.supervised_examples import for_epochs, held_out_batches, train_on_examples
from qwen_jax.types import TrainState
from qwen_jax.utils.files import read_json
from qwen_jax.utils.jsonl import unique_names

_HELD_OUT = 0.01  # of the conversations, if nothing is said about held-out data


@dataclasses.dataclass(frozen=True)
class SFTData(Checked, where="data.{}"):
    """Settings of the conversation data."""

    conversations: tuple[str, ...] = option((), ".json and .jsonl files of conversations")
    eval_conversations: tuple[str, ...] = option(
        (), "held-out files of conversations, each evaluated separately"
    )
    eval_fraction: float | None = option(
        None,
        f"fraction of the conversations to hold out, chosen by their content; None: {_HELD_OUT}, "
        "or 0 with --data.eval_conversations",
        Range(0, below=1),
        formerly=0.0,
    )
    epochs: float | None = option(
        None, "passes over the conversations; None: set by --train.num_steps", ABOVE_ZERO
    )
    mask: Literal["assistant", "original"] = option(
        "assistant",
        "tokens with loss. assistant: its turns; original: also every turn's markers (released "
        "script)",
    )
    packed: bool = option(
        True, "pack several conversations into one sequence; attention is within each"
    )
    context_length: int | None = option(
        None,
        "tokens per packed sequence; None: the model's context length. The model keeps its own "
        "context",
        limits_of(ModelConfig, "context_length"),
    )
    chat_template_kwargs: str | None = option(None, VARIABLES_HELP, kind="text")

    def __post_init__(self):
        super().__post_init__()
        _ = self.variables  # they are checked
        if self.eval_fraction and self.eval_conversations:
            raise ConfigError(
                f"eval_fraction={self.eval_fraction:g} and files of held-out conversations are "
                "both set.",
                "data.eval_fraction",
                "remove --data.eval_fraction or --data.eval_conversations.",
            )

    @property
    def variables(self) -> dict[str, Any]:
        """The variables of the chat template."""
        return parse_variables(self.chat_template_kwargs, "--data.chat_template_kwargs")


class SFTConfig(StageConfig, Protocol):
    """Config of a fine-tuning run (experiments/sft.py)."""

    @property
    def data(self) -> SFTData: ...


class Conversations(NamedTuple):
    """The conversations of a run, encoded."""

    rows: PackedRows  # to train on
    examples: list[Example]  # the same, one by one
    held_out: list[Example]


def with_eval_fraction(config: Any) -> Any:
    """Returns the config with a number as data.eval_fraction, which the run records.

    A run that an earlier version began, without this setting, goes on without held-out
    conversations.
    """
    fraction = config.data.eval_fraction
    if fraction is None:
        fraction = 0.0 if config.data.eval_conversations or _began_without(config) else _HELD_OUT
    return dataclasses.replace(
        config, data=dataclasses.replace(config.data, eval_fraction=fraction)
    )


def _began_without(config: Any) -> bool:
    path = local(config.run_dir) / CONFIG
    if not path.is_file() or beginning(config.run_dir, restart=config.restart_from_scratch) != (
        "resume"
    ):
        return False
    return "data.eval_fraction" not in flatten_json(read_json(path, error=ConfigError))


def read_conversation_data(
    config: SFTConfig, tokenizer: Tokenizer, log: Callable[[str], None] = print
) -> Conversations:
    """Reads the conversations to train on, and holds out data.eval_fraction of them.

    Logs what was kept, skipped and held out.
    """
    examples, digests = _read(config.data.conversations, config, tokenizer, log)
    fraction = config.data.eval_fraction or 0.0
    split = Split(eval_fraction=fraction).balanced(digests)
    sides: tuple[list[Example], list[Example]] = ([], [])
    for example, digest in zip(examples, digests, strict=True):
        sides[split.assign(digest)[0]].append(example)
    train, held_out = sides
    if fraction:
        log(
            f"held out: {len(held_out):,} of {len(examples):,} examples, chosen by their "
            "content; --data.eval_fraction=0 trains on all"
        )
    return Conversations(_pack(train, config, log), train, held_out)


def _read(
    paths: Sequence[str],
    config: SFTConfig,
    tokenizer: Tokenizer,
    log: Callable[[str], None],
    *,
    name: str = "data",
) -> tuple[list[Example], list[Document]]:
    """Returns the examples of the files, and for each a document that stands for its turns.

    Args:
      name: what the files are, for the log.
    """
    counts, examples, digests = Counts(), [], []
    for conversation in read_conversations(paths, counts):
        digest = hashlib.sha256(json.dumps(conversation.turns).encode()).hexdigest()
        for example in encode(
            [conversation],
            tokenizer,
            context_length=row_length(config),
            counts=counts,
            mask=config.data.mask,
            variables=config.data.variables,
        ):
            examples.append(example)
            digests.append(Document(conversation.where, digest))
    log(f"{name}: {counts}")
    return examples, digests


def _pack(
    examples: list[Example],
    config: SFTConfig,
    log: Callable[[str], None],
    *,
    name: str = "training rows",
) -> PackedRows:
    length = row_length(config)
    rows = PackedRows(examples, context_length=length, packed=config.data.packed)
    log(
        f"{name}: {len(rows):,} of {length} tokens, {100 * rows.efficiency:.1f} % full, "
        f"{_trained_tokens(examples):,.0f} loss tokens"
    )
    return rows


def train_sft(
    config: SFTConfig,
    data: Conversations,
    tokenizer: Tokenizer,
    *,
    benchmarks: Benchmarks | None = None,
    log: Callable[[str], None] = print,
) -> TrainState:
    """Trains until num_steps; train.run.run documents errors and resuming.

    Args:
      benchmarks: runs benchmarks (evaluate/in_training.py); None: none.
    """
    paths = config.data.eval_conversations
    parts = {
        name: _read((path,), config, tokenizer, log, name=f"held-out {path}")[0]
        for name, path in zip(unique_names(paths), paths, strict=True)
    }
    if data.held_out:
        parts["held_out"] = data.held_out
    held_out = tuple(
        _held_out(name, examples, config, tokenizer, log) for name, examples in parts.items()
    )
    config = for_epochs(config, len(data.rows), log)
    steps, size = config.train.num_steps, config.train.batch_size
    log(f"{steps:,} steps of {size} rows: {size * steps / len(data.rows):.2f} epochs")
    return train_on_examples(
        data.rows,
        config,
        training_stage="sft",
        log=log,
        tokenizer=tokenizer,
        **start_of(config),
        objective=make_objective(config.model, z_loss=config.train.z_loss),
        evaluate=with_benchmarks(
            language_evaluation(make_objective(config.model, training=False), held_out, log),
            benchmarks,
            config.train.num_steps,
        ),
    )


def _held_out(
    name: str,
    examples: list[Example],
    config: SFTConfig,
    tokenizer: Tokenizer,
    log: Callable[[str], None],
) -> HeldOut:
    rows = _pack(examples, config, log, name=f"{name} rows")
    return HeldOut(
        name=name,
        bytes_per_token=trained_bytes(examples, tokenizer) / _trained_tokens(examples),
        batches=functools.partial(held_out_batches, rows, config, config.train.eval_batches),
    )


def _trained_tokens(examples: Sequence[Example]) -> float:
    return sum(float(example.weights[1:].sum()) for example in examples)
