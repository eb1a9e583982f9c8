"""Reinforcement learning from human feedback: PPO with four models. Report: 3.2.2.

Policy and reference start from the SFT weights, the value model from the reward model's. Each step
samples two answers to each of its prompts, scores them, and trains the policy on them, after 50
steps in which the value model alone is trained.

    python -m experiments.ppo --init_from=runs/chat --reward_model=runs/reward \\
        --data.prompts=prompts.jsonl --run_dir=runs/ppo
    ... --reward_functions=qwen_jax.align.rewards:arithmetic     # instead, or added to it
    ... --lora.rank=16 --optimizer.peak_learning_rate=1e-4 --value_optimizer.peak_learning_rate=5e-4

With adapters (as in experiments.sft) the SFT weights are held once: the policy's stand beside the
reference. The value model's stand beside the reward model, or beside the reference where there is
none; its score is trained in full.

A reward function takes lists of questions and answers (texts) and returns a number for each answer.
Prompts are conversations (their last answer is left out) or objects with a "prompt".
"""

import contextlib
import dataclasses
import functools
import importlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from qwen_jax.align import ppo
from qwen_jax.align.ppo import Bases, PPOBatch, PPOConfig, PPOState
from qwen_jax.align.rollout import PromptRows, Sampler, collate
from qwen_jax.cli import flags
from qwen_jax.config import (
    DataConfig,
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
    option,
)
from qwen_jax.data.batches import Batches
from qwen_jax.data.chat.conversations import Counts
from qwen_jax.data.chat.prompts import read_prompts
from qwen_jax.data.loader import Loader
from qwen_jax.errors import ConfigError, unknown_name
from qwen_jax.model.lora import LoRAConfig, in_full, lora_specs
from qwen_jax.model.spec import abstract, param_specs, size
from qwen_jax.model.value_head import scoring_specs
from qwen_jax.parallel.mesh import check_batch, make_mesh
from qwen_jax.parallel.sharding import DEFAULT_RULES
from qwen_jax.pretrained import merged
from qwen_jax.pretrained.overrides import ModelOverrides
from qwen_jax.pretrained.start import (
    adopt,
    frozen_scoring_weights_of,
    frozen_weights_of,
    is_scoring_run,
    scoring_weights_of,
    start,
    weights_of,
)
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.train.adapters import describe
from qwen_jax.train.job import Frozen, Job, Program, RunFiles
from qwen_jax.train.optimizer import make_optimizer
from qwen_jax.train.resilience.exit import ended_by_signal
from qwen_jax.train.run import run
from qwen_jax.train.state import abstract_state, make_state
from qwen_jax.train.supervised import abstract_batch


@dataclasses.dataclass(frozen=True)
class PPOData:
    """Prompts, and what the pretraining gradient reads."""

    prompts: tuple[str, ...] = option((), ".json and .jsonl files")
    max_prompt_tokens: int = option(512, "longer ones are left out, counted")
    pretrain: DataConfig = DataConfig()  # token shards; none: no pretraining gradient


@dataclasses.dataclass(frozen=True)
class Config:
    """One run. train.batch_size is of answers: prompts times ppo.samples_per_prompt."""

    train: TrainConfig
    init_from: str = option("", "the SFT model's folder")
    reward_model: str | None = option(None, "the reward model's run folder")
    reward_functions: tuple[str, ...] = option((), "module:function, added to it")
    tokenizer: str | None = option(None, "a .tiktoken file; none: the one in init_from")
    data: PPOData = PPOData()
    ppo: PPOConfig = PPOConfig()
    model: ModelOverrides = ModelOverrides()  # all else of the model is that of init_from
    optimizer: OptimizerConfig = OptimizerConfig()  # of the policy
    value_optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoRAConfig = LoRAConfig()  # adapters beside the weights of both; off without a rank
    mesh: MeshConfig = MeshConfig()
    run_dir: str = option("runs/ppo", "checkpoints, metrics and the report page")


_ADAM = OptimizerConfig(
    peak_learning_rate=1e-6,  # report 3.2.2
    schedule="constant",
    warmup_steps=0,  # ours
    beta1=0.9,
    beta2=0.95,
    epsilon=1e-8,  # ours: as everywhere in the report
    weight_decay=0.0,
    clip_norm=1.0,
)  # ours
RECIPE = Config(
    ppo=PPOConfig(
        value_warmup_steps=50,
        samples_per_prompt=2,
        kl_coefficient=0.04,  # report 3.2.2
        value_clip=0.15,
        top_p=0.9,  # report 3.2.2
        pretrain_coefficient=0.5,
    ),  # ours: the report gives none
    model=ModelOverrides(remat="dots"),  # ours: keeps matrix products
    optimizer=_ADAM,
    value_optimizer=dataclasses.replace(_ADAM, peak_learning_rate=5e-6),  # report 3.2.2
    train=TrainConfig(num_steps=1000, batch_size=128, log_every=1, eval_every=None, save_every=50),
)  # ours
SMOKE = dataclasses.replace(
    RECIPE,
    data=PPOData(max_prompt_tokens=64),
    ppo=dataclasses.replace(RECIPE.ppo, value_warmup_steps=2, max_new_tokens=8),
    model=ModelOverrides(compute_dtype="float32"),
    optimizer=dataclasses.replace(RECIPE.optimizer, peak_learning_rate=1e-3),
    value_optimizer=dataclasses.replace(RECIPE.value_optimizer, peak_learning_rate=5e-3),
    train=TrainConfig(num_steps=6, batch_size=8, eval_every=None, save_every=3),
    run_dir="runs/ppo_smoke",
)
RECIPES = {"default": RECIPE, "smoke": SMOKE}
RECIPES |= dict.fromkeys(("1.8b", "7b", "14b"), "default")  # former names: init_from has the size


def main(config: Config) -> None:
    """Trains; a signal ends it with a checkpoint."""
    if not config.data.prompts:
        raise ConfigError("no prompts to answer.", "--data.prompts", "name .json or .jsonl files.")
    if config.reward_model is None and not config.reward_functions:
        raise ConfigError(
            "no reward.",
            "--reward_model, --reward_functions",
            "name a reward model's run folder, a function, or both.",
        )
    config, tokenizer = start(config)
    with ended_by_signal():
        reinforce(config, tokenizer)


def reinforce(config: Config, tokenizer: Tokenizer, emit=flags.emit):
    """The run itself; returns the last PPOState."""
    mesh = make_mesh(config.mesh)
    samples = config.ppo.samples_per_prompt
    counts = Counts()
    prompts = PromptRows(
        list(
            read_prompts(
                config.data.prompts,
                tokenizer,
                counts=counts,
                max_tokens=config.data.max_prompt_tokens,
            )
        )
    )
    emit(f"prompts: {counts}")
    _check(config, prompts.length, mesh)
    loader = _pretrain_loader(config, tokenizer)
    lora = None if config.lora.rank is None else config.lora
    optimizers = [
        make_optimizer(adam, config.train.num_steps)
        for adam in (config.optimizer, config.value_optimizer)
    ]
    wholes = param_specs, scoring_specs
    specs = [
        whole(config.model) if lora is None else lora_specs(config.model, lora, whole)
        for whole in wholes
    ]
    states = [
        abstract_state(spec, optimizer, mesh, dtype=config.model.param_dtype).replace(halted=None)
        for spec, optimizer in zip(specs, optimizers, strict=True)
    ]
    everywhere = NamedSharding(mesh, PartitionSpec())
    number = jax.ShapeDtypeStruct((), np.float32, sharding=everywhere)
    state = PPOState(
        step=jax.ShapeDtypeStruct((), np.int32, sharding=everywhere),
        policy=states[0],
        value=states[1],
        rewards=ppo.RunningMoments(count=number, mean=number, variance=number),
        halted=jax.ShapeDtypeStruct((), np.bool_, sharding=everywhere),
    )

    # Weights that stand still are held in the dtype that they are used in.
    frozen = Bases(
        *(abstract(whole(config.model), config.model.compute_dtype, mesh) for whole in wholes)
    )
    if config.reward_model is None:
        frozen = frozen.replace(reward=None)
    load_reference, load_reward, records = _loads(config)

    @functools.cache
    def bases() -> Bases:
        return Bases(load_reference(frozen.reference), frozen.reward and load_reward(frozen.reward))

    def make() -> PPOState:
        value_from = config.reward_model or config.init_from
        starts = (
            weights_of(config.init_from),
            scoring_weights_of(value_from, seed=config.train.seed),
        )
        policy, value = (
            make_state(
                config.train.seed,
                spec,
                optimizer,
                abstract,
                params=None if lora else start(abstract.params),
            )
            for spec, optimizer, abstract, start in zip(
                specs, optimizers, states, starts, strict=True
            )
        )
        if lora is not None:
            value = value.replace(params=in_full(bases().value, value.params))
        return PPOState(
            step=jax.device_put(np.int32(0), everywhere),
            policy=policy,
            value=value,
            rewards=jax.device_put(ppo.start_moments(), everywhere),
            halted=jax.device_put(np.bool_(False), everywhere),
        )

    sampler = Sampler(
        config.model,
        config.ppo,
        tokenizer,
        reference=frozen.reference,
        seed=config.train.seed,
        reward_model=frozen.reward and (frozen.reward, config.model),
        lora=lora,
        reward_functions=[_function(name) for name in config.reward_functions],
    )
    rows = NamedSharding(mesh, DEFAULT_RULES.partition_spec(("batch",)))
    source = Batches(
        prompts,
        seed=config.train.seed,
        collate=collate,
        batch_size=config.train.batch_size // samples,
    )

    @contextlib.contextmanager
    def batches(start_step: int) -> Iterator:
        """next_batch(step, state): a rollout of the current policy,
        and rows of pretraining data."""
        del start_step  # a batch is a function of its step
        sampler.load(bases())

        def next_batch(step: int, state: PPOState) -> PPOBatch:
            rollout = jax.device_put(sampler(source.batch(step), state, step), rows)
            pretrain = None if loader is None else jax.device_put(loader.batch(step), rows)
            return PPOBatch(rollout=rollout, pretrain=pretrain, bases=lora and bases())

        yield next_batch

    program = Program(
        state=state,
        make_state=make,
        step=ppo.make_ppo_step(
            config.model,
            config.ppo,
            policy_optimizer=optimizers[0],
            value_optimizer=optimizers[1],
            seed=config.train.seed,
            micro_batches=config.train.micro_batches,
            lora=lora,
        ),
        batch=_abstract_batch(config, prompts.length, mesh).replace(bases=lora and frozen),
        between=lambda: sampler.compile(states[0].params, states[1].params, source.batch(0), rows),
    )
    job = Job(
        training_stage="ppo",
        parameters="policy.params",
        mesh=mesh,
        program=program,
        batches=batches,
        frozen=Frozen(elsewhere=frozen) if lora is None else Frozen(in_batch=frozen),
        files=RunFiles(tokenizer, records),
        header=_header(config, prompts.length)
        + (() if lora is None else (describe(lora, size(specs), state, config.model, frozen),)),
    )
    return run(config, job, emit=emit)


def _loads(config: Config):
    """What loads the reference and the reward model (None: there is none), and what the run's
    folder is to say of them where adapters stand beside them."""
    if config.lora.rank is None:
        reward = config.reward_model and scoring_weights_of(config.reward_model, seed=0)
        return weights_of(config.init_from), reward, {}
    reference, record = frozen_weights_of(config.init_from, config)
    reward, records = None, {merged.NAME: record}
    if config.reward_model is not None:
        name = "value_base.json"
        reward, records[name] = frozen_scoring_weights_of(config.reward_model, config, name)
    return reference, reward, records


def _header(config: Config, prompt_length: int) -> tuple[str, ...]:
    samples = config.ppo.samples_per_prompt
    return (
        f"batch: {config.train.batch_size // samples} prompts, {samples} answers each, up to "
        f"{prompt_length} + {config.ppo.max_new_tokens} tokens",
        f"pretraining gradient: {_pretrain_rows(config)} rows of {config.model.context_length} "
        f"tokens a step, coefficient {config.ppo.pretrain_coefficient}"
        if _has_pretrain(config)
        else "pretraining gradient: none",
    )


def _check(config: Config, prompt_length: int, mesh) -> None:
    """Raises what is known to be wrong before anything is compiled."""
    train, settings = config.train, config.ppo
    if train.batch_size % settings.samples_per_prompt:
        raise ConfigError(
            f"{settings.samples_per_prompt} samples for each prompt do not divide "
            f"batch_size={train.batch_size}.",
            "train.batch_size",
            "use a multiple.",
        )
    pieces = train.micro_batches * settings.minibatches
    check_batch(train.batch_size, pieces, mesh)
    if _has_pretrain(config):
        check_batch(_pretrain_rows(config), pieces, mesh)
    longest = prompt_length + settings.max_new_tokens
    if longest > config.model.context_length:
        # The sampler would extend the context, as at inference, and the trainer would not.
        raise ConfigError(
            f"prompts of {prompt_length} and answers of {settings.max_new_tokens} tokens are "
            f"longer than the model's {config.model.context_length}.",
            "data.max_prompt_tokens, ppo.max_new_tokens",
            "lower one of them.",
        )
    if config.reward_model is None:
        return
    if not is_scoring_run(config.reward_model):
        raise ConfigError(
            "this is no run of a reward model.",
            config.reward_model,
            "train one with experiments.reward_model.",
        )
    theirs = adopt(config.model, config.reward_model, context_length=config.model.context_length)
    if theirs != config.model:
        ours, theirs = (dataclasses.asdict(model) for model in (config.model, theirs))
        raise ConfigError(
            "the reward model is not of the policy's architecture: "
            + ", ".join(
                f"{name} {theirs[name]}, not {ours[name]}"
                for name in ours
                if ours[name] != theirs[name]
            )
            + ".",
            config.reward_model,
            "train it from the same language model, with the same tokenizer.",
        )


def _pretrain_loader(config: Config, tokenizer: Tokenizer) -> Loader | None:
    if not _has_pretrain(config):
        return None
    return Loader(
        config.data.pretrain,
        context_length=config.model.context_length,
        batch_size=_pretrain_rows(config),
        end_of_text=tokenizer.end_of_text,
        vocab_size=config.model.vocab_size,
        tokenizer=tokenizer.fingerprint,
        seed=config.train.seed,
    )


def _has_pretrain(config: Config) -> bool:
    return bool(config.data.pretrain.sources) and config.ppo.pretrain_coefficient > 0


def _pretrain_rows(config: Config) -> int:
    return round(config.train.batch_size * config.ppo.pretrain_ratio)


def _abstract_batch(config: Config, prompt_length: int, mesh) -> PPOBatch:
    B, T = config.train.batch_size, prompt_length + config.ppo.max_new_tokens
    ids, numbers = (jax.ShapeDtypeStruct((B, T), dtype) for dtype in (np.int32, np.float32))
    row = jax.ShapeDtypeStruct((B,), np.float32)
    rollout = ppo.Rollout(
        tokens=ids,
        targets=ids,
        segment_ids=ids,
        actions=numbers,
        log_probs=numbers,
        sampler_log_probs=numbers,
        entropies=numbers,
        reference_log_probs=numbers,
        values=numbers,
        rewards=row,
        ended=row,
    )
    pretrain = None
    if _has_pretrain(config):
        pretrain = abstract_batch(_pretrain_rows(config), config.model.context_length)
    sharding = NamedSharding(mesh, DEFAULT_RULES.partition_spec(("batch",)))
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        PPOBatch(rollout=rollout, pretrain=pretrain),
    )


def _function(name: str):
    """module:function -> the function."""
    module, _, function = name.partition(":")
    try:
        found = vars(importlib.import_module(module))
    except ImportError as error:
        raise ConfigError(
            f"{error}.",
            f"--reward_functions={name}",
            "write module:function, importable from here.",
        ) from error
    if function not in found:
        raise unknown_name(
            "reward function",
            function,
            [n for n in found if n[0] != "_"],
            f"--reward_functions={name}",
        )
    return found[function]


if __name__ == "__main__":
    flags.run(main, __doc__, RECIPES)
