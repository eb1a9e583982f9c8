"""Know before you pay: what a run takes on chips that you do not have.

Compiles the real train step of a stage, with our attention kernel in it, for a real slice of TPUs,
on a machine without one (libtpu compiles; no TPU is asked). Prints, for the best few layouts:
memory of a chip by kind and whether it fits, collectives by kind and bytes, an estimate of a step's
time, of tokens a second, of MFU by both formulas, and of the chip hours of the whole recipe.

    pip install "jax[tpu]"
    python -m experiments.plan --model=14b --topology=v5p-256
    python -m experiments.plan --model=7b --topology=v5e-256 --stage=ppo
    ... --mesh=1,64,2,1 --remat=block --micro_batches=2     # one layout, in full

Names of slices are Google's: v5p-N counts tensor cores, of which a chip has two (v5p-256 is 128
chips); v5e-N and v6e-N count chips. v5p:4x8x8 names the torus. JAX sees a chip as one device.

Times are estimates, by the compiler's own cost model and the makers' figures of links and memory
(qwen_jax/plan/costs.py says which overlap is assumed); nothing is measured. A layout that does not
fit is a line of the table. PPO's estimate is of the update: sampling is another program, left out.
The reward model's chip hours are of 1,000 steps, as its recipe counts passes over the pairs.
For GPUs (--topology=h100-64, h200-8) nothing is compiled, and the line is a paper estimate alone.
"""

import dataclasses
import datetime
import importlib.metadata
import importlib.util
import math
import pathlib
from collections.abc import Callable

from qwen_jax.cli import flags
from qwen_jax.config import MeshConfig, option
from qwen_jax.errors import ConfigError, unknown_name
from qwen_jax.plan import gpus, search, table, topologies
from qwen_jax.plan.estimate import estimate, tokens_per_step
from qwen_jax.plan.program import compile_apart
from qwen_jax.plan.stages import Workload
from qwen_jax.utils.files import write_json

from . import ppo, pretrain, reward_model

STAGES = ("pretrain", "reward_model", "ppo")
_REMAT = {"nothing": "none"}  # the flag's "none" is a search


@dataclasses.dataclass(frozen=True)
class Config:
    """What is to be planned, and how far to look."""

    model: str = option("7b", "a recipe of pretraining: 1.8b, 7b or 14b")
    topology: str = option("v5p-256", "a slice, as named above")
    stage: str = option("pretrain", "pretrain, reward_model or ppo")
    mesh: str | None = option(None, "data,fsdp,tensor,context; none: search")
    remat: str | None = option(
        None, "recomputed: nothing, dots (not products), block (all); none: search"
    )
    micro_batches: int | None = option(None, "none: search")
    context_length: int | None = option(None, "tokens of a row; none: the recipe's")
    batch_tokens: int | None = option(None, "of a step; none: the recipe's")
    max_tensor: int = option(8, "the most devices to cut heads over")
    max_context: int = option(1, "the most devices to cut rows over (ring attention)")
    compile: int = option(4, "layouts to compile, the best on paper")
    price: float | None = option(None, "of a chip hour, to turn hours into money")
    compiler_options: tuple[str, ...] = option((), "name=value, beside parallel/xla_options.py")
    output: str | None = option(None, "a .json file for all that was found")
    keep_hlo: str | None = option(None, "a folder for the compiled programs' text")


def workload_of(config: Config) -> Workload:
    """The recipe's workload, with the flags' changes.

    Raises:
      ConfigError: an unknown stage or size, or a batch that is no number of rows.
    """
    if config.stage not in STAGES:
        raise unknown_name("stage", config.stage, STAGES, "--stage")
    if config.model not in pretrain.RECIPES:
        raise unknown_name("model", config.model, pretrain.RECIPES, "--model")
    pretraining = pretrain.RECIPES[config.model]
    later = {"reward_model": reward_model.RECIPE, "ppo": ppo.RECIPE}
    recipe = later.get(config.stage, pretraining)
    model, train = pretraining.model, recipe.train
    if config.stage in later:
        model = later[config.stage].model.apply(model)
    tokens = train.batch_size * model.context_length
    if config.context_length is not None:
        model = dataclasses.replace(model, context_length=config.context_length)
    wanted = config.batch_tokens or tokens
    if wanted % model.context_length:
        raise ConfigError(
            f"{wanted} tokens are no whole number of rows of {model.context_length}.",
            "--batch_tokens, --context_length",
            "use a multiple.",
        )
    if config.batch_tokens and config.stage != "pretrain":
        raise ConfigError(
            f"--batch_tokens is of pretraining, and this is {config.stage}.",
            "--batch_tokens",
            "leave it out.",
        )
    if config.stage == "pretrain":
        steps = round(train.num_steps * tokens / wanted)
        train = dataclasses.replace(
            train, batch_size=wanted // model.context_length, num_steps=steps, micro_batches=1
        )
    more = {}
    if config.stage == "reward_model":  # its steps are of the pairs that somebody has
        train = dataclasses.replace(train, num_steps=1000)
    if config.stage == "ppo":
        more = {
            "ppo": ppo.RECIPE.ppo,
            "value_optimizer": ppo.RECIPE.value_optimizer,
            "prompt_tokens": ppo.RECIPE.data.max_prompt_tokens,
        }
    return Workload(config.stage, model, recipe.optimizer, train, **more)


def candidates(config: Config, workload: Workload, topology, log) -> list[Workload]:
    """The layout that the flags give, or the best on paper."""
    mesh = None if config.mesh is None else mesh_of(config.mesh)
    remat = _REMAT.get(config.remat or "", config.remat)
    if remat not in (None, *search.REMATS):
        raise unknown_name("remat policy", remat, ("nothing", "dots", "block"), "--remat")
    if mesh is not None and math.prod(dataclasses.astuple(mesh)) != topology.chips:
        raise ConfigError(
            f"--mesh={config.mesh} is of {math.prod(dataclasses.astuple(mesh))} chips, "
            f"{topology.name} has {topology.chips}.",
            "--mesh, --topology",
            "give sizes whose product is the number of chips, or leave --mesh out.",
        )
    if mesh is not None and remat and config.micro_batches:
        return [search.laid_out(workload, mesh, remat, config.micro_batches)]
    found, looked_at, too_large = search.best(
        workload,
        topology,
        number=config.compile,
        max_tensor=config.max_tensor,
        max_context=config.max_context,
        mesh=mesh,
        remat=remat,
        micro=config.micro_batches,
    )
    if not found:
        raise ConfigError(
            f"of {looked_at} layouts none should fit, on paper."
            if looked_at
            else f"no layout divides the model's sizes and the batch over {topology.chips} chips.",
            "--model, --topology",
            "take a larger slice, or --remat=block and more --micro_batches."
            if looked_at
            else "take a smaller slice, other --micro_batches, or a larger --max_tensor.",
        )
    log(
        f"{looked_at} layouts, of which {too_large} should not fit; compiling {len(found)}, the "
        "best on paper"
    )
    return [one.workload for one in found]


def mesh_of(text: str) -> MeshConfig:
    """ "1,64,2,1" -> MeshConfig(data=1, fsdp=64, tensor=2, context=1)."""
    sizes = text.replace(" ", "").split(",")
    if len(sizes) != 4 or not all(size.isdigit() for size in sizes):
        raise ConfigError(
            f"{text!r} is no mesh.",
            "--mesh",
            "give four sizes, of data, fsdp, tensor and context: --mesh=1,64,2,1.",
        )
    return MeshConfig(*map(int, sizes))


def main(config: Config) -> None:
    plan(config)


def plan(config: Config, log=flags.log) -> list[dict]:
    """Prints the table; returns what was found of each layout, fastest first."""
    workload = workload_of(config)
    if config.topology.split("-")[0] in gpus.KINDS:
        for text in gpus.lines(workload, config.topology, config.price):
            log(text)
        return []
    topology = topologies.by_name(config.topology)
    check(config)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "libtpu"))
    log(
        f"{topology}; {config.stage} of {config.model}, {tokens_per_step(workload):,} tokens a "
        f"step, {workload.train.num_steps:,} steps ({versions})"
    )
    found = compile_all(config, candidates(config, workload, topology, log), topology, log)
    log(table.HEADER)
    for planned in found:
        log(table.line(planned, config.price))
    if found and found[0].estimate is not None:
        log("the first of these:")
        for text in table.details(found[0].result):
            log(text)
    rows = [planned.record() for planned in found]
    if config.output:
        record = {
            "date": datetime.date.today().isoformat(),
            "versions": versions,
            "config": dataclasses.asdict(config),
            "layouts": rows,
        }
        write_json(config.output, record)
    return rows


def check(config: Config) -> None:
    """Raises ConfigError for what compiling needs and is not there."""
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "libtpu is not installed.",
            "experiments.plan",
            "pip install 'jax[tpu]': it compiles for TPUs without one.",
        )
    wrong = [text for text in config.compiler_options if "=" not in text]
    if wrong:
        raise ConfigError(
            f"{wrong[0]!r} is no compiler option.",
            "--compiler_options",
            "write name=value, with commas between several.",
        )


def compile_all(
    config: Config, layouts: list[Workload], topology, log: Callable[[str], None]
) -> list[table.Planned]:
    """Compiles each layout, with a line before and after it; the best is the first."""
    options = dict(text.split("=", 1) for text in config.compiler_options)
    found = []
    for number, layout in enumerate(layouts, start=1):
        keep = None
        if config.keep_hlo:
            pathlib.Path(config.keep_hlo).mkdir(parents=True, exist_ok=True)
            keep = pathlib.Path(config.keep_hlo) / f"{config.model}_{config.topology}_{number}.hlo"
        log(
            f"{number} of {len(layouts)}: compiling {table.mesh_name(layout.mesh)}, remat "
            f"{layout.model.remat}, micro-batches {layout.train.micro_batches} (minutes)"
        )
        result = compile_apart(layout, topology, options=options, keep=keep)
        guess = None if result.error else estimate(result, layout, topology)
        planned = table.Planned(layout, topology, result, guess)
        found.append(planned)
        log(
            f"{number} of {len(layouts)}, {result.compile_seconds:.0f} s: "
            + table.line(planned, config.price)
        )
        if not planned.whole:
            log(
                f"DO NOT TRUST ITS TIMES: of the model's own FLOPs {planned.flops_found:.0%} were "
                "found in the compiled program, so some of its work was not read. Please report "
                "it, with the versions above and the file that --keep_hlo leaves."
            )
    return sorted(found, key=lambda planned: planned.rank)


if __name__ == "__main__":
    flags.run(main, __doc__, {"plan": Config()})
