"""Converts weights between the Qwen, Qwen2 (also 1.5 and 2.5) and Qwen3 layouts and run folders.

A run, for transformers:   python -m experiments.convert --input=runs/mine --output=exported
Qwen, for transformers:    python -m experiments.convert --input=Qwen-1_8B --output=qwen2 --verify
Qwen, as a run folder:     python -m experiments.convert --input=Qwen-7B --output=runs/qwen7b \\
                               --layout=run
Adapters, for PEFT:        python -m experiments.convert --input=runs/lora --output=adapter \\
                               --layout=peft
A LoRA run (--lora.rank), or a PEFT adapter, is converted as its merged model unless --layout=peft.
A reward model becomes Qwen2ForSequenceClassification or Qwen3ForSequenceClassification.
Training starts from any of these folders: python -m experiments.pretrain --init_from=FOLDER ...

An export has the layout and the dtype that the model was released in. The tokenizer's files and
generation_config.json are kept byte for byte, and so is config.json except for what training has
changed. README.md is a model card; one without our mark is yours, and stays.

Conversion streams the weights from file to file; only writing a run loads the model. --verify
compares logits, ids, the chat template and greedy text with transformers in float32, and needs both
models in memory.
"""

import dataclasses
import functools
import json
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import numpy as np
from tqdm import tqdm

from qwen_jax.checkpoint.step_lock import read_latest
from qwen_jax.cli import flags
from qwen_jax.config import DTYPES, ModelConfig, option
from qwen_jax.errors import CheckpointError, ConfigError, DiskFullError
from qwen_jax.model.spec import count
from qwen_jax.pretrained.adapters.merged import NAME as BASE
from qwen_jax.pretrained.adapters.merged import read_base
from qwen_jax.pretrained.adapters.peft import export_adapters
from qwen_jax.pretrained.export import verify
from qwen_jax.pretrained.export.end_of_turn import with_end_of_turn
from qwen_jax.pretrained.export.model_card import model_card
from qwen_jax.pretrained.from_run import check_unused, save_run
from qwen_jax.pretrained.huggingface import convert_pretrained, load_pretrained, open_pretrained
from qwen_jax.pretrained.layouts import QWEN3, LayoutName, native, unsupported
from qwen_jax.pretrained.load import tokenizer_of
from qwen_jax.pretrained.released import ReleasedFolder
from qwen_jax.pretrained.scoring import is_scoring_folder, open_scoring
from qwen_jax.pretrained.tensors import shard_bytes
from qwen_jax.ranges import Checked
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.load import has_tokenizer
from qwen_jax.train.attempts.carried import CONFIG, read_released
from qwen_jax.utils.best_effort import keep_going
from qwen_jax.utils.format import format_gb
from qwen_jax.utils.hub import is_adapter, local_folder, name_of


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """Settings of a conversion."""

    input: str = option(
        "", "model to read: a run folder, a folder in a released layout, or a name on the Hub"
    )
    output: str = option("", "folder to write: new, empty, or an earlier export, which is replaced")
    layout: Literal["qwen", "qwen2", "qwen3", "run", "peft"] | None = option(
        None,
        "layout to write; only qwen keeps dynamic NTK and LogN; peft: only the adapters of a LoRA "
        "run; None: the one that transformers reads this model in, qwen2 or qwen3",
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = option(
        None,
        "dtype to write; None: that of the released model that a run started from, or else that of "
        "the input",
    )
    tokenizer: str | None = option(
        None, "folder or file of the tokenizer; None: the one in the input folder, if any"
    )
    max_shard_size: str = option(
        "5GB",
        "maximum size of a weight file, such as 5GB or 500MiB; a number is in GB",
        alias="max_shard_gb",
    )
    base: str | None = option(
        None,
        "base model that a PEFT adapter names, a folder or a name on the Hub; None: the folder "
        "that the adapters were trained on",
    )
    license: str | None = option(
        None, "license on the model card, such as apache-2.0; None: that of the parent's card"
    )
    results: str | None = option(
        None, "results.json of experiments.evaluate, for the model card; None: no scores"
    )
    allow_nonfinite: bool = option(False, "accept weights with NaN or infinity")
    verify: bool = option(
        False, "compare logits, ids, chat template and greedy text with transformers"
    )


@dataclasses.dataclass(frozen=True)
class Source:
    """The model in the input folder, without its weights."""

    layout: str  # qwen, qwen2, qwen3, run or peft
    model: ModelConfig
    dtype: str
    tokenizer: Tokenizer | None
    scoring: bool  # a reward model
    step: int | None  # of a run's checkpoint
    released: Mapping[str, bytes]  # settings of the released model that it came from
    change: str  # what an export changes of them, in words; "": nothing


@keep_going()
def main(config: Config) -> None:
    """Prints sizes, checks disk space, then converts and (with --verify) verifies the weights."""
    if not config.input or not config.output:
        raise ConfigError(
            "no input or no output folder is set.",
            "--input, --output",
            "set both; see --help.",
        )
    shard_bytes(config.max_shard_size, "--max_shard_size")
    if config.verify:
        verify.require()
    config = dataclasses.replace(config, input=local_folder(config.input, where="--input"))
    refuse_flags_without_effect(config)
    if config.layout == "peft":
        convert_adapters(config)
        return
    source = inspect(config)
    refuse_for_reward_models(config, source)
    if config.layout is None:
        config = dataclasses.replace(config, layout=layout_for_transformers(source.model))
    dtype = config.dtype or dtype_of(source)
    check_space(config, source, dtype)
    convert(config, source, dtype)
    print(f"{config.output}: {config.layout} layout, {dtype}", flush=True)
    if config.verify:
        verify_conversion(config, source, dtype)


def refuse_flags_without_effect(config: Config) -> None:
    """Raises ConfigError for flags that the layout makes meaningless."""
    of: dict[str, tuple[str, ...]] = {"run": ("max_shard_size", "base", "license", "results")}
    of["peft"] = ("dtype", "max_shard_size", "tokenizer", "license", "results", "verify")
    of["peft"] += ("allow_nonfinite",)
    names = of.get(config.layout or "", ("base",))
    set_ = [f"--{name}" for name in names if getattr(config, name) != getattr(Config(), name)]
    if set_:
        raise ConfigError(
            f"with --layout={config.layout}, {', '.join(set_)} would have no effect.",
            ", ".join(set_),
            f"remove {'it' if len(set_) == 1 else 'them'}, or use another --layout.",
        )


def refuse_for_reward_models(config: Config, source: Source) -> None:
    """Raises ConfigError for what is not implemented for a model with a score head."""
    if not source.scoring:
        return
    if config.layout in ("run", "qwen"):
        raise ConfigError(
            "a reward model is written as Qwen2ForSequenceClassification or "
            "Qwen3ForSequenceClassification.",
            f"--layout={config.layout}",
            "remove the flag; --init_from and --reward_model read the exported folder.",
        )
    if config.verify:
        raise ConfigError(
            "--verify compares logits, which a reward model has none of.",
            "--verify",
            "remove the flag.",
        )


def inspect(config: Config) -> Source:
    """Opens the input without loading its weights.

    Raises:
      ConfigError, CheckpointError, TokenizerError: the folder cannot be converted.
    """
    scoring = is_scoring_folder(config.input)
    opened: Any = (open_scoring if scoring else open_pretrained)(config.input)
    has_one = has_tokenizer(config.input) or is_adapter(config.input)
    tokenizer = None  # optional
    if config.tokenizer or has_one:
        tokenizer = tokenizer_of(config.input, config.tokenizer)
    layout = "peft" if is_adapter(config.input) else "run"
    if isinstance(opened, ReleasedFolder):
        layout = opened.layout.model_type
    released, change = with_end_of_turn(config.input, read_released(config.input), tokenizer)
    return Source(
        layout,
        opened.config,
        opened.config.param_dtype,
        tokenizer,
        scoring,
        opened.step,
        released,
        change,
    )


def dtype_of(source: Source) -> str:
    """Returns the dtype of the released model that a run started from, or that of the weights."""
    raw = json.loads(source.released.get(CONFIG, b"{}"))
    released = raw.get("dtype") or raw.get("torch_dtype")
    return released if source.layout == "run" and released in DTYPES else source.dtype


def convert_adapters(config: Config) -> None:
    """Writes the adapters of a LoRA run as a PEFT adapter.

    Raises:
      ConfigError: the input has no adapters, or transformers cannot load their base.
    """
    base = config.base
    if base is None and (pathlib.Path(config.input) / BASE).is_file():
        base = name_of(folder := read_base(pathlib.Path(config.input)).folder)
        opened = open_pretrained(folder)
        layout = opened.layout.model_type if isinstance(opened, ReleasedFolder) else "run"
        if layout not in ("qwen2", "qwen3"):
            raise ConfigError(
                f"PEFT cannot load the base of the adapters, which is a {layout} folder: {base}.",
                "--base",
                f"export it with --input={base} --output=FOLDER, and set --base=FOLDER.",
            )
    export_adapters(config.input, config.output, base=base or "")
    print(f"{config.output}: PEFT adapter of {base}", flush=True)


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
    if source.change:
        print(f"note: {source.change}")
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
        if (layout := config.layout) in ("qwen", "qwen2", "qwen3"):
            opener: Callable[..., Any] = open_scoring
            if not source.scoring:
                opener = functools.partial(open_pretrained, progress=bar.update)
            read_latest(
                lambda: convert_pretrained(
                    opener(config.input, param_dtype=dtype),
                    config.output,
                    layout=layout,
                    tokenizer=source.tokenizer,
                    max_shard_size=config.max_shard_size,
                    released=source.released,
                    card=card_of(config, source),
                    with_score=source.scoring,
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
    save_run(config.output, model, params, tokenizer=source.tokenizer, released=source.released)


def card_of(config: Config, source: Source) -> str:
    """Returns the model card of the output."""
    return model_card(
        config.input,
        name=pathlib.Path(config.output).resolve().name,
        license=config.license,
        results=config.results,
        step=source.step,
        change=source.change,
    )


def verify_conversion(config: Config, source: Source, dtype: str) -> None:
    """Compares one side of the conversion with transformers' model of the other side.

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
            conversations = verify.compare_templates(theirs)
            print(f"same ids; chat template: {conversations} renderings are equal", flush=True)
        text = verify.compare_greedy(model, params, theirs, source.tokenizer)
        print(f"same greedy text: {text!r}", flush=True)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # weights are only copied
    flags.run(main, __doc__, {"default": Config()})
