"""Settings as frozen dataclasses that check themselves when they are made.

None means "off" or "derive it". Flags are made from these fields (qwen_jax/cli/flags.py): a field's
name is its flag, and the help text of the flag stands beside it.
"""

import dataclasses
import math
import sys
from collections.abc import Mapping
from typing import Any, Literal

from qwen_jax.errors import ConfigError

DTYPES = ("float32", "bfloat16", "float16")


def option(
    default: Any,
    help: str,
    *,
    alias: str | None = None,
    former_values: Mapping[str, str] | None = None,
) -> Any:
    """A dataclass field with the help text of its flag.

    Args:
      default: an immutable value.
      help: a line of --help.
      alias: the field's former name; flags and config.json files that use it still work and warn.
        A field that came from another section gives the full flag: "--data.sources".
      former_values: former spelling of a choice -> the spelling now; the same holds for these.
    """
    metadata = {"help": help, "alias": alias, "former_values": former_values or {}}
    return dataclasses.field(default=default, metadata=metadata)


def renamed(config, prefix: str = "") -> dict[str, str]:
    """Former flag -> flag, for every field of a config that has an alias."""
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
    """Flag -> {former value: value}, for every field whose choices were renamed."""
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if former := field.metadata.get("former_values"):
            found[prefix + field.name] = former
        if dataclasses.is_dataclass(value):
            found |= renamed_values(value, f"{prefix}{field.name}.")
    return found


def with_current_names(settings: Mapping[str, Any], config, where: str) -> dict[str, Any]:
    """Settings of an older version under the names and values of today, with a warning for each.

    Args:
      settings: {"train.num_steps": 100, ...}.
      config: the dataclass whose fields know their former names.
      where: the file that uses them.
    """
    names, values = renamed(config), renamed_values(config)
    current = {}
    for former, value in settings.items():
        name = names.get(former, former)
        if name != former:
            warn_renamed(former, name, where)
        if isinstance(value, str) and value in values.get(name, ()):
            warn_renamed(f"{name}={value}", f"{name}={values[name][value]}", where)
            value = values[name][value]
        current[name] = value
    return current


def warn_renamed(former: str, flag: str, where: str) -> None:
    """One line on stderr for a former name that is still in use."""
    print(f"warning: {where} uses the former name {former}; it is now {flag}.", file=sys.stderr)


def _check(ok: bool, what: str, where: str, fix: str) -> None:
    if not ok:
        raise ConfigError(what, where, fix)


def _check_positive(config, section: str, names: str) -> None:
    for name in names.split():
        value = getattr(config, name)
        ok = value is None or (isinstance(value, int) and value > 0)
        _check(
            ok,
            f"{name}={value!r} is not a positive whole number.",
            f"{section}.{name}",
            "use 1 or more.",
        )


def _check_choice(config, section: str, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(config, name)
    _check(
        value in choices,
        f"{name}={value!r} is unknown.",
        f"{section}.{name}",
        f"use one of {', '.join(choices)}.",
    )


@dataclasses.dataclass(frozen=True)
class ContextExtension:
    """What acts at inference beyond the training length, and never in training (report 2.5)."""

    dynamic_ntk: bool = option(True, "a larger rotary base for a longer row")
    logn: bool = option(True, "queries times the logarithm of their position")
    windows: tuple[int, ...] | None = option(
        None, "tokens that each layer sees, lowest layer first"
    )

    def __post_init__(self):
        _check(
            self.windows is None or all(isinstance(w, int) and w > 0 for w in self.windows),
            f"windows={self.windows!r} holds something else than positive whole numbers.",
            "model.extension.windows",
            "give every layer 1 or more tokens, or none for no windows.",
        )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The architecture of one Qwen (report 2.3). Hashable; closed over by jitted functions.

    ffn_size is the width of each of the two up-projections; released configs call twice that
    `intermediate_size`.
    """

    vocab_size: int = dataclasses.field(
        metadata={"help": "rows of the embedding, padding rows included"}
    )
    hidden_size: int = dataclasses.field(metadata={"help": "D, of the residual stream"})
    num_layers: int = dataclasses.field(metadata={"help": "blocks of attention and FFN"})
    num_heads: int = dataclasses.field(metadata={"help": "of queries, in each layer"})
    ffn_size: int = dataclasses.field(metadata={"help": "width of each of the two up-projections"})
    context_length: int = option(2048, "training length; the extension starts beyond it")
    num_kv_heads: int | None = option(
        None, "None: as many as num_heads (Qwen has no grouped heads)"
    )
    head_size: int | None = option(None, "None: hidden_size / num_heads")
    rope_base: float = option(10000.0, "released config: of the rotary embedding")
    norm_epsilon: float = option(1e-6, "released config: of RMSNorm, in its root")
    initializer_range: float = option(
        0.02, "released config: standard deviation of the first weights"
    )
    tie_embeddings: bool = option(False, "report 2.3: input and output have weights of their own")
    extension: ContextExtension = ContextExtension()
    dropout: float = option(0.0, "after the embedding and on each residual branch")
    compute_dtype: str = option("bfloat16", "of products and activations; or float32")
    param_dtype: str = option("float32", "of the weights that are trained")
    remat: Literal["none", "dots", "block"] = option("none", "what the backward pass recomputes")
    unroll_layers: int = option(1, "layers compiled as one piece: more to compile, less to copy")
    attention: str | None = option(None, "a back end by name; None: the best for the device")

    def __post_init__(self):
        _check_positive(
            self,
            "model",
            "vocab_size hidden_size num_layers num_heads ffn_size "
            "context_length num_kv_heads head_size unroll_layers",
        )
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
            f"head size {self.head_dim} is odd.",
            "model.head_size",
            "rotary embedding turns pairs: use an even size.",
        )
        windows = self.extension.windows
        _check(
            windows is None or len(windows) == self.num_layers,
            f"{len(windows or ())} windows for {self.num_layers} layers.",
            "model.extension.windows",
            "give one per layer, lowest first.",
        )
        _check(
            0.0 <= self.dropout < 1.0,
            f"dropout={self.dropout} is outside [0, 1).",
            "model.dropout",
            "the report uses 0 in pretraining and 0.1 in SFT.",
        )
        _check(
            self.rope_base > 1 and self.norm_epsilon > 0 and self.initializer_range > 0,
            "rope_base, norm_epsilon and initializer_range must be positive.",
            "model",
            "the released values are 10000, 1e-6 and 0.02.",
        )
        _check_choice(self, "model", "compute_dtype", DTYPES)
        _check_choice(self, "model", "param_dtype", DTYPES)
        _check_choice(self, "model", "remat", ("none", "dots", "block"))

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def head_dim(self) -> int:
        return self.head_size or self.hidden_size // self.num_heads


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices along each mesh axis; their product is the number of devices."""

    data: int = option(1, "copies of the parameters, each with its share of the batch")
    fsdp: int | None = option(
        None, "parameters and batch cut in pieces; None: all devices left over"
    )
    tensor: int = option(1, "heads, FFN and vocabulary cut in pieces")
    context: int = option(1, "the sequence cut in pieces")

    def __post_init__(self):
        _check_positive(self, "mesh", "data fsdp tensor context")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule (report 2.4, 3.1)."""

    peak_learning_rate: float = option(3e-4, "after the warm-up")
    schedule: Literal["cosine", "constant"] = option("cosine", "after the warm-up")
    warmup_steps: int = option(0, "from 0 to the peak")
    final_fraction: float = option(0.1, "of the peak, at the end of the cosine")
    beta1: float = option(0.9, "AdamW's decay of the mean of gradients")
    beta2: float = option(0.95, "AdamW's decay of the mean of their squares")
    epsilon: float = option(1e-8, "AdamW's, beside the root")
    weight_decay: float = option(0.1, "on matrices; not on norms and biases")
    clip_norm: float | None = option(1.0, "the largest norm of all gradients together; None: any")
    moment_dtype: str = option("float32", "of AdamW's two means; bfloat16 halves their memory")

    def __post_init__(self):
        for name in ("peak_learning_rate", "epsilon"):
            value = getattr(self, name)
            _check(
                value > 0 and math.isfinite(value),
                f"{name}={value} is not positive.",
                f"optimizer.{name}",
                "use a positive number.",
            )
        _check(
            self.warmup_steps >= 0,
            f"warmup_steps={self.warmup_steps} is negative.",
            "optimizer.warmup_steps",
            "use 0 or more.",
        )
        for name in ("beta1", "beta2", "final_fraction"):
            value = getattr(self, name)
            _check(
                0 <= value <= 1,
                f"{name}={value} is outside [0, 1].",
                f"optimizer.{name}",
                "the report's values are 0.9, 0.95 and 0.1.",
            )
        _check(
            self.weight_decay >= 0,
            f"weight_decay={self.weight_decay} is negative.",
            "optimizer.weight_decay",
            "use 0 or more.",
        )
        _check(
            self.clip_norm is None or self.clip_norm > 0,
            f"clip_norm={self.clip_norm} is not positive.",
            "optimizer.clip_norm",
            "use a positive number, or None for no clipping.",
        )
        _check_choice(self, "optimizer", "schedule", ("cosine", "constant"))
        _check_choice(self, "optimizer", "moment_dtype", DTYPES)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which token shards a run reads, in which proportion, and how they are cut (report 2.4)."""

    sources: tuple[str, ...] = option((), "shard folders; weighted if written folder=weight")
    tokenizer: str | None = option(None, "a .tiktoken file; None: the one beside the first source")
    packing: Literal["concat", "documents"] = option(
        "concat",
        "documents: no document attends to another in its row",
        former_values={"run_on": "concat"},
    )
    eval_sources: tuple[str, ...] = option((), "held-out shard folders, one evaluation each")

    def __post_init__(self):
        _check_choice(self, "data", "packing", ("concat", "documents"))


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, how much at once, and how often to look, measure and save."""

    num_steps: int = dataclasses.field(
        metadata={"help": "updates of the weights, in the whole run"}
    )
    batch_size: int = dataclasses.field(
        metadata={"help": "sequences in one optimizer step, over all devices"}
    )
    micro_batches: int = option(1, "gradient accumulation: pieces that a batch is computed in")
    seed: int = option(0, "of the first weights, dropout and the order of the data")
    z_loss: float | None = option(None, "weight of log(Z)^2; None: off")
    log_every: int = option(1, "steps from line to line")
    eval_every: int | None = option(
        500, "steps from evaluation to evaluation; None: at the end alone"
    )
    eval_batches: int = option(16, "batches of an evaluation, of each held-out source")
    save_every: int | None = option(
        500, "steps from checkpoint to checkpoint; None: at the end alone"
    )
    keep_checkpoints: int = option(3, "the newest ones")
    device_memory_gib: float | None = option(
        None, "None: what the device reports", alias="device_memory_gb"
    )
    on_spike: Literal["warn", "skip"] = option(
        "warn",
        "skip: return to the last checkpoint and leave the batches of the spike out",
        former_values={"tell": "warn"},
    )
    sdc_check_every: int | None = option(
        None,
        "steps between checks for silent data corruption: computes one step twice, compares bits; "
        "None: never",
        alias="recheck_every",
    )
    trace_steps: tuple[int, ...] = option((), "first, last: profiled into run_dir/profile")

    def __post_init__(self):
        _check_positive(
            self,
            "train",
            "num_steps batch_size micro_batches log_every eval_every "
            "eval_batches save_every keep_checkpoints sdc_check_every",
        )
        _check_choice(self, "train", "on_spike", ("warn", "skip"))
        _check(
            not self.trace_steps
            or (len(self.trace_steps) == 2 and 1 <= self.trace_steps[0] <= self.trace_steps[1]),
            f"trace_steps={self.trace_steps} is not a first and a last step.",
            "train.trace_steps",
            "write --train.trace_steps=100,105.",
        )
        _check(
            self.batch_size % self.micro_batches == 0,
            f"micro_batches={self.micro_batches} does not divide batch_size={self.batch_size}.",
            "train.micro_batches",
            "choose a divisor of train.batch_size.",
        )
