"""Ahead-of-time planner: memory, time and cost of a run on chips that you do not have.

Compiles the real train step of a training stage, including our attention kernel, for a TPU slice on
a machine without a TPU (libtpu compiles; no TPU is contacted). Prints for the best layouts: memory
per chip by kind and whether it fits, collectives by kind and bytes, and estimates of step time,
tokens per second, MFU (causal attention counted once / as if not causal), and chip hours of the
full recipe.

    pip install "jax[tpu]"
    python -m experiments.plan --model=14b --topology=v5p-256
    python -m experiments.plan --model=7b --topology=v5e-256 --training_stage=ppo
    python -m experiments.plan --model=7b --training_stage=code_qwen --max_context=4
    python -m experiments.plan --model=qwen3-8b --topology=h200-8    # or --model=CONFIG_JSON
    ... --mesh=1,64,2,1 --remat=block --micro_batches=2     # one layout, in detail

Slices have Google's names: v5p-N counts tensor cores, two per chip (v5p-256 has 128 chips); v5e-N
and v6e-N count chips. v5p:4x8x8 gives the torus. JAX sees a chip as one device.

Times are estimates from the compiler's cost model and the published link and memory bandwidths
(qwen_jax/plan/costs.py documents the assumed overlap); nothing is measured. Layouts that do not fit
are listed too. PPO's estimate covers only the update, not sampling. The reward model's chip hours
are for 1,000 steps: its recipe sets passes over the pairs. code_qwen and math_qwen are the recipes
of sections 4 and 5 for any --model. For GPUs (--topology=h100-64, h200-8)
nothing is compiled; the lines are analytic estimates.
"""

import dataclasses
import datetime
import importlib.metadata
import importlib.util
import math
import pathlib
from collections.abc import Callable

from qwen_jax import sizes
from qwen_jax.cli import flags
from qwen_jax.config import MeshConfig, ModelConfig, option
from qwen_jax.errors import ConfigError, unknown_name
from qwen_jax.plan import gpus, search, table, topologies
from qwen_jax.plan.estimate import estimate, tokens_per_step
from qwen_jax.plan.program import compile_in_subprocess
from qwen_jax.plan.stages import Workload
from qwen_jax.pretrained.load import model_config
from qwen_jax.pretrained.overrides import ModelOverrides
from qwen_jax.ranges import ONE_OR_MORE, ZERO_OR_MORE, Checked, limits_of
from qwen_jax.utils.files import write_json

from . import code_qwen, math_qwen, ppo, pretrain, reward_model

# Recipes that train a language model from another one; their step is that of pretraining.
SPECIALISTS = {"code_qwen": code_qwen.RECIPES, "math_qwen": {"7b": math_qwen.RECIPE}}
STAGES = ("pretrain", *SPECIALISTS, "reward_model", "ppo")
_REMAT = {"nothing": "none"}  # the flag's "none" means search


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """The run to plan, and the limits of the search."""

    model: str = option(
        "7b",
        "model size: 1.8b, 7b, 14b or 350m, a recipe of experiments.pretrain; another size of "
        "qwen_jax/sizes.py such as qwen3-8b, or a config.json, with the settings of the recipe 7b",
    )
    topology: str = option(
        "v5p-256", "TPU slice or GPUs, such as v5p-256, v5e-256, v6e-64 or h100-64"
    )
    training_stage: str = option(
        "pretrain",
        "stage to plan: pretrain, code_qwen, math_qwen, reward_model or ppo",
        alias="stage",
    )
    mesh: str | None = option(None, "mesh sizes as data,fsdp,tensor,context; None: search")
    remat: str | None = option(
        None,
        "recomputation: nothing (pretrain's none), dots (all but matmuls), block (layers); "
        "None: search",
    )
    micro_batches: int | None = option(
        None,
        "micro-batches per optimizer step, 1 or more; None: search",
        ONE_OR_MORE,
    )
    context_length: int | None = option(
        None, "tokens per sequence; None: the recipe's", limits_of(ModelConfig, "context_length")
    )
    batch_tokens: int | None = option(
        None, "tokens per optimizer step; None: the recipe's", ONE_OR_MORE
    )
    max_tensor: int = option(
        8,
        "maximum size of the tensor axis in the search (heads are sharded over it)",
        ONE_OR_MORE,
    )
    max_context: int = option(
        1, "maximum size of the context axis in the search (ring attention)", ONE_OR_MORE
    )
    compile: int = option(
        4, "number of layouts to compile, the best by analytic estimate", ZERO_OR_MORE
    )
    price: float | None = option(
        None, "price per chip hour, in any currency; None: no costs", ZERO_OR_MORE
    )
    compiler_options: tuple[str, ...] = option(
        (), "additional XLA options as name=value (on top of parallel/xla_options.py)"
    )
    output: str | None = option(None, "JSON file for all results; None: no file")
    keep_hlo: str | None = option(
        None, "folder for the HLO text of the compiled programs; None: not kept"
    )


def workload_of(config: Config) -> Workload:
    """Returns the recipe's workload with the overrides from the flags.

    Raises:
      ConfigError: the training stage or size is unknown, or the batch is not a multiple of the
        sequence length.
    """
    if config.training_stage not in STAGES:
        raise unknown_name("training stage", config.training_stage, STAGES, "--training_stage")
    pretraining = pretraining_of(config.model)
    later = {"reward_model": reward_model.RECIPE, "ppo": ppo.RECIPE}
    later |= {name: sizes.get(config.model, sizes["7b"]) for name, sizes in SPECIALISTS.items()}
    recipe = later.get(config.training_stage, pretraining)
    model, train = pretraining.model, recipe.train
    if config.training_stage in later:
        model = later[config.training_stage].model.apply(model)
    if config.training_stage in SPECIALISTS:
        rows = recipe.data.context_length
        model = dataclasses.replace(model, context_length=rows)
    tokens = train.batch_size * model.context_length
    if config.context_length is not None:
        model = dataclasses.replace(model, context_length=config.context_length)
    wanted = config.batch_tokens or tokens
    if wanted % model.context_length:
        raise ConfigError(
            f"{wanted} tokens are not a multiple of the sequence length {model.context_length}.",
            "--batch_tokens, --context_length",
            "set --batch_tokens to a multiple.",
        )
    if config.batch_tokens and config.training_stage != "pretrain":
        raise ConfigError(
            f"--batch_tokens applies to pretraining, not to {config.training_stage}.",
            "--batch_tokens",
            "remove the flag.",
        )
    if config.training_stage == "pretrain":
        steps = round(train.num_steps * tokens / wanted)
        train = dataclasses.replace(
            train, batch_size=wanted // model.context_length, num_steps=steps, micro_batches=1
        )
    more = {}
    if config.training_stage == "reward_model":  # the real number depends on the pairs
        train = dataclasses.replace(train, num_steps=1000)
    if config.training_stage == "ppo":
        more = {
            "ppo": ppo.RECIPE.ppo,
            "value_optimizer": ppo.RECIPE.value_optimizer,
            "prompt_tokens": ppo.RECIPE.data.max_prompt_tokens,
        }
    stage = "pretrain" if config.training_stage in SPECIALISTS else config.training_stage
    return Workload(stage, model, recipe.optimizer, train, **more)


def pretraining_of(name: str) -> pretrain.Config:
    """Returns the recipe of this name, or that of 7b with another model.

    Args:
      name: a recipe of pretraining, a size, or a config.json.

    Raises:
      ConfigError: it is none of them, or the model is not implemented here.
    """
    recipe_name = sizes.canonical(name) or name
    if recipe_name in pretrain.RECIPES:
        return pretrain.RECIPES[recipe_name]
    recipe = pretrain.RECIPES["7b"]
    model = dataclasses.replace(
        model_config(name, where="--model"), context_length=recipe.model.context_length
    )
    return dataclasses.replace(recipe, model=ModelOverrides.of(recipe.model).apply(model))


def candidates(config: Config, workload: Workload, topology, log) -> list[Workload]:
    """Returns the layout of the flags, or the best ones by analytic estimate.

    Raises:
      ConfigError: the flags are not a valid layout, or no layout fits.
    """
    mesh = None if config.mesh is None else mesh_of(config.mesh)
    remat = _REMAT.get(config.remat or "", config.remat)
    if remat not in (None, *search.REMATS):
        raise unknown_name("remat policy", remat, ("nothing", "dots", "block"), "--remat")
    if mesh is not None and math.prod(dataclasses.astuple(mesh)) != topology.chips:
        raise ConfigError(
            f"--mesh={config.mesh} has {math.prod(dataclasses.astuple(mesh))} chips, "
            f"{topology.name} has {topology.chips}.",
            "--mesh, --topology",
            "use sizes whose product is the number of chips, or remove --mesh.",
        )
    if mesh is not None and remat and config.micro_batches:
        return [search.with_layout(workload, mesh, remat, config.micro_batches)]
    estimates, considered, too_large = search.best(
        workload,
        topology,
        number=config.compile,
        max_tensor=config.max_tensor,
        max_context=config.max_context,
        mesh=mesh,
        remat=remat,
        micro=config.micro_batches,
    )
    if not estimates:
        raise ConfigError(
            f"none of {considered} layouts should fit, by the analytic estimate."
            if considered
            else f"no layout divides the model's sizes and the batch over {topology.chips} chips.",
            "--model, --topology",
            "use a larger slice, or --remat=block and more --micro_batches."
            if considered
            else "use a smaller slice, other --micro_batches, or a larger --max_tensor.",
        )
    log(
        f"{considered} layouts considered, {too_large} should not fit; compiling the "
        f"{len(estimates)} best by analytic estimate"
    )
    return [one.workload for one in estimates]


def mesh_of(text: str) -> MeshConfig:
    """Parses "1,64,2,1" into MeshConfig(data=1, fsdp=64, tensor=2, context=1)."""
    sizes = text.replace(" ", "").split(",")
    if len(sizes) != 4 or not all(size.isdigit() for size in sizes):
        raise ConfigError(
            f"{text!r} is not a valid mesh.",
            "--mesh",
            "pass four sizes: data, fsdp, tensor and context, as in --mesh=1,64,2,1.",
        )
    return MeshConfig(*map(int, sizes))


def main(config: Config) -> None:
    plan(config)


def plan(config: Config, log=flags.log) -> list[dict]:
    """Prints the table; returns the records of the layouts, fastest first."""
    refuse_flags_without_effect(config)
    workload = workload_of(config)
    if is_gpus(config):
        for text in gpus.lines(workload, config.topology, config.price):
            log(text)
        return []
    topology = topologies.by_name(config.topology)
    check(config)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "libtpu"))
    log(
        f"{topology}; {config.training_stage} of {config.model}, {tokens_per_step(workload):,} "
        f"tokens per step, {workload.train.num_steps:,} steps ({versions})"
    )
    layouts = compile_all(config, candidates(config, workload, topology, log), topology, log)
    log(table.HEADER)
    for planned in layouts:
        log(table.line(planned, config.price))
    if layouts and layouts[0].estimate is not None:
        log("details of the first layout:")
        for text in table.details(layouts[0].result):
            log(text)
    records = [planned.record() for planned in layouts]
    if config.output:
        record = {
            "date": datetime.date.today().isoformat(),
            "versions": versions,
            "config": dataclasses.asdict(config),
            "layouts": records,
        }
        write_json(config.output, record)
    return records


def is_gpus(config: Config) -> bool:
    return config.topology.split("-")[0] in gpus.KINDS


# Flags of the search; with one layout, or for GPUs, they would change nothing.
_OF_SEARCH = ("max_tensor", "max_context", "compile")
_OF_COMPILATION = ("mesh", "remat", "micro_batches", "compiler_options", "output", "keep_hlo")


def refuse_flags_without_effect(config: Config) -> None:
    """Raises ConfigError for flags that the other flags make meaningless."""
    if is_gpus(config):
        names = (*_OF_COMPILATION, *_OF_SEARCH)
        why = f"--topology={config.topology} estimates the best layouts, and compiles none"
    elif config.mesh is not None and config.remat and config.micro_batches:
        names, why = _OF_SEARCH, "--mesh, --remat and --micro_batches leave one layout"
    elif config.mesh is not None:
        names, why = ("max_tensor", "max_context"), "--mesh leaves nothing to search"
    else:
        return
    set_ = [f"--{name}" for name in names if getattr(config, name) != getattr(Config(), name)]
    if set_:
        raise ConfigError(
            f"{why}, so {', '.join(set_)} would have no effect.",
            ", ".join(set_),
            f"remove {'it' if len(set_) == 1 else 'them'}"
            + (", or choose a TPU slice." if is_gpus(config) else "."),
        )


def check(config: Config) -> None:
    """Raises ConfigError if libtpu is missing or a compiler option is malformed."""
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "libtpu is not installed.",
            "experiments.plan",
            "run pip install 'jax[tpu]'; libtpu compiles without a TPU.",
        )
    malformed = [text for text in config.compiler_options if "=" not in text]
    if malformed:
        raise ConfigError(
            f"{malformed[0]!r} is not a valid compiler option.",
            "--compiler_options",
            "pass name=value, separated by commas.",
        )


def compile_all(
    config: Config, layouts: list[Workload], topology, log: Callable[[str], None]
) -> list[table.PlannedLayout]:
    """Compiles each layout and logs progress; returns them sorted, best first."""
    options = dict(text.split("=", 1) for text in config.compiler_options)
    planned_layouts = []
    for number, layout in enumerate(layouts, start=1):
        keep = None
        if config.keep_hlo:
            pathlib.Path(config.keep_hlo).mkdir(parents=True, exist_ok=True)
            model = config.model.replace("/", "_")
            keep = pathlib.Path(config.keep_hlo) / f"{model}_{config.topology}_{number}.hlo"
        log(
            f"{number} of {len(layouts)}: compiling {table.mesh_name(layout.mesh)}, remat "
            f"{layout.model.remat}, micro-batches {layout.train.micro_batches} (minutes)"
        )
        result = compile_in_subprocess(layout, topology, options=options, keep=keep)
        guess = None if result.error else estimate(result, layout, topology)
        planned = table.PlannedLayout(layout, topology, result, guess)
        planned_layouts.append(planned)
        log(
            f"{number} of {len(layouts)}, {result.compile_seconds:.0f} s: "
            + table.line(planned, config.price)
        )
        if not planned.fully_parsed:
            log(
                f"DO NOT TRUST THESE TIMES: only {planned.parsed_flops_ratio:.0%} of the model's "
                "FLOPs were found in the compiled program. Please report this with the versions "
                "above and the file that --keep_hlo writes."
            )
    return sorted(planned_layouts, key=lambda planned: planned.rank)


if __name__ == "__main__":
    flags.run(main, __doc__, {"plan": Config()})
