"""The model settings of a training stage; --init_from determines the architecture."""

import dataclasses
from typing import Literal

from qwen_jax import sizes
from qwen_jax.config import ModelConfig, option
from qwen_jax.errors import ConfigError
from qwen_jax.ranges import Checked, limits_of

_HELP = {field.name: field.metadata.get("help", "") for field in dataclasses.fields(ModelConfig)}


@dataclasses.dataclass(frozen=True)
class ModelOverrides(Checked, where="model.{}"):
    """The fields of ModelConfig that a stage after pretraining can override."""

    context_length: int | None = option(
        None,
        "tokens of the model's context; None: that of init_from, or the longest row of training "
        "data if that is more",
        limits_of(ModelConfig, "context_length"),
    )
    dropout: float = option(0.0, _HELP["dropout"], limits_of(ModelConfig, "dropout"))
    compute_dtype: str = option("bfloat16", _HELP["compute_dtype"])
    param_dtype: str = option("float32", _HELP["param_dtype"])
    remat: Literal["none", "dots", "block"] = option("none", _HELP["remat"])
    unroll_layers: int = option(1, _HELP["unroll_layers"], limits_of(ModelConfig, "unroll_layers"))
    attention: str | None = option(None, _HELP["attention"])

    def __post_init__(self):
        super().__post_init__()
        self.apply(sizes.TINY)  # ModelConfig checks the names of dtypes

    @classmethod
    def of(cls, model: "ModelConfig | ModelOverrides") -> "ModelOverrides":
        """Returns the overrides that reproduce how `model` is computed, with any context."""
        names = {field.name for field in dataclasses.fields(cls)} - {"context_length"}
        return cls(**{name: getattr(model, name) for name in names})

    def apply(self, model: ModelConfig) -> ModelConfig:
        """Returns `model` with these overrides."""
        changes = dataclasses.asdict(self)
        if self.context_length is None:
            del changes["context_length"]
        return dataclasses.replace(model, **changes)

    @staticmethod
    def refuse(name: str) -> ConfigError | None:
        """Returns the error for --model.NAME if NAME is a ModelConfig field but not an override."""
        if name.partition(".")[0] not in {field.name for field in dataclasses.fields(ModelConfig)}:
            return None
        fix = "remove the flag; --help lists the --model flags of this stage."
        return ConfigError("--init_from determines the architecture.", f"--model.{name}", fix)
