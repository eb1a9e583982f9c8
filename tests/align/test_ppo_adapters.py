"""PPO of adapters: the base weights stay frozen, with and without a reward model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from qwen_jax import sizes
from qwen_jax.align import ppo
from qwen_jax.align.ppo_state import rollout_sharding
from qwen_jax.align.rollout import PromptDataset, Sampler, collate
from qwen_jax.align.rollout_programs import rollout_programs
from qwen_jax.config import MeshConfig, OptimizerConfig
from qwen_jax.model.lora import LoRAConfig, init_fully_trained, lora_specs
from qwen_jax.model.spec import param_specs
from qwen_jax.model.value_head import scoring_specs
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.parallel.sharding import use_layout
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.train.optimizer import make_optimizer
from qwen_jax.train.state import abstract_state, make_state
from qwen_jax.train.telemetry import memory
from tests.helpers.weights import initial

TOKENIZER = Tokenizer({bytes([byte]): byte for byte in range(256)})
MODEL = dataclasses.replace(  # one layer: tests/model/test_lora.py has several
    sizes.TINY, vocab_size=464, num_layers=1, context_length=64, initializer_range=0.1
)
CONFIG = ppo.PPOConfig(value_warmup_steps=1, max_new_tokens=5)
LORA = LoRAConfig(rank=3, alpha=6.0, targets=("wv", "w_up"))
OPTIMIZER = make_optimizer(
    OptimizerConfig(peak_learning_rate=0.05, schedule="constant", warmup_steps=0), 10
)


def length(prompts, completions):
    """A reward function."""
    return [float(len(completion)) for completion in completions]


@pytest.fixture(
    scope="module",
    params=["a reward model", pytest.param("only a function", marks=pytest.mark.slow)],
)
def seen(request):
    """The frozen models, a memory measurement, and three steps: states, rollouts and metrics."""
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    with use_layout(mesh):
        reference, reward = initial(param_specs(MODEL)), initial(scoring_specs(MODEL), seed=1)
        if request.param != "a reward model":
            reward = None
        frozen = ppo.FrozenModels(reference, reward)
        states = []
        for full_specs in (param_specs, scoring_specs):
            specs = lora_specs(MODEL, LORA, full_specs)
            abstract = abstract_state(specs, OPTIMIZER, mesh, dtype="float32").replace(halted=None)
            states.append(make_state(0, specs, OPTIMIZER, abstract))
        states[1] = states[1].replace(params=init_fully_trained(frozen.value, states[1].params))
        state = ppo.PPOState(
            step=jnp.int32(0),
            policy=states[0],
            value=states[1],
            rewards=ppo.initial_moments(),
            halted=jnp.bool_(False),
        )
        # On the mesh, like the next state: otherwise the second rollout would be compiled again.
        state, frozen = jax.device_put((state, frozen), NamedSharding(mesh, PartitionSpec()))
        sampler = Sampler(
            CONFIG,
            TOKENIZER,
            programs=rollout_programs(MODEL, CONFIG, end_id=TOKENIZER.im_end, lora=LORA),
            frozen=frozen,
            sharding=rollout_sharding(mesh),
            reward_functions=[length],
        )
        prompts = PromptDataset([TOKENIZER.encode(text) for text in ("one", "number two")])
        step = ppo.make_ppo_step(
            MODEL, CONFIG, policy_optimizer=OPTIMIZER, value_optimizer=OPTIMIZER, seed=0, lora=LORA
        )
        before, compiled, found = jax.device_get(frozen), None, []
        for number in range(3):
            rollout = sampler(collate([prompts[0], prompts[1]]), state, number)
            batch = ppo.PPOBatch(rollout, None, frozen)
            if compiled is None:
                compiled = step.lower(state, batch).compile()
                measured = memory.measure(
                    compiled, state, platform="tpu", available=None, frozen=frozen
                )
            old = jax.device_get(state)
            state, metrics = compiled(state, batch)
            found.append((old, jax.device_get(rollout), jax.device_get(metrics)))
    return before, jax.device_get(frozen), measured, found, jax.device_get(state)


def test_make_ppo_step_lora_policy_equals_the_reference_until_trained(seen):
    """Up to rounding: the two are different programs, which a compiler may fuse differently."""
    *_, found, _ = seen
    for _, rollout, metrics in found[:2]:
        np.testing.assert_allclose(rollout.log_probs, rollout.reference_log_probs, rtol=1e-6)
        assert abs(metrics["rollout/kl"]) < 1e-5
    assert abs(found[2][2]["rollout/kl"]) > 1e-3


def test_sampler_lora_samples_from_the_adapted_policy(seen):
    """Merged weights change only the rounding of values near 6."""
    for _, _, metrics in seen[3]:
        assert metrics["rollout/sampler_logprob_gap"] < 2e-5


def test_make_ppo_step_lora_trains_only_adapters_and_score(seen):
    before, after, measured, found, last = seen
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)
    shapes = {leaf.shape for leaf in jax.tree.leaves((last.policy.params, last.value.params.trunk))}
    assert shapes and all(LORA.rank in shape for shape in shapes)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(found[0][0].params),
        jax.tree.leaves(last.params),
        strict=True,
    ):
        assert not np.array_equal(a, b), path
    if before.reward is not None:  # the value model starts as the reward model
        np.testing.assert_array_equal(found[0][0].value.params.score, before.reward.score)
    # One copy of each frozen model, however many models use it.
    assert measured.frozen == sum(leaf.nbytes for leaf in jax.tree.leaves(before))
