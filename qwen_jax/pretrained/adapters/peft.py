"""LoRA adapters as a PEFT folder, both ways: adapter_config.json and adapter_model.safetensors.

PEFT stores an adapter of a linear map [outputs, inputs] as lora_A [rank, inputs] and lora_B
[outputs, rank].
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from qwen_jax.config import ModelConfig
from qwen_jax.errors import CheckpointError, ConfigError
from qwen_jax.model.lora import LoRAConfig, input_axes, lora_specs
from qwen_jax.model.spec import param_specs
from qwen_jax.pretrained.adapters.merged import Source, adapters_of
from qwen_jax.pretrained.arrays import Index, cast, empty
from qwen_jax.pretrained.export.folder import atomic_folder
from qwen_jax.pretrained.from_run import RunFolder
from qwen_jax.pretrained.layouts import Layout, Weight, leaf_at, native
from qwen_jax.pretrained.tensors import Tensor, TensorFiles, listed, write_tensors
from qwen_jax.types import Spec
from qwen_jax.utils.files import read_json, write_json
from qwen_jax.utils.hub import ADAPTER

WEIGHTS = "adapter_model.safetensors"
# Settings that would change the math, and the values without effect.
_OFF = {
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
    # PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA also change the base that the adapter is added to.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
}
# Settings of initialization and training, without effect on a trained adapter. Others that are
# named alike, such as use_qalora and arrow_config, change the math.
_HARMLESS = (
    *("use_rslora", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    *("megatron_config", "runtime_config", "velora_config"),
)


@dataclasses.dataclass(frozen=True)
class _Module:
    """A linear map of the model, as PEFT names it."""

    name: str  # such as model.layers.{layer}.self_attn.q_proj
    weight: Weight
    spec: Spec  # of our weight, with the axis of layers

    @property
    def short(self) -> str:
        return self.name.rpartition(".")[2]

    def sizes(self) -> tuple[int, int]:
        """Returns the numbers of outputs and inputs."""
        out, inputs = self.weight.released_shape(self.spec.shape[1:])
        return out, inputs

    def key(self, layer: int, side: str) -> str:
        return f"base_model.model.{self.name.format(layer=layer)}.lora_{side}.weight"


def _modules(config: ModelConfig, layout: Layout) -> dict[str, _Module]:
    """Returns our path -> module, for every weight that can have an adapter."""
    specs, found = param_specs(config), {}
    for weight in layout.weights:
        spec = leaf_at(specs, weight.path)
        if spec is not None and spec.axes[0] == "layers" and len(spec.shape) > 2:
            if weight.name.endswith(".weight"):
                found[weight.path] = _Module(weight.name.removesuffix(".weight"), weight, spec)
    return found


class PeftFolder:
    """A PEFT adapter merged into its base model; reads like a ReleasedFolder.

    Attributes:
      config: the config of the base; its param_dtype is the dtype of arrays that `read` returns.
      step: None; only runs have steps.
    """

    step = None

    def __init__(
        self,
        folder: pathlib.Path,
        base: Source,
        *,
        param_dtype: str | None = None,
        progress: Callable[[int], object] = lambda size: None,
    ):
        """
        Args:
          base: the base model, opened in float32, the dtype of the sums.
          param_dtype: dtype to cast to; None: that of the base's files.

        Raises:
          ConfigError: the adapter has features that are not implemented here; lists all of them.
          CheckpointError: files are missing, or do not fit the base.
        """
        self._settings = _read_settings(folder)
        self.config = dataclasses.replace(
            base.config, param_dtype=param_dtype or base.config.compute_dtype
        )
        self._base, self._progress = base, progress
        self._files = TensorFiles(folder, single=WEIGHTS)
        self._modules = _modules(base.config, _layout(base.config, str(folder)))
        self._check(folder)

    def _check(self, folder: pathlib.Path) -> None:
        expected = {}
        for module in self._modules.values():
            out, inputs = module.sizes()
            for layer in range(module.spec.shape[0]):
                a, b = (self._files.shapes.get(module.key(layer, side)) for side in "AB")
                rank = (a or (0,))[0]
                if a is not None or b is not None:
                    expected[module.key(layer, "A")] = (rank, inputs)
                    expected[module.key(layer, "B")] = (out, rank)
        found = self._files.shapes
        problems = [f"{name} is missing" for name in expected if name not in found]
        problems += [f"{name} has no place in this model" for name in found if name not in expected]
        problems += [
            f"{name} has shape {list(found[name])}, not {list(shape)}"
            for name, shape in expected.items()
            if found.get(name, shape) != shape
        ]
        if problems or not found:
            raise CheckpointError(
                listed(problems or ["there are no tensors"], "wrong tensor"),
                str(folder / WEIGHTS),
                "use the adapter with its own base model; if it has adapters of embed_tokens or "
                "lm_head, merge it with PEFT (merge_and_unload) and save the model.",
            )

    def read(self, path: str, index: Index) -> np.ndarray:
        """Reads a slice of a weight, such as "layers.attention.wq", in config.param_dtype.

        Raises:
          CheckpointError: a value overflows that dtype.
        """
        dtype = self.config.param_dtype
        if path not in self._modules:
            return cast(self._base.read(path, index), dtype, path)
        out = empty(tuple(part.stop - part.start for part in index), dtype)
        for row, layer in enumerate(range(index[0].start, index[0].stop)):
            weight = self._base.read(path, (slice(layer, layer + 1), *index[1:]))[0]
            delta = self._delta(self._modules[path], layer)
            if delta is not None:
                weight = weight + delta[index[1:]]
            out[row] = cast(weight, dtype, path)
            self._progress(out[row].nbytes)
        return out

    def _delta(self, module: _Module, layer: int) -> np.ndarray | None:
        """Returns scale B A of a layer in the shape of our weight; None without an adapter."""
        if module.key(layer, "A") not in self._files.shapes:
            return None
        a, b = (self._files.view(module.key(layer, side)).astype(np.float32) for side in "AB")
        scale = _scale(self._settings, module.name.format(layer=layer), rank=len(a))
        return module.weight.from_released(np.float32(scale) * (b @ a), module.spec.shape[1:])


def _layout(config: ModelConfig, where: str) -> Layout:
    """Returns the layout whose names PEFT uses for this model."""
    if (layout := native(config)) is None:
        raise ConfigError(
            "transformers, and so PEFT, has no layout for the base model.",
            where,
            "merge the adapters instead: --layout=run.",
        )
    return layout


def _read_settings(folder: pathlib.Path) -> dict[str, Any]:
    settings = read_json(folder / ADAPTER, error=CheckpointError)
    problems = [
        f"{key}={str(settings.get(key))[:80]}"
        for key, values in _OFF.items()
        if key in settings and settings[key] not in values
    ]
    problems += [
        f"{key}={str(value)[:80]}"
        for key, value in settings.items()
        if (key.startswith("use_") or key.endswith("_config"))
        and value
        and key not in (*_OFF, *_HARMLESS)
    ]
    if problems:
        raise ConfigError(
            f"the adapter needs features that qwen_jax does not implement: {'; '.join(problems)}.",
            str(folder / ADAPTER),
            "merge it with PEFT (merge_and_unload) and save the model.",
        )
    numbers = [settings.get("lora_alpha"), *(settings.get("alpha_pattern") or {}).values()]
    if not all(isinstance(number, int | float) for number in numbers):
        raise CheckpointError(
            "lora_alpha or alpha_pattern is not a number.",
            str(folder / ADAPTER),
            "restore the file that PEFT wrote.",
        )
    return settings


def _scale(settings: dict[str, Any], name: str, *, rank: int) -> float:
    alpha = settings["lora_alpha"]
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):  # as PEFT matches it
            alpha = value
            break
    return alpha / (rank**0.5 if settings.get("use_rslora") else rank)


def export_adapters(
    run: str | os.PathLike, path: str | os.PathLike, *, base: str, step: int | None = None
) -> None:
    """Writes the adapters of a LoRA run as a PEFT adapter, in the dtype of the run.

    Args:
      run: folder of a LoRA run of a language model.
      path: a new or empty folder, or an earlier export, which is replaced.
      base: name or folder of the base model, which transformers can load.

    Raises:
      ConfigError: the run has no adapters, or is a reward model's.
      CheckpointError: no complete checkpoint is found, or the folder is not an export.
    """
    folder = pathlib.Path(run)
    raw = read_json(folder / "config.json", error=CheckpointError)
    lora = adapters_of(raw, folder)
    if lora is None:
        raise ConfigError(
            "the run has no adapters: it trained all weights.",
            str(run),
            "use --layout=qwen2 or qwen3, or train with --lora.rank.",
        )
    source = RunFolder(folder, raw, step=step, specs=lambda config: lora_specs(config, lora))
    modules = _modules(source.config, _layout(source.config, str(run)))
    modules = {
        path: each for path, each in modules.items() if path.rpartition(".")[2] in lora.targets
    }
    tensors = [
        tensor
        for path, module in modules.items()
        for layer in range(module.spec.shape[0])
        for tensor in _tensors(source, path, module, layer, lora)
    ]
    with atomic_folder(
        pathlib.Path(path).resolve(), needed_bytes=sum(each.bytes for each in tensors)
    ) as partial:
        write_json(partial / ADAPTER, _written_settings(lora, modules, base), indent=2)
        write_tensors(partial, tensors, max_shard_bytes=1 << 62, single=WEIGHTS)


def _tensors(
    source: RunFolder, path: str, module: _Module, layer: int, lora: LoRAConfig
) -> Iterator[Tensor]:
    rank, inputs = lora.rank or 0, input_axes(path.rpartition(".")[2])
    ours = module.spec.shape[1:]
    shapes = {"a": (*ours[:inputs], rank), "b": (rank, *ours[inputs:])}

    def chunks(side: str) -> Iterator[np.ndarray]:
        shape = shapes[side]
        index = (slice(layer, layer + 1), *(slice(0, size) for size in shape))
        array = source.read(f"{path}.{side}", index)[0]
        matrix = array.reshape(-1, rank) if side == "a" else array.reshape(rank, -1)
        yield np.ascontiguousarray(matrix.T)

    out, total = module.sizes()
    dtype = source.config.param_dtype
    yield Tensor(module.key(layer, "A"), (rank, total), dtype, lambda: chunks("a"))
    yield Tensor(module.key(layer, "B"), (out, rank), dtype, lambda: chunks("b"))


def _written_settings(lora: LoRAConfig, modules: dict[str, _Module], base: str) -> dict[str, Any]:
    alpha = int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": None,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted({module.short for module in modules.values()}),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
        "use_dora": False,
    }
