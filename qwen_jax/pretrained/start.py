"""Loads the starting point of a training run (--init_from): weights, architecture, tokenizer."""

import dataclasses
import functools
import hashlib
import operator
import os
import pathlib
from collections.abc import Callable
from typing import Any, Protocol

import jax

from qwen_jax.attention_config import AttentionVariant
from qwen_jax.checkpoint.bucket.reader import local_folder
from qwen_jax.config import ModelConfig
from qwen_jax.errors import CheckpointError, ConfigError
from qwen_jax.model.lora import LoRAConfig
from qwen_jax.model.spec import init_from as init_from_specs
from qwen_jax.model.spec import param_specs
from qwen_jax.model.value_head import scoring_specs
from qwen_jax.pretrained.adapters import merged
from qwen_jax.pretrained.arrays import load_sharded
from qwen_jax.pretrained.finite import FiniteCheck
from qwen_jax.pretrained.from_run import is_run, run_config
from qwen_jax.pretrained.huggingface import load_params, open_pretrained
from qwen_jax.pretrained.load import tokenizer_of
from qwen_jax.pretrained.overrides import ModelOverrides
from qwen_jax.pretrained.scoring import Trunk, is_scoring, open_scoring, trunk_specs
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.model_folder import check_vocabulary
from qwen_jax.train.adapters import Adapters
from qwen_jax.train.attempts import inputs
from qwen_jax.train.attempts.folder import beginning
from qwen_jax.train.attempts.inputs import Input
from qwen_jax.train.attempts.staged import local
from qwen_jax.train.job import RunConfig
from qwen_jax.train.run_folder import flatten
from qwen_jax.types import Params, ScoringParams
from qwen_jax.utils.files import read_json
from qwen_jax.utils.hub import is_adapter

# The fields that determine what given weights compute. A run can override the others
# (context_length, dtypes, dropout, remat, the context extension).
_ARCHITECTURE = (
    "vocab_size",
    "hidden_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_size",
    "ffn_size",
    "tie_embeddings",
    "rope_base",
    "norm_epsilon",
    *(f"variant.{name}" for name in flatten(AttentionVariant())),
)


class StageConfig(RunConfig, Protocol):
    """The config of a stage after pretraining, as returned by `start`."""

    @property
    def init_from(self) -> str: ...

    @property
    def lora(self) -> LoRAConfig: ...


def start(config, rows: int | None = None) -> tuple[Any, Tokenizer]:
    """Resolves a stage's ModelOverrides to a ModelConfig, and finds the tokenizer.

    Args:
      config: has model, init_from and tokenizer (a file; None: the one in init_from).
      rows: tokens of a row of training data; None: the model's context. The model keeps its own
        context, unless rows are longer or --model.context_length is set.

    Returns:
      The config that the run records, whose `model` is the folder's with the overrides, and the
      tokenizer.

    Raises:
      ConfigError: init_from is empty, no tokenizer is found, it has more ids than the model, or
        rows are longer than --model.context_length.
    """
    if not config.init_from:
        raise ConfigError(
            "no model to start from.", "--init_from", "pass a run folder or a released Qwen folder."
        )
    config = with_local_folders(config)
    model = adopt(config.model, config.init_from)
    model = dataclasses.replace(model, context_length=_context(config, model, rows))
    tokenizer = tokenizer_of(config.init_from, config.tokenizer)
    check_vocabulary(tokenizer, model, flag="--tokenizer")
    return dataclasses.replace(config, model=model), tokenizer


def _context(config: Any, model: ModelConfig, rows: int | None) -> int:
    """Returns the context of the model that a stage trains."""
    context = config.model.context_length or _recorded_context(config)
    context = context or max(model.context_length, rows or 0)
    if rows is not None and rows > context:
        raise ConfigError(
            f"rows of {rows} tokens are longer than the model's context of {context}.",
            "--data.context_length, --model.context_length",
            "raise --model.context_length, or use shorter rows.",
        )
    return context


def _recorded_context(config: Any) -> int | None:
    """Returns the context in the record of a run that resumes: earlier versions set that of rows.

    None: the run begins.
    """
    path = local(config.run_dir) / "config.json"
    if not path.is_file() or not _resumes(config):
        return None
    recorded = read_json(path, error=ConfigError).get("model")
    found = recorded.get("context_length") if isinstance(recorded, dict) else None
    return found if isinstance(found, int) else None


def with_local_folders(config: Any) -> Any:
    """Returns the config with local folders for names on the Hub (utils/hub.py)."""
    found = {
        flag: local_folder(value, where=f"--{flag}")
        for flag in ("init_from", "reward_model")
        if (value := getattr(config, flag, None))
    }
    return dataclasses.replace(config, **found)


def adopt(
    computed: ModelOverrides | ModelConfig, folder: str, *, context_length: int | None = None
) -> ModelConfig:
    """Returns the folder's ModelConfig with the overrides of `computed`.

    Args:
      context_length: the context length to set; None: that of the folder.
    """
    raw, path = _config_of(folder), pathlib.Path(folder)
    found = run_config(raw, path) if is_run(raw) else open_any(folder).config
    if context_length is not None:
        found = dataclasses.replace(found, context_length=context_length)
    return ModelOverrides.of(computed).apply(found)


class Pin:
    """The content of a folder that a run reads: the same in all its loads and attempts.

    The first load chooses the newest checkpoint; the later ones, and those of a resumed run, read
    the same one.

    Attributes:
      step: step of the checkpoint; None: the newest, or a released folder.
    """

    def __init__(
        self, role: str, folder: str | os.PathLike, config: Any = None, *, once: bool = False
    ):
        """
        Args:
          role: the flag that names the folder.
          config: of the run that reads it; None: no run.
          once: only the first start of the run reads it.

        Raises:
          CheckpointError: the checkpoint that the run started from is missing.
          ConfigError: the content has changed since the run started.
        """
        self._role, self._folder, self._once = role, str(folder), once
        self.step: int | None = None
        self._input: Input | None = None
        if config is None or not _resumes(config):
            return
        recorded = next((each for each in inputs.read(config.run_dir) if each.role == role), None)
        if recorded is not None:
            self.step = recorded.step
            same_path = recorded.path == str(pathlib.Path(folder).resolve())
            self._input = recorded if once and same_path else self._identify()
            inputs.compare([recorded], [self._input], may_change=lambda role: False, log=_ignore)
        elif not once and config.lora.rank is None:  # adapters have base.json
            self.open(lambda folder, **_: open_any(folder))

    def open(self, open_source: Callable[..., Any], *, param_dtype: str | None = None) -> Any:
        """Opens the folder with open_pretrained or open_scoring, at the pinned step."""
        source = open_source(self._folder, param_dtype=param_dtype, step=self.step)
        if self._input is None:
            self.step = source.step
            self._input = self._identify()
        return source

    def inputs(self) -> tuple[Input, ...]:
        """Returns the input to record; nothing before the first load."""
        return () if self._input is None else (self._input,)

    def _identify(self) -> Input:
        if not is_run(_config_of(self._folder)):
            source = open_any(self._folder)
            specs = scoring_specs if is_scoring_run(self._folder) else param_specs
            path = str(pathlib.Path(self._folder).resolve())
            digest = merged.sample(source, source.config.param_dtype, specs)
            return Input(self._role, path, digest, once=self._once)
        if self.step is None:  # a released folder was replaced by a run
            self.step = open_any(self._folder).step
        assert self.step is not None, "every checkpoint of a run has a step"
        found = inputs.of_step(self._role, self._folder, self.step, once=self._once)
        if (base := pathlib.Path(self._folder) / merged.NAME).is_file():
            digest = found.digest + merged.read_base(base.parent).sample
            found = dataclasses.replace(found, digest=hashlib.sha256(digest.encode()).hexdigest())
        return found


def _resumes(config: Any) -> bool:
    return beginning(config.run_dir, restart=config.restart_from_scratch) == "resume"


def _ignore(event: str, **details: Any) -> None:
    """The run logs the event when it begins."""


def open_any(folder: str) -> merged.Source:
    """Opens a folder as a language model or a reward model, whichever it is."""
    return (open_scoring if is_scoring_run(folder) else open_pretrained)(folder)


def weights_of(
    init_from: str | os.PathLike, like: ModelConfig | None = None, *, pin: Pin | None = None
) -> Callable[[Params], Params]:
    """Returns a function that loads the folder's weights onto the shardings of abstract Params.

    Args:
      like: a config whose architecture the folder must have, checked immediately; None: not
        checked.
      pin: the content to read; None: the latest valid checkpoint at each load.

    Raises:
      ConfigError: the architecture differs; the error lists every flag to set.
      CheckpointError: as in open_pretrained.
    """
    if like is not None:
        _check_architecture(init_from, like)

    def initial(abstract: Params) -> Params:
        dtype = str(jax.tree.leaves(abstract)[0].dtype)
        source = (pin or Pin("init_from", init_from)).open(open_pretrained, param_dtype=dtype)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        return load_params(source, shardings, where=str(init_from))

    return initial


def initial_weights_of(config: Any) -> dict[str, Any]:
    """Returns the arguments `initial` and `inputs` of train.pretrain.pretrain.

    Raises:
      ConfigError: the architectures of init_from and the run differ.
    """
    pin = Pin("init_from", config.init_from, config, once=True)
    initial = weights_of(config.init_from, like=config.model, pin=pin)
    return {"initial": initial, "inputs": pin.inputs}


def start_of(config: StageConfig, *, once: bool = True) -> dict[str, Any]:
    """Returns the arguments `initial`, `adapters` and `inputs` of train.supervised.train.

    Full fine-tuning trains the weights of init_from. LoRA trains adapters on top of them and loads
    the frozen weights once for all callers, so DPO's reference model shares the same arrays.

    Args:
      once: whether only the first start of full fine-tuning reads the weights.

    Raises:
      CheckpointError, ConfigError: the run in run_dir was started from different weights, or they
        are missing.
    """
    if config.lora.rank is None:
        pin = Pin("init_from", config.init_from, config, once=once)
        initial, adapters = weights_of(config.init_from, pin=pin), None
    else:
        initial, base, pin = frozen_weights_of(config.init_from, config)
        adapters = Adapters(config.lora, base)
    return {"initial": initial, "adapters": adapters, "inputs": pin.inputs}


def scoring_start_of(config: StageConfig) -> dict[str, Any]:
    """Like start_of, for a scoring model with its `specs`; LoRA also trains the score head."""
    seed = config.train.seed
    if config.lora.rank is None:
        pin = Pin("init_from", config.init_from, config, once=True)
        initial, adapters = scoring_weights_of(config.init_from, seed=seed, pin=pin), None
    else:
        initial, base, pin = frozen_scoring_weights_of(config.init_from, config)
        adapters = Adapters(config.lora, base)
    return {
        "initial": initial,
        "adapters": adapters,
        "inputs": pin.inputs,
        "specs": scoring_specs,
    }


def frozen_weights_of(init_from: str, config) -> tuple[Callable[[Any], Any], dict[str, Any], Pin]:
    """Returns a loader of the frozen base of adapters, its record for base.json, and its pin.

    The loader maps abstract Params with shardings to the weights of init_from in
    model.compute_dtype, and loads them once. A resumed run loads the checkpoint of init_from that
    it started from.

    Raises:
      CheckpointError, ConfigError: the run in run_dir was started from different weights, or they
        are missing.
    """
    source, base, pin = _open_base(
        "init_from", init_from, config, open_pretrained, merged.NAME, param_specs
    )

    loaded = []

    def initial(abstract):
        if not loaded:
            shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
            loaded.append(load_params(source, shardings, where=init_from))
        return loaded[0]

    return initial, base, pin


def frozen_scoring_weights_of(
    folder: str, config, record: str = merged.NAME, role: str = "init_from"
) -> tuple[Callable[[Any], Any], dict[str, Any], Pin]:
    """Like frozen_weights_of, for a scoring model, or a language model with a new score head.

    Args:
      record: name of the file in the run folder that records the base.
      role: the flag that names the folder.
    """
    source, base, pin = _open_base(role, folder, config, open_scoring, record, trunk_specs)
    load = functools.partial(_load_scoring, source, where=folder, seed=config.train.seed)
    return load, base, pin


def _open_base(role: str, path: str, config, open_source, record: str, specs):
    """Opens a base in the training dtype; returns it, its record as JSON, and its pin."""
    folder, dtype = local(config.run_dir), config.model.compute_dtype
    pin = Pin(role, path, config)
    if (folder / record).is_file() and _resumes(config):
        base = merged.read_base(folder, record, now_at=path)
        pin.step = base.step
        source = pin.open(open_source, param_dtype=dtype)
        merged.check_base(base, source, folder, specs)
    else:
        source = pin.open(open_source, param_dtype=dtype)
        base = merged.identify(path, source, specs)
    return source, dataclasses.asdict(base), pin


def is_scoring_run(folder: str) -> bool:
    """Returns whether a folder is a reward model, a run or a released one."""
    return is_scoring(_config_of(folder))


def scoring_weights_of(
    init_from: str, *, seed: int, pin: Pin | None = None
) -> Callable[[Any], Any]:
    """Like weights_of, for a reward model, or a language model with a new score head.

    Args:
      seed: random seed of the new score head.
    """

    def initial(abstract: ScoringParams) -> ScoringParams:
        dtype = str(abstract.score.dtype)
        source = (pin or Pin("init_from", init_from)).open(open_scoring, param_dtype=dtype)
        return _load_scoring(source, abstract, where=init_from, seed=seed)

    return initial


def _load_scoring(
    source: merged.Source, abstract: ScoringParams, *, where: str, seed: int
) -> ScoringParams:
    """Loads the weights of an opened folder onto the shardings of `abstract`."""
    finite = FiniteCheck(where)
    read = finite.watch(source.read)

    def load(path, leaf):
        name = jax.tree_util.keystr(path).lstrip(".")
        if name == "score" and isinstance(source, Trunk):
            spec = scoring_specs(source.config).score
            return jax.device_put(
                init_from_specs(spec, jax.random.key(seed), leaf.dtype), leaf.sharding
            )
        return load_sharded(leaf.shape, leaf.sharding, functools.partial(read, name))

    params = jax.tree_util.tree_map_with_path(load, abstract)
    finite.check()
    return params


def _check_architecture(init_from: str | os.PathLike, config: ModelConfig) -> None:
    theirs, ours = _architecture(open_pretrained(init_from).config), _architecture(config)
    differing = [
        f"--model.{name}={theirs[name]} (not {ours[name]})"
        for name in _ARCHITECTURE
        if theirs[name] != ours[name]
    ]
    if differing:
        raise ConfigError(
            "the run's architecture differs from that of --init_from.",
            f"--init_from={init_from}",
            f"set {', '.join(differing)}.",
        )


def _architecture(config: ModelConfig) -> dict[str, object]:
    derived = {"num_kv_heads": config.kv_heads, "head_size": config.head_dim}
    return {
        name: derived[name] if name in derived else operator.attrgetter(name)(config)
        for name in _ARCHITECTURE
    }


def _config_of(folder: str) -> dict[str, Any]:
    path = pathlib.Path(folder) / "config.json"
    if is_adapter(folder):
        return {}  # the config is that of its base
    if not path.is_file():
        raise ConfigError(
            "this is not a model folder: it has no config.json."
            if path.parent.is_dir()
            else "the folder of the model does not exist.",
            folder,
            "pass a run folder or a released Qwen folder.",
        )
    return read_json(path, error=CheckpointError)
