"""Converts weights between the Qwen, Qwen2 (also 1.5 and 2.5) and Qwen3 layouts and run folders.

A run, for transformers:   python -m experiments.convert --input=runs/mine --output=exported \\
                               --tokenizer=data/mine/tokenizer.tiktoken
Qwen, for transformers:    python -m experiments.convert --input=Qwen-1_8B --output=qwen2 --verify
Qwen, as a run folder:     python -m experiments.convert --input=Qwen-7B --output=runs/qwen7b \\
                               --layout=run
A LoRA run (--lora.rank) is converted as its merged model.
Training starts from any of these folders: python -m experiments.pretrain --init_from=FOLDER ...

Conversion streams the weights from file to file; only writing a run loads the model. --verify
compares logits with transformers in float32 and needs both models in memory.
"""

import dataclasses
import pathlib
import shutil
import sys
import tempfile
from typing import Literal

import jax
import numpy as np
from tqdm import tqdm

from qwen_jax.checkpoint.step_lock import read_latest
from qwen_jax.cli import flags
from qwen_jax.config import ModelConfig, option
from qwen_jax.errors import CheckpointError, ConfigError, DiskFullError
from qwen_jax.model.spec import count
from qwen_jax.pretrained.export import verify
from qwen_jax.pretrained.from_run import check_unused, save_run
from qwen_jax.pretrained.huggingface import convert_pretrained, load_pretrained, open_pretrained
from qwen_jax.pretrained.layouts import QWEN3, LayoutName, native, unsupported
from qwen_jax.pretrained.released import ReleasedFolder
from qwen_jax.ranges import ABOVE_ZERO, Checked
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.load import has_tokenizer
from qwen_jax.tokenizer.model_folder import find_tokenizer
from qwen_jax.utils.best_effort import keep_going
from qwen_jax.utils.format import format_gb


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """Settings of a conversion."""

    input: str = option("", "model to read: a run folder, or a folder in a released layout")
    output: str = option("", "folder to write: new, empty, or an earlier export, which is replaced")
    layout: Literal["qwen", "qwen2", "qwen3", "run"] | None = option(
        None,
        "layout to write; only qwen keeps dynamic NTK and LogN; None: the one that transformers "
        "reads this model in, qwen2 or qwen3",
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = option(
        None, "dtype to write; None: as in the input"
    )
    tokenizer: str | None = option(
        None, ".tiktoken file; None: the one in the input folder, if any"
    )
    max_shard_gb: float = option(5.0, "maximum size of a weight file in GB", ABOVE_ZERO)
    allow_nonfinite: bool = option(False, "accept weights with NaN or infinity")
    verify: bool = option(False, "compare the logits of the output with transformers")


@dataclasses.dataclass(frozen=True)
class Source:
    """The model in the input folder, without its weights."""

    layout: str  # qwen, qwen2, qwen3 or run
    model: ModelConfig
    dtype: str
    tokenizer: Tokenizer | None


@keep_going()
def main(config: Config) -> None:
    """Prints sizes, checks disk space, then converts and (with --verify) verifies the weights."""
    if not config.input or not config.output:
        raise ConfigError(
            "no input or no output folder is set.",
            "--input, --output",
            "set both; see --help.",
        )
    if config.verify:
        verify.require()
    source = inspect(config)
    if config.layout is None:
        config = dataclasses.replace(config, layout=layout_for_transformers(source.model))
    dtype = config.dtype or source.dtype
    check_space(config, source, dtype)
    convert(config, source, dtype)
    print(f"{config.output}: {config.layout} layout, {dtype}", flush=True)
    if config.verify:
        verify_conversion(config, source, dtype)


def inspect(config: Config) -> Source:
    """Opens the input without loading its weights.

    Raises:
      ConfigError, CheckpointError, TokenizerError: the folder cannot be converted.
    """
    opened = open_pretrained(config.input)
    run = not isinstance(opened, ReleasedFolder)
    has_one = has_tokenizer(config.input)
    tokenizer = None  # optional
    if config.tokenizer or has_one:
        tokenizer = find_tokenizer(config.input, config.tokenizer)
    return Source(
        "run" if run else opened.layout.model_type,
        opened.config,
        opened.config.param_dtype,
        tokenizer,
    )


def layout_for_transformers(model: ModelConfig) -> LayoutName:
    """Returns the layout in which transformers reads a model natively.

    Raises:
      ConfigError: there is none.
    """
    if (layout := native(model)) is None:
        raise ConfigError(
            "transformers has no layout for this model; qwen3 lacks "
            f"{'; '.join(unsupported(QWEN3, model))}.",
            "--layout",
            "use --layout=run.",
        )
    return layout.model_type


def check_space(config: Config, source: Source, dtype: str) -> None:
    """Prints the input and output sizes; raises DiskFullError if disk space is insufficient."""
    if config.layout == "run":
        check_unused(config.output)
    needed = count(source.model) * np.dtype(dtype).itemsize
    parent = pathlib.Path(config.output).resolve().parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    size = count(source.model) * np.dtype(source.dtype).itemsize
    vocabulary = (
        f"vocabulary of {source.tokenizer.vocab_size:,}" if source.tokenizer else "no tokenizer"
    )
    print(
        f"from {config.input}: {source.layout}, {count(source.model):,} parameters, "
        f"{source.dtype}, {format_gb(size)}, {vocabulary}"
    )
    print(
        f"to   {config.output}: {config.layout}, {dtype}, {format_gb(needed)}; the disk has "
        f"{format_gb(free)} free",
        flush=True,
    )
    if needed > free:
        raise DiskFullError(
            f"the output needs {format_gb(needed)}, but only {format_gb(free)} is free.",
            config.output,
            "free disk space, or set --output to a folder on another disk.",
        )


def convert(config: Config, source: Source, dtype: str) -> None:
    """Converts the weights with a progress bar."""
    size = count(source.model) * np.dtype(source.dtype).itemsize
    with tqdm(desc="converting", total=size, unit="B", unit_scale=True, file=sys.stdout) as bar:
        if (layout := config.layout) is not None and layout != "run":
            read_latest(
                lambda: convert_pretrained(
                    open_pretrained(config.input, param_dtype=dtype, progress=bar.update),
                    config.output,
                    layout=layout,
                    tokenizer=source.tokenizer,
                    max_shard_bytes=round(config.max_shard_gb * 1e9),
                    allow_nonfinite=config.allow_nonfinite,
                )
            )
            return
        model, params = load_pretrained(
            config.input,
            param_dtype=dtype,
            allow_nonfinite=config.allow_nonfinite,
            progress=bar.update,
        )
    print("writing and hashing the checkpoint ...", flush=True)
    save_run(config.output, model, params, tokenizer=source.tokenizer)


def verify_conversion(config: Config, source: Source, dtype: str) -> None:
    """Compares our logits from one side of the conversion with transformers' from the other.

    transformers reads the output or the input, whichever is in a layout that it knows, or else a
    temporary copy of the output.

    Raises:
      CheckpointError: the logits differ by more than rounding errors.
      TokenizerError: the tokenizers differ.
    """
    parent = pathlib.Path(config.output).resolve().parent
    with tempfile.TemporaryDirectory(dir=parent) as temporary:
        ours, theirs = config.input, config.output
        layout = layout_for_transformers(source.model)
        if config.layout != layout and (source.layout, source.dtype) == (layout, dtype):
            ours, theirs = config.output, config.input
        elif config.layout != layout:
            theirs = f"{temporary}/{layout}"
            convert_pretrained(
                open_pretrained(config.output),
                theirs,
                layout=layout,
                tokenizer=source.tokenizer,
                allow_nonfinite=config.allow_nonfinite,
            )
        # Weights are rounded like the output, to compare the conversion and not the dtype.
        model, params = load_pretrained(
            ours, param_dtype=dtype, allow_nonfinite=config.allow_nonfinite
        )
        difference = verify.compare_logits(model, params, theirs)
        print(f"against transformers: {difference}", flush=True)
        if not difference.agrees:
            raise CheckpointError(
                f"the logits differ by {difference.worst:.2e}, more than {verify.TOLERANCE:g} of "
                f"{difference.largest:.3g}.",
                f"{ours} and {theirs}",
                "do not use the output; please report this with both config.json files.",
            )
        if source.tokenizer is not None:
            verify.compare_tokenizers(source.tokenizer, theirs)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # weights are only copied
    flags.run(main, __doc__, {"default": Config()})
