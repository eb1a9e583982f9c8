"""Perplexity beyond the training length, without further training. Report: 2.5, Table 3.

Measures perplexity at 0.5 to 8 times the training length (--multiples): without extensions, then
adding dynamic NTK, LogN and windowed attention, with shorter windows in the lower layers. The same
tokens are scored at every length; only the length of their context differs. Prints the table and
writes it to --output.

Any model:
    python -m experiments.long_context --model=FOLDER --data=SHARDS
A toy model that shows the effect, trained at length 256 on a CPU in ten minutes; it needs long
documents:
    python -m experiments.prepare_data --recipe=unfiltered --sources=mine=FOLDER \\
        --output=data/mine --vocabulary.size=2048 --eval_fraction=0.1
    python -m experiments.pretrain --recipe=toy_256 --data.sources=data/mine/shards/mine/train
    python -m experiments.long_context --model=runs/toy_256 --data=data/mine/shards/mine/eval
"""

import dataclasses
import pathlib

import numpy as np
from tqdm import tqdm

from qwen_jax.cli import flags
from qwen_jax.config import ContextExtension, ModelConfig, option
from qwen_jax.data import shards
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.evaluate.perplexity import perplexity
from qwen_jax.pretrained.huggingface import load_pretrained
from qwen_jax.ranges import ABOVE_ZERO, ONE_OR_MORE, Checked
from qwen_jax.report.plots import draw_lengths
from qwen_jax.utils.best_effort import keep_going
from qwen_jax.utils.files import write_bytes, write_json


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """The model, the text and the settings of the table."""

    model: str = option("", "model to load: a run folder, or a released dense Qwen to Qwen3")
    data: str = option("", "folder of held-out token shards with long documents")
    multiples: tuple[float, ...] = option(
        (0.5, 1, 2, 4, 8),
        "sequence lengths to measure, as multiples of the training length (report Table 3)",
        ABOVE_ZERO,
    )
    windows: tuple[int, ...] | None = option(
        None,
        "window of each layer in tokens, lowest layer first; None: 1, 2 and 4 times the "
        "training length",
        ONE_OR_MORE,
    )
    tokens: int = option(1 << 18, "maximum tokens scored at each length", ONE_OR_MORE)
    compute_dtype: str | None = option(
        None, "dtype of matmuls and activations; None: the one used in training"
    )
    output: str = option("runs/long_context", "folder for long_context.json and long_context.png")


RECIPE = Config()
SMOKE = dataclasses.replace(
    RECIPE, multiples=(1, 2, 4), tokens=1 << 8, output="runs/long_context_smoke"
)


@keep_going()
def main(config: Config) -> None:
    """Measures every cell of the table, then prints and writes the table."""
    if not config.model or not config.data:
        raise ConfigError("no model or no text is set.", "--model, --data", "set both; see --help.")
    model, params = load_pretrained(config.model)
    model = dataclasses.replace(model, compute_dtype=config.compute_dtype or model.compute_dtype)
    lengths = [round(multiple * model.context_length) for multiple in config.multiples]
    windows = config.windows or ramp(model)
    tokens = read(config.data, lengths, config.tokens)
    print(
        f"{config.model}: trained at {model.context_length}; {len(tokens) - 1:,} tokens of "
        f"{config.data} at every length; windows {windows}",
        flush=True,
    )
    table = measure(extensions(model, windows), params, tokens, lengths)
    print(format_table(table, lengths))
    record = {
        "model": config.model,
        "data": config.data,
        "context_length": model.context_length,
        "tokens": len(tokens) - 1,
        "windows": windows,
        "lengths": lengths,
        "perplexity": table,
    }
    write(pathlib.Path(config.output), record)


def extensions(model: ModelConfig, windows: tuple[int, ...]) -> dict[str, ModelConfig]:
    """Returns {row of the table: model config}; each row adds one technique."""
    return {
        name: dataclasses.replace(model, extension=extension)
        for name, extension in {
            "plain": ContextExtension(dynamic_ntk=False, logn=False),
            "+ dynamic ntk": ContextExtension(logn=False),
            "+ dynamic ntk + logn": ContextExtension(),
            "+ dynamic ntk + logn + window": ContextExtension(windows=windows),
        }.items()
    }


def write(folder: pathlib.Path, record: dict) -> None:
    """Writes the perplexities as JSON and as a plot."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "long_context.json", record)
    plot = draw_lengths(record["perplexity"], record["lengths"], record["context_length"])
    write_bytes(folder / "long_context.png", plot)
    print(f"{folder}/long_context.json, {folder}/long_context.png")


def ramp(model: ModelConfig) -> tuple[int, ...]:
    """Returns windows of 1, 2 and 4 times the training length, from lowest to highest layer.

    The lowest eighth of the layers has the training length, the next eighth 2 times, the rest 4
    times. An example of Qwen's maintainers does the same: 2048 in layers 0-3 of 32, 4096 in layers
    4-7, 8192 above.
    """
    step = max(1, model.num_layers // 8)
    return tuple(
        model.context_length * 2 ** min(index // step, 2) for index in range(model.num_layers)
    )


def read(folder: str, lengths: list[int], max_tokens: int) -> np.ndarray:
    """Returns n full sequences of the longest length plus one target: [n * max(lengths) + 1].

    Raises:
      DataError: the text is shorter than one sequence, or a length does not divide the longest.
    """
    opened = shards.open_shards(folder)
    tokens = np.concatenate([np.memmap(file, opened.dtype, "r") for file in opened.files])
    usable = min(len(tokens) - 1, max_tokens) // max(lengths) * max(lengths)
    if not usable or any(usable % length for length in lengths):
        raise DataError(
            f"{len(tokens):,} tokens cannot be split into full sequences of lengths {lengths}.",
            folder,
            "use more text, or --multiples that divide the largest one.",
        )
    return tokens[: usable + 1]


def measure(
    models: dict[str, ModelConfig], params, tokens: np.ndarray, lengths: list[int]
) -> dict[str, list[float]]:
    """Returns {row of the table: perplexity at each length}."""
    table: dict[str, list[float]] = {name: [] for name in models}
    with tqdm(
        total=len(models) * len(lengths) * (len(tokens) - 1), unit=" tokens", unit_scale=True
    ) as bar:
        for name, config in models.items():
            for length in lengths:
                bar.set_description(f"{name} at {length}")
                table[name].append(
                    perplexity(
                        params, tokens, config=config, length=length, progress=bar.update
                    ).value
                )
    return table


def format_table(table: dict[str, list[float]], lengths: list[int]) -> str:
    lines = [f"{'perplexity at':32}" + "".join(f"{length:>10,}" for length in lengths)]
    return "\n".join(
        lines
        + [
            f"{name:32}" + "".join(f"{value:10.2f}" for value in values)
            for name, values in table.items()
        ]
    )


if __name__ == "__main__":
    flags.run(main, __doc__, {"table3": RECIPE, "smoke": SMOKE})
