"""Settings as frozen dataclasses that validate themselves on construction.

None means "off" or "derive it". qwen_jax/cli/flags.py creates a flag of the same name for every
field; `option` stores the flag's help text and its range (qwen_jax/ranges.py).
"""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, Literal

from qwen_jax.attention_config import AttentionVariant, ContextExtension
from qwen_jax.errors import ConfigError
from qwen_jax.ranges import (
    ABOVE_ZERO,
    FRACTION,
    ONE_OR_MORE,
    SEED,
    ZERO_OR_MORE,
    Checked,
    Range,
    option,
    shown,
)

DTYPES = ("float32", "bfloat16", "float16")


def renamed(config, prefix: str = "") -> dict[str, str]:
    """Returns {former flag: current flag} for every field of a config that has an alias."""
    found = {}
    for field in dataclasses.fields(config):
        value, alias = getattr(config, field.name), field.metadata.get("alias")
        if alias:
            former = alias[2:] if alias.startswith("--") else prefix + alias
            found[former] = prefix + field.name
        if dataclasses.is_dataclass(value):
            found |= renamed(value, f"{prefix}{field.name}.")
    return found


def renamed_values(config, prefix: str = "") -> dict[str, Mapping[str, str]]:
    """Returns {flag: {former value: current value}} for every field with renamed choices."""
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if former := field.metadata.get("former_values"):
            found[prefix + field.name] = former
        if dataclasses.is_dataclass(value):
            found |= renamed_values(value, f"{prefix}{field.name}.")
    return found


def with_current_names(settings: Mapping[str, Any], config, where: str) -> dict[str, Any]:
    """Converts settings of an older version to current names and values, with a warning for each.

    If both a former and its current name are present, the current one counts.

    Args:
      settings: {"train.num_steps": 100, ...}.
      config: the dataclass whose fields declare their former names.
      where: the file that contains the settings, named in the warnings.
    """
    names, values = renamed(config), renamed_values(config)
    current = {}
    for former, value in sorted(settings.items(), key=lambda item: item[0] not in names):
        name = names.get(former, former)
        if name != former:
            warn_renamed(former, name, where)
        if isinstance(value, str) and value in values.get(name, ()):
            warn_renamed(f"{name}={value}", f"{name}={values[name][value]}", where)
            value = values[name][value]
        current[name] = value
    return current


def warn_renamed(former: str, flag: str, where: str) -> None:
    """Prints a warning on stderr about a former name that is still in use."""
    print(f"warning: {where} uses the former name {former}; it is now {flag}.", file=sys.stderr)


def _check(ok: bool, what: str, where: str, fix: str) -> None:
    if not ok:
        raise ConfigError(what, where, fix)


def _check_choice(config, section: str, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(config, name)
    _check(
        value in choices,
        f"{name}={shown(value)} is unknown.",
        f"{section}.{name}",
        f"use one of {', '.join(choices)}.",
    )


@dataclasses.dataclass(frozen=True)
class ModelConfig(Checked, where="model.{}"):
    """The architecture of a Qwen model (report 2.3). Hashable, for use inside jitted functions.

    ffn_size is the width of each of the two up-projections. `intermediate_size` in released configs
    is twice this value. The limits are far above any model: a damaged file allocates no memory.
    """

    vocab_size: int = option(
        dataclasses.MISSING,
        "number of rows of the embedding matrix, including padding rows",
        Range(1, 10**8),
    )
    hidden_size: int = option(dataclasses.MISSING, "width of the residual stream", Range(1, 10**6))
    num_layers: int = option(dataclasses.MISSING, "number of transformer layers", Range(1, 10**4))
    num_heads: int = option(dataclasses.MISSING, "number of query heads per layer", Range(1, 10**5))
    ffn_size: int = option(
        dataclasses.MISSING, "width of each of the two FFN up-projections", Range(1, 10**7)
    )
    context_length: int = option(
        2048,
        "tokens of the model's context; the context extension applies beyond it. Sequences in "
        "training may be shorter (--data.context_length)",
        Range(1, 10**8),
    )
    num_kv_heads: int | None = option(
        None,
        "number of key-value heads; None: num_heads (Qwen uses multi-head attention)",
        Range(1, 10**5),
    )
    head_size: int | None = option(
        None, "size of an attention head; None: hidden_size / num_heads", Range(1, 10**5)
    )
    rope_base: float = option(
        10000.0, "base of the rotary embedding (value of the released config)", Range(above=1)
    )
    norm_epsilon: float = option(
        1e-6, "epsilon inside the square root of RMSNorm (value of the released config)", ABOVE_ZERO
    )
    initializer_range: float = option(
        0.02, "standard deviation of initial weights (value of the released config)", ABOVE_ZERO
    )
    tie_embeddings: bool = option(
        False, "share the input embedding and the output projection (report 2.3: not shared)"
    )
    variant: AttentionVariant = AttentionVariant()
    extension: ContextExtension = ContextExtension()
    dropout: float = option(
        0.0, "dropout rate after the embedding and on each residual branch", Range(0, below=1)
    )
    compute_dtype: str = option("bfloat16", "dtype of matmuls and activations: bfloat16 or float32")
    param_dtype: str = option("float32", "dtype of the trained weights")
    remat: Literal["none", "dots", "block"] = option(
        "none",
        "what the backward pass recomputes. none: nothing; dots: all but matmuls; block: full "
        "layers. Attention outputs are always kept",
    )
    unroll_layers: int = option(
        1, "layers unrolled per scan iteration; more compile longer and copy less", ONE_OR_MORE
    )
    attention: str | None = option(
        None, "name of the attention backend; None: chosen for the device"
    )

    def __post_init__(self):
        super().__post_init__()
        _check(
            self.head_size is not None or self.hidden_size % self.num_heads == 0,
            f"num_heads={self.num_heads} does not divide hidden_size={self.hidden_size}.",
            "model.num_heads",
            "choose a divisor, or set model.head_size.",
        )
        _check(
            self.num_heads % self.kv_heads == 0,
            f"num_kv_heads={self.kv_heads} does not divide num_heads={self.num_heads}.",
            "model.num_kv_heads",
            "choose a divisor of num_heads.",
        )
        _check(
            self.head_dim % 2 == 0,
            f"the head size {self.head_dim} is odd.",
            "model.head_size",
            "use an even size: the rotary embedding rotates pairs of dimensions.",
        )
        windows = self.extension.windows
        _check(
            windows is None or len(windows) == self.num_layers,
            f"windows has length {len(windows or ())}, but the model has {self.num_layers} layers.",
            "model.extension.windows",
            "pass one window per layer, lowest layer first.",
        )
        sliding = self.variant.sliding_layers
        _check(
            not sliding or max(sliding) < self.num_layers,
            f"sliding_layers={shown(sliding)} has a layer that a model of {self.num_layers} layers "
            "does not have.",
            "model.variant.sliding_layers",
            f"use layers from 0 to {self.num_layers - 1}.",
        )
        _check(
            self.variant.rope_scaling.kind == "none" or not self.extension.dynamic_ntk,
            f"rope_scaling.kind={self.variant.rope_scaling.kind} and dynamic_ntk both change the "
            "rotary embedding.",
            "model.variant.rope_scaling.kind, model.extension.dynamic_ntk",
            "use one of them: set model.extension.dynamic_ntk to false.",
        )
        _check_choice(self, "model", "compute_dtype", DTYPES)
        _check_choice(self, "model", "param_dtype", DTYPES)

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def head_dim(self) -> int:
        return self.head_size or self.hidden_size // self.num_heads

    def layer_windows(self, *, inference: bool) -> tuple[int | None, ...] | None:
        """Returns each layer's attention window in tokens, None for a layer without one.

        Sliding windows always apply, those of the context extension only at inference.

        Returns:
          None if no layer has a window.
        """
        limits = [self.variant.window(layer) for layer in range(self.num_layers)]
        if inference and self.extension.windows is not None:
            extended = zip(limits, self.extension.windows, strict=True)
            limits = [own if limit is None else min(limit, own) for limit, own in extended]
        return tuple(limits) if any(limit is not None for limit in limits) else None


@dataclasses.dataclass(frozen=True)
class MeshConfig(Checked, where="mesh.{}"):
    """The size of each mesh axis. Their product is the number of devices."""

    data: int = option(
        1,
        "data parallelism: replicas of the parameters, each with a share of the batch",
        ONE_OR_MORE,
    )
    fsdp: int | None = option(
        None, "FSDP: shards of parameters and batch; None: all remaining devices", ONE_OR_MORE
    )
    tensor: int = option(1, "tensor parallelism: shards of heads, FFN and vocabulary", ONE_OR_MORE)
    context: int = option(
        1, "context parallelism: shards of the sequence (ring attention)", ONE_OR_MORE
    )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Checked, where="optimizer.{}"):
    """AdamW and its learning rate schedule (report 2.4, 3.1)."""

    peak_learning_rate: float = option(3e-4, "learning rate at the end of the warm-up", ABOVE_ZERO)
    schedule: Literal["cosine", "constant"] = option(
        "cosine", "learning rate schedule after the warm-up"
    )
    warmup_steps: int = option(0, "steps of linear warm-up to the peak learning rate", ZERO_OR_MORE)
    final_fraction: float = option(
        0.1, "learning rate at the end of the cosine, as a fraction of the peak", FRACTION
    )
    beta1: float = option(0.9, "AdamW beta1: decay rate of the first moment", Range(0, below=1))
    beta2: float = option(0.95, "AdamW beta2: decay rate of the second moment", Range(0, below=1))
    epsilon: float = option(1e-8, "AdamW epsilon, added outside the square root", ABOVE_ZERO)
    weight_decay: float = option(
        0.1, "AdamW weight decay of matrices; norms and biases have none", ZERO_OR_MORE
    )
    clip_norm: float | None = option(
        1.0,
        "maximum global gradient norm; larger gradients are scaled down; None: no clipping",
        ABOVE_ZERO,
    )
    moment_dtype: str = option(
        "float32", "dtype of the first moment of AdamW; bfloat16 halves its memory"
    )

    def __post_init__(self):
        super().__post_init__()
        _check_choice(self, "optimizer", "moment_dtype", DTYPES)


@dataclasses.dataclass(frozen=True)
class DataConfig(Checked, where="data.{}"):
    """The token shards of a run, their sampling weights and their packing (report 2.4)."""

    sources: tuple[str, ...] = option(
        (),
        "folders of token shards; write folder=weight to set a sampling weight. A number after the "
        "last = is a weight, unless the folder ends with /",
        kind="stored",
    )
    tokenizer: str | None = option(
        None, "folder or file; None: the one next to the first source's shards"
    )
    packing: Literal["concat", "documents"] = option(
        "concat",
        "attention in packed sequences. concat: across documents; documents: within each document",
        former_values={"run_on": "concat"},
    )
    eval_sources: tuple[str, ...] = option(
        (), "held-out folders of token shards, each evaluated separately", kind="stored"
    )
    context_length: int | None = option(
        None,
        "tokens of a sequence; None: the model's context length, which it must not exceed",
        Range(1, 10**8),
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig(Checked, where="train.{}"):
    """The length of a run, its batch size, and how often it logs, evaluates and saves."""

    num_steps: int = option(
        dataclasses.MISSING, "total number of optimizer steps of the run", ONE_OR_MORE
    )
    batch_size: int = option(
        dataclasses.MISSING, "sequences per optimizer step, over all devices", ONE_OR_MORE
    )
    micro_batches: int = option(
        1, "gradient accumulation: number of micro-batches per optimizer step", ONE_OR_MORE
    )
    seed: int = option(0, "random seed of initial weights, dropout and data order", SEED)
    z_loss: float | None = option(
        None,
        "weight of log(Z)^2 in the loss, Z the softmax denominator; None: off",
        ZERO_OR_MORE,
    )
    log_every: int = option(1, "steps between log lines", ONE_OR_MORE)
    eval_every: int | None = option(
        500, "steps between evaluations; None: only after the last step", ONE_OR_MORE
    )
    eval_batches: int = option(16, "batches per evaluation, for each held-out source", ONE_OR_MORE)
    save_every: int | None = option(
        500, "steps between checkpoints; None: only after the last step", ONE_OR_MORE
    )
    keep_checkpoints: int = option(3, "number of most recent checkpoints to keep", ONE_OR_MORE)
    device_memory_gib: float | None = option(
        None,
        "memory per device in GiB, for the check before the first step; None: what the device "
        "reports",
        ABOVE_ZERO,
        alias="device_memory_gb",
    )
    on_spike: Literal["warn", "skip"] = option(
        "warn",
        "action on a loss spike. warn: log it; skip: roll back to the last checkpoint and skip the "
        "batches up to the spike",
        former_values={"tell": "warn"},
    )
    sdc_check_every: int | None = option(
        None,
        "steps between checks for silent data corruption (compute one step twice, compare bits); "
        "None: never",
        ONE_OR_MORE,
        alias="recheck_every",
    )
    hang_seconds: float | None = option(
        300.0,
        "least time without a step after which a run that hangs exits, to be restarted (the limit "
        "is 20 times the median step, if that is longer); None: never",
        ABOVE_ZERO,
    )
    trace_steps: tuple[int, ...] = option(
        (),
        "first and last step to profile, such as 100,105 (output in run_dir/profile); empty: off",
        ONE_OR_MORE,
    )
    wandb_project: str | None = option(
        None, "project in Weights & Biases that the metrics also go to; None: off"
    )

    def __post_init__(self):
        super().__post_init__()
        _check(
            not self.trace_steps
            or (len(self.trace_steps) == 2 and self.trace_steps[0] <= self.trace_steps[1]),
            f"trace_steps={self.trace_steps} is not a pair of a first and a last step.",
            "train.trace_steps",
            "pass two ascending steps, counted from 1, such as --train.trace_steps=100,105.",
        )
        _check(
            self.batch_size % self.micro_batches == 0,
            f"micro_batches={self.micro_batches} does not divide batch_size={self.batch_size}.",
            "train.micro_batches",
            "choose a divisor of train.batch_size.",
        )
