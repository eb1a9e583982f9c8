"""How a stage computes the model that it starts from; what the model is, --init_from says."""

import dataclasses
from typing import Literal

from qwen_jax import sizes
from qwen_jax.config import ModelConfig, option
from qwen_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class ModelOverrides:
    """The fields of ModelConfig that a stage after pretraining may choose anew."""

    dropout: float = option(0.0, "after the embedding and on each residual branch")
    compute_dtype: str = option("bfloat16", "of products and activations; or float32")
    param_dtype: str = option("float32", "of the weights that are trained")
    remat: Literal["none", "dots", "block"] = option("none", "what the backward pass recomputes")
    unroll_layers: int = option(1, "layers compiled as one piece: more to compile, less to copy")
    attention: str | None = option(None, "a backend by name; None: the best for the device")

    def __post_init__(self):
        self.apply(sizes.TINY)  # ModelConfig checks the values

    @classmethod
    def of(cls, model: "ModelConfig | ModelOverrides") -> "ModelOverrides":
        """The way in which a model is computed."""
        return cls(**{field.name: getattr(model, field.name) for field in dataclasses.fields(cls)})

    def apply(self, model: ModelConfig) -> ModelConfig:
        """The model, computed this way."""
        return dataclasses.replace(model, **dataclasses.asdict(self))

    @staticmethod
    def refuse(name: str) -> ConfigError | None:
        """The error for --model.NAME when it is a field of ModelConfig and not one of these."""
        if name.partition(".")[0] not in {field.name for field in dataclasses.fields(ModelConfig)}:
            return None
        fix = "leave it out; --help lists the --model flags that this stage has."
        if name == "context_length":
            fix = "use --data.context_length where the stage has it, or leave it out."
        return ConfigError("the architecture is that of --init_from.", f"--model.{name}", fix)
