"""The released layouts, as tables of the names of weights and settings.

Each entry is used in both directions, so loading and saving cannot disagree. Axis letters are as in
types.py: D model, N heads, K key-value heads, H head size, F ffn, V vocabulary.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

from qwen_jax.attention_config import AttentionVariant
from qwen_jax.config import ModelConfig
from qwen_jax.types import Spec

LayoutName = Literal["qwen", "qwen2", "qwen3"]
REQUIRED = object()  # default of a setting that every config.json must have


@dataclasses.dataclass(frozen=True)
class Weight:
    """One of our weights in a released checkpoint.

    Weights with the same released name are concatenated along its rows, in table order. `pattern`
    maps the axes of one layer, ours -> released; parentheses merge axes. PyTorch stores a linear
    map as [out, in], so most matrices are transposed.
    """

    path: str  # our path in Params: "layers.attention.wq"
    name: str  # released name; {layer} is the layer's number
    pattern: str  # such as "D N H -> (N H) D"

    def released_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the released shape of a weight or of its rows; `shape` is ours, without L."""
        sizes = self._sizes(shape)
        return tuple(math.prod(sizes[letter] for letter in axis) for axis in self._released_axes())

    def to_released(self, array: np.ndarray) -> np.ndarray:
        """Converts one layer's weight from our shape to the released one; a view if possible."""
        ours, released = self._letters(), "".join(self._released_axes())
        moved = array.transpose([ours.index(letter) for letter in released])
        return moved.reshape(self.released_shape(array.shape))

    def from_released(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Inverts `to_released`; `shape` is ours, without L."""
        ours, released = self._letters(), "".join(self._released_axes())
        sizes = self._sizes(shape)
        split = array.reshape([sizes[letter] for letter in released])
        return split.transpose([released.index(letter) for letter in ours])

    @property
    def row_axis(self) -> int:
        """Our axis that corresponds to the rows of the released tensor."""
        return self._letters().index(self._released_axes()[0][0])

    def _letters(self) -> str:
        return self.pattern.split("->")[0].replace(" ", "")

    def _released_axes(self) -> list[str]:
        """Parses "(N H) D" as ["NH", "D"]."""
        axes, inside = [], False
        for letter in self.pattern.split("->")[1].replace(" ", ""):
            if letter in "()":
                inside = letter == "("
                axes += [""] if inside else []
            elif inside:
                axes[-1] += letter
            else:
                axes.append(letter)
        return axes

    def _sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        return dict(zip(self._letters(), shape, strict=True))


@dataclasses.dataclass(frozen=True)
class _Score(Weight):
    """The score head of a reward model: ours [D], released [1, D], a linear map with one output."""

    def released_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (1, *shape)

    def to_released(self, array: np.ndarray) -> np.ndarray:
        return array.reshape(1, -1)

    def from_released(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return array.reshape(shape)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A field of ModelConfig and its keys in config.json.

    The first key is written. If a file has several keys, the last one is read.
    """

    field: str
    keys: tuple[str, ...]
    read: Callable[[Any], Any] = lambda value: value
    write: Callable[[Any], Any] = lambda value: value
    default: Any = REQUIRED  # value if the file has none of the keys


@dataclasses.dataclass(frozen=True)
class Layout:
    """One released layout."""

    model_type: LayoutName
    weights: tuple[Weight, ...]
    settings: tuple[Setting, ...]
    constants: dict[str, Any]  # written to config.json, and ignored when read
    required_values: dict[str, Any]  # written; other values are rejected when read
    allowed_values: dict[str, tuple]  # not written; other values are rejected when read
    ignored: tuple[str, ...] = ()  # suffixes of tensors that old conversions contain
    unused: tuple[str, ...] = ()  # keys that do not change the model, ignored when read
    variant: AttentionVariant = AttentionVariant()  # what all models of the layout have

    @property
    def is_qwen1(self) -> bool:
        return self.model_type == "qwen"

    def groups(self, specs: Any) -> Iterator["Group"]:
        """Yields the released tensors, grouped by kind, for the `specs` of a config."""
        for name, members in itertools.groupby(self.weights, key=lambda weight: weight.name):
            pairs = [(weight, leaf_at(specs, weight.path)) for weight in members]
            pairs = [(weight, spec) for weight, spec in pairs if spec is not None]
            if pairs:
                yield Group(name, *zip(*pairs, strict=True))


@dataclasses.dataclass(frozen=True)
class Group:
    """The released tensors of one kind, one per layer, and the weights that they consist of."""

    name: str
    weights: tuple[Weight, ...]
    specs: tuple[Spec, ...]

    @property
    def stacked(self) -> bool:
        return "{layer}" in self.name

    def names(self) -> list[str]:
        layers = self.specs[0].shape[0] if self.stacked else 1
        return [self.name.format(layer=layer) for layer in range(layers)]

    def layer_shapes(self) -> list[tuple[int, ...]]:
        """Returns our shape of each member, without L."""
        return [spec.shape[1:] if self.stacked else spec.shape for spec in self.specs]

    def rows(self) -> list[int]:
        """Returns the number of rows of each member in the released tensor."""
        return [
            weight.released_shape(shape)[0]
            for weight, shape in zip(self.weights, self.layer_shapes(), strict=True)
        ]

    def shape(self) -> tuple[int, ...]:
        """Returns the released shape."""
        rest = self.weights[0].released_shape(self.layer_shapes()[0])[1:]
        return (sum(self.rows()), *rest)


def leaf_at(params: Any, path: str) -> Any:
    """Returns the leaf of a Params at a path such as "layers.attention.wq"."""
    for part in path.split("."):
        params = getattr(params, part)
    return params


def _block(names: dict[str, str], *, bias: bool = True) -> tuple[Weight, ...]:
    """Returns the weights of a model; `names` maps the keys below to released names."""
    fused = "qkv" in names
    query, key, value = ["qkv"] * 3 if fused else ["q", "k", "v"]
    table = (
        ("embed", "embed", "V D -> V D"),
        ("layers.attention_norm", "attention_norm", "D -> D"),
        ("layers.attention.wq", query + ".weight", "D N H -> (N H) D"),
        ("layers.attention.wk", key + ".weight", "D K H -> (K H) D"),
        ("layers.attention.wv", value + ".weight", "D K H -> (K H) D"),
        ("layers.attention.bq", query + ".bias", "N H -> (N H)"),
        ("layers.attention.bk", key + ".bias", "K H -> (K H)"),
        ("layers.attention.bv", value + ".bias", "K H -> (K H)"),
        ("layers.attention.q_norm", "q_norm", "H -> H"),
        ("layers.attention.k_norm", "k_norm", "H -> H"),
        ("layers.attention.wo", "o", "N H D -> D (N H)"),
        ("layers.mlp_norm", "mlp_norm", "D -> D"),
        ("layers.mlp.w_gate", "gate", "D F -> F D"),
        ("layers.mlp.w_up", "up", "D F -> F D"),
        ("layers.mlp.w_down", "down", "F D -> D F"),
        ("final_norm", "final_norm", "D -> D"),
        ("head", "head", "D V -> V D"),
    )

    def released(short: str) -> str:
        stem, dot, ending = short.partition(".")
        return names[stem] + (dot + ending if dot else ".weight")

    return tuple(
        Weight(path, released(short), pattern)
        for path, short, pattern in table
        if short.partition(".")[0] in names and (bias or not short.endswith(".bias"))
    )


def _as_integer(number: float) -> int | float:
    """Converts 10000.0 to 10000, as the released configs write it."""
    return int(number) if number == int(number) else number


_ABSENT = (None, False)
_UNQUANTIZED = {
    "quantization_config": _ABSENT,
    "attn_logit_softcapping": _ABSENT,
    "final_logit_softcapping": _ABSENT,
}

QWEN = Layout(
    model_type="qwen",
    weights=_block(
        {
            "embed": "transformer.wte",
            "attention_norm": "transformer.h.{layer}.ln_1",
            "qkv": "transformer.h.{layer}.attn.c_attn",
            "o": "transformer.h.{layer}.attn.c_proj",
            "mlp_norm": "transformer.h.{layer}.ln_2",
            "up": "transformer.h.{layer}.mlp.w1",
            "gate": "transformer.h.{layer}.mlp.w2",
            "down": "transformer.h.{layer}.mlp.c_proj",
            "final_norm": "transformer.ln_f",
            "head": "lm_head",
        }
    ),
    settings=(  # the second keys are those of the first release, in August 2023
        Setting("vocab_size", ("vocab_size", "padded_vocab_size")),
        Setting("hidden_size", ("hidden_size", "n_embd")),
        Setting("num_layers", ("num_hidden_layers", "n_layer")),
        Setting("num_heads", ("num_attention_heads", "n_head")),
        Setting(
            "ffn_size",
            ("intermediate_size", "ffn_hidden_size"),
            read=lambda both: both / 2 if both % 2 else both // 2,
            write=lambda ffn_size: 2 * ffn_size,
        ),
        Setting("context_length", ("seq_length",)),
        Setting("head_size", ("kv_channels",)),
        Setting("rope_base", ("rotary_emb_base",), read=float, write=_as_integer),
        Setting("norm_epsilon", ("layer_norm_epsilon",)),
        Setting("initializer_range", ("initializer_range",), default=0.02),
        Setting("extension.dynamic_ntk", ("use_dynamic_ntk",)),
        Setting("extension.logn", ("use_logn_attn",)),
    ),
    constants={
        "architectures": ["QWenLMHeadModel"],
        "attn_dropout_prob": 0.0,
        "emb_dropout_prob": 0.0,
        "bf16": False,
        "fp16": False,
        "fp32": False,  # all False: use the dtype of the weights
        "softmax_in_fp32": False,
        "use_cache": True,
        "use_cache_kernel": False,
        "use_cache_quantization": False,
        "use_flash_attn": "auto",
    },
    required_values={
        "no_bias": True,
        "rotary_pct": 1.0,
        "scale_attn_weights": True,
        "tie_word_embeddings": False,
    },
    allowed_values=_UNQUANTIZED
    | {
        "pos_emb": ("rotary",),
        "activation": ("swiglu",),
        "visual": _ABSENT,
        "audio": _ABSENT,
        "apply_residual_connection_post_layernorm": _ABSENT,
    },
    ignored=(".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".logn_tensor"),
    unused=(  # dropout rates, limits and fusions, most of them of the first release
        "attn_pdrop",
        "bias_dropout_fusion",
        "embd_pdrop",
        "max_position_embeddings",
        "max_window_size",
        "n_positions",
        "resid_pdrop",
    ),
)

_NAMES = {
    "embed": "model.embed_tokens",
    "attention_norm": "model.layers.{layer}.input_layernorm",
    "q": "model.layers.{layer}.self_attn.q_proj",
    "k": "model.layers.{layer}.self_attn.k_proj",
    "v": "model.layers.{layer}.self_attn.v_proj",
    "o": "model.layers.{layer}.self_attn.o_proj",
    "mlp_norm": "model.layers.{layer}.post_attention_layernorm",
    "gate": "model.layers.{layer}.mlp.gate_proj",
    "up": "model.layers.{layer}.mlp.up_proj",
    "down": "model.layers.{layer}.mlp.down_proj",
    "final_norm": "model.norm",
    "head": "lm_head",
}

QWEN2 = Layout(
    model_type="qwen2",  # also used by Qwen1.5 and Qwen2.5
    weights=_block(_NAMES),
    settings=(
        Setting("vocab_size", ("vocab_size",)),
        Setting("hidden_size", ("hidden_size",)),
        Setting("num_layers", ("num_hidden_layers",)),
        Setting("num_heads", ("num_attention_heads",)),
        Setting("num_kv_heads", ("num_key_value_heads",)),
        Setting("ffn_size", ("intermediate_size",)),
        Setting("context_length", ("max_position_embeddings",)),
        Setting("head_size", ("head_dim",), default=None),
        Setting("rope_base", ("rope_theta",), read=float, write=_as_integer),
        Setting("norm_epsilon", ("rms_norm_eps",)),
        Setting("initializer_range", ("initializer_range",), default=0.02),
        Setting("tie_embeddings", ("tie_word_embeddings",), default=False),
    ),
    constants={"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "use_cache": True},
    required_values={"hidden_act": "silu"},
    allowed_values=_UNQUANTIZED
    | {
        "mlp_bias": _ABSENT,
        "attention_bias": (None, True),
        "dual_chunk_attention_config": _ABSENT,
        "partial_rotary_factor": (None, 1.0),
    },
    ignored=(".rotary_emb.inv_freq",),
)

_HEADS = "model.layers.{layer}.self_attn."
QWEN3 = dataclasses.replace(
    QWEN2,
    model_type="qwen3",
    weights=_block(_NAMES | {"q_norm": f"{_HEADS}q_norm", "k_norm": f"{_HEADS}k_norm"}, bias=False),
    settings=tuple(
        dataclasses.replace(setting, default=128) if setting.field == "head_size" else setting
        for setting in QWEN2.settings
    ),
    constants=QWEN2.constants | {"architectures": ["Qwen3ForCausalLM"]},
    required_values=QWEN2.required_values | {"attention_bias": False},
    allowed_values=QWEN2.allowed_values | {"attention_bias": _ABSENT},
    variant=AttentionVariant(qkv_bias=False, qk_norm=True),
)

_SCORING = "ForSequenceClassification"  # end of the names of architectures with a score head


def scoring(layout: Layout) -> Layout:
    """Returns the layout of a reward model: transformers' ForSequenceClassification, one label."""
    trunk = (each for each in layout.weights if each.path != "head")
    name = layout.constants["architectures"][0].replace("ForCausalLM", _SCORING)
    return dataclasses.replace(
        layout,
        weights=(
            *(dataclasses.replace(each, path=f"trunk.{each.path}") for each in trunk),
            _Score("score", "score.weight", "D -> D"),
        ),
        constants=layout.constants | {"architectures": [name]},
    )


def is_scoring(layout: Layout) -> bool:
    """Returns whether a layout is that of a reward model."""
    return layout.constants["architectures"][0].endswith(_SCORING)


def has_score_head(raw: dict[str, Any]) -> bool:
    """Returns whether a config.json is that of a model for sequence classification."""
    names = raw.get("architectures")
    return isinstance(names, list) and any(str(name).endswith(_SCORING) for name in names)


LAYOUTS = {layout.model_type: layout for layout in (QWEN, QWEN2, QWEN3)}


def native(config: ModelConfig) -> Layout | None:
    """Returns the layout in which `transformers` reads this model natively; None: there is none."""
    return next((each for each in (QWEN2, QWEN3) if not unsupported(each, config)), None)


def unsupported(layout: Layout, config: ModelConfig) -> list[str]:
    """Lists the settings of `config` that the layout cannot express."""
    variant, problems = config.variant, []
    for name in ("qkv_bias", "qk_norm"):
        if (found := getattr(variant, name)) != getattr(layout.variant, name):
            problems.append(f"variant.{name}={found}")
    if not layout.is_qwen1:
        return problems
    if variant.rope_scaling.kind != "none":
        problems.append(f"variant.rope_scaling.kind={variant.rope_scaling.kind}")
    if variant.sliding_window is not None:
        problems.append(f"variant.sliding_window={variant.sliding_window}")
    if config.kv_heads != config.num_heads:
        problems.append(f"num_kv_heads={config.kv_heads} differs from num_heads={config.num_heads}")
    if config.tie_embeddings:
        problems.append("tie_embeddings=True")
    if config.num_heads * config.head_dim != config.hidden_size:
        problems.append(
            f"num_heads * head_size = {config.num_heads * config.head_dim} differs from "
            f"hidden_size={config.hidden_size}"
        )
    return problems


def lost_extensions(layout: Layout, config: ModelConfig) -> list[str]:
    """Lists the parts of the context extension (report 2.5) that the layout cannot store."""
    extension, of_qwen = config.extension, layout.is_qwen1
    lost = {
        "dynamic NTK": extension.dynamic_ntk and not of_qwen,
        "LogN": extension.logn and not of_qwen,
        "layer-wise windows": extension.windows is not None,
    }
    return [name for name, is_lost in lost.items() if is_lost]
