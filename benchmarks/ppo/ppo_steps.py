"""Our full PPO steps, timed: random weights, completions of equal length, one device.

No completion ends early: the end token is the last ID of the vocabulary, which the tokenizer's
vocabulary size excludes, so it is never sampled. Every step therefore does the same work.
"""

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from experiments.ppo import RECIPE  # learning rates, clips, the KL coefficient
from qwen_jax.align import ppo
from qwen_jax.align.ppo_config import PPOConfig
from qwen_jax.align.ppo_state import rollout_sharding
from qwen_jax.align.rollout import Prompts, Sampler, sampling_inputs
from qwen_jax.align.rollout_programs import compiled_programs, rollout_programs
from qwen_jax.config import MeshConfig, ModelConfig
from qwen_jax.model.spec import init_from, param_specs
from qwen_jax.model.value_head import scoring_specs
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.parallel.sharding import sharding_for, use_layout
from qwen_jax.parallel.xla_options import compile_for
from qwen_jax.train.optimizer import make_optimizer
from qwen_jax.train.state import abstract_state, make_state


class Numbers:
    """A tokenizer whose text is the token IDs as numbers."""

    def __init__(self, vocab_size: int):
        self.im_end = self.vocab_size = vocab_size - 1

    def decode(self, ids) -> str:
        return " ".join(map(str, np.asarray(ids).tolist()))


class TimedSteps:
    """PPO steps of a run, each with new random prompts."""

    def __init__(
        self,
        model: ModelConfig,
        *,
        prompts: int,
        samples: int,
        prompt_tokens: int,
        new_tokens: int,
        top_p: float,
    ):
        self.model = model
        self._shape, self._rng = (prompts, prompt_tokens), np.random.default_rng(0)
        settings = dataclasses.replace(
            RECIPE.ppo,
            value_warmup_steps=0,
            pretrain_coefficient=0.0,
            samples_per_prompt=samples,
            top_p=top_p,
            max_new_tokens=new_tokens,
        )
        self._mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
        self._sharding = rollout_sharding(self._mesh)
        optimizers = [
            make_optimizer(adam, num_steps=1000)
            for adam in (RECIPE.optimizer, RECIPE.value_optimizer)
        ]
        with use_layout(self._mesh):
            self.state = self._initial_state(optimizers)
            self._sampler = self._compile_sampler(settings)
            step = ppo.make_ppo_step(
                model,
                settings,
                policy_optimizer=optimizers[0],
                value_optimizer=optimizers[1],
                seed=0,
            )
            self._step = compile_for(
                self._mesh.devices.flat[0].platform, step.lower(self.state, self._batch(0))
            )

    def take(self, number: int) -> dict[str, float]:
        """Runs one step; returns the seconds of its phases, which sum to the step time."""
        with use_layout(self._mesh):
            begin, cpu = time.perf_counter(), time.process_time()
            batch = jax.block_until_ready(self._batch(number))
            scored = time.perf_counter()
            self.state, self.metrics = jax.block_until_ready(self._step(self.state, batch))
            finished = time.perf_counter()
            self.cpu = time.process_time() - cpu  # CPU seconds of all threads
        return {
            "generation": self._generated - begin,
            "scoring": scored - self._generated,
            "updates": finished - scored,
        }

    def _initial_state(self, optimizers) -> ppo.PPOState:
        specs = param_specs(self.model), scoring_specs(self.model)
        abstract = [
            abstract_state(spec, optimizer, self._mesh, dtype=self.model.param_dtype).replace(
                halted=None
            )
            for spec, optimizer in zip(specs, optimizers, strict=True)
        ]
        policy, value = (
            make_state(seed, *of)
            for seed, of in enumerate(zip(specs, optimizers, abstract, strict=True))
        )
        everywhere = policy.step.sharding
        return ppo.PPOState(
            step=jax.device_put(np.int32(0), everywhere),
            policy=policy,
            value=value,
            rewards=jax.device_put(ppo.initial_moments(), everywhere),
            halted=jax.device_put(np.bool_(False), everywhere),
        )

    def _reference(self):
        specs = param_specs(self.model)
        return jax.jit(
            lambda key: init_from(specs, key, self.model.compute_dtype),
            out_shardings=sharding_for(specs, self._mesh),
        )(jax.random.key(0))

    def _compile_sampler(self, settings: PPOConfig) -> Sampler:
        tokenizer: Any = Numbers(self.model.vocab_size)  # implements the methods that Sampler calls
        frozen = ppo.FrozenModels(self._reference(), None)
        inputs = sampling_inputs(self._prompts(0), 0, config=settings, tokenizer=tokenizer, seed=0)
        programs = compiled_programs(
            rollout_programs(self.model, settings, end_id=tokenizer.im_end),
            self.state.params,
            frozen,
            inputs,
            self._sharding,
        )
        return Sampler(
            settings,
            tokenizer,
            programs=programs,
            frozen=frozen,
            sharding=self._sharding,
            reward_functions=[self._reward],
        )

    def _prompts(self, number: int) -> Prompts:
        P, T = self._shape
        return Prompts(
            tokens=self._rng.integers(0, self.model.vocab_size - 1, (P, T), dtype=np.int32),
            lengths=np.full(P, T, np.int32),
            indices=np.arange(P, dtype=np.int32) + P * number,
        )

    def _batch(self, number: int) -> ppo.PPOBatch:
        rollout = self._sampler(self._prompts(number), self.state, number)
        return ppo.PPOBatch(rollout=jax.device_put(rollout, self._sharding), pretrain=None)

    def _reward(self, prompts, completions):
        # Completions are on the host now; the scoring program may still be running.
        self._generated = time.perf_counter()
        return [float(len(set(text.split()))) for text in completions]
