"""Peer: Tunix's PPO with a Qwen2 of the same size. Run in an environment with google-tunix.

Uses Tunix's vanilla rollout engine, a critic from create_critic_model, a reference model and a
reward function; all other settings are defaults. Prints one line of JSON: seconds of every step and
its phases, and versions.
"""

import json
import sys
import time
from importlib.metadata import version

import flax
import jax
import numpy as np
import optax
from flax import nnx
from tunix.models.qwen2.model import ModelConfig, Qwen2
from tunix.rl import rl_cluster
from tunix.rl.ppo.ppo_learner import PPOConfig, PPOLearner
from tunix.rl.rollout.base_rollout import RolloutConfig
from tunix.rl.utils import create_critic_model


class Numbers:
    """A tokenizer whose text is token IDs. No ID is an end or pad token: all lengths are equal."""

    def encode(self, text, **settings):
        return [int(word) for word in text.split()]

    def decode(self, ids, **settings):
        return " ".join(map(str, ids))

    def bos_id(self):
        return 0  # not prepended to prompts

    def eos_id(self):
        return -1

    def pad_id(self):
        return -2


class Timed(PPOLearner):
    """A timed learner. It waits for each phase, which the next phase fully depends on anyway."""

    def start(self):
        self.parts, self.cpu = [], []
        self._generate, self.rl_cluster.generate = self.rl_cluster.generate, self.generate

    def generate(self, *arguments, **settings):
        output = self._generate(*arguments, **settings)  # on the host: already finished
        self.generated = time.perf_counter()
        return output

    def _generate_and_compute_advantage(self, *arguments, **settings):
        output = jax.block_until_ready(
            super()._generate_and_compute_advantage(*arguments, **settings)
        )
        self.scored = time.perf_counter()
        return output

    def _run_global_step(self, *arguments, **settings):
        begin, cpu = time.perf_counter(), time.process_time()
        super()._run_global_step(*arguments, **settings)
        jax.block_until_ready(
            [
                nnx.state(trainer.model)
                for trainer in (self.rl_cluster.actor_trainer, self.rl_cluster.critic_trainer)
            ]
        )
        finished = time.perf_counter()
        self.cpu.append(time.process_time() - cpu)
        self.parts.append(
            {
                "generation": self.generated - begin,
                "scoring": self.scored - self.generated,
                "updates": finished - self.scored,
            }
        )


def main(size: dict) -> None:
    config = ModelConfig(
        num_layers=size["num_layers"],
        vocab_size=size["vocab_size"],
        embed_dim=size["hidden_size"],
        hidden_dim=size["ffn_size"],
        num_heads=size["num_heads"],
        head_dim=size["hidden_size"] // size["num_heads"],
        num_kv_heads=size["num_heads"],
        rope_theta=size["rope_base"],
        norm_eps=size["norm_epsilon"],
    )
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with mesh:
        actor, reference = (Qwen2(config, rngs=nnx.Rngs(0)) for _ in range(2))
        critic = create_critic_model(actor)
    steps, T = size["warm_up"] + size["steps"], size["prompt_tokens"] + size["new_tokens"]

    def optimizer(rate):
        return optax.chain(
            optax.clip_by_global_norm(size["clip_norm"]),
            optax.adam(rate, size["beta1"], size["beta2"], size["epsilon"]),
        )

    cluster = rl_cluster.RLCluster(
        actor=actor,
        critic=critic,
        reference=reference,
        tokenizer=Numbers(),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh={role: mesh for role in rl_cluster.Role},
            rollout_engine="vanilla",
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optimizer(size["policy_rate"]),
                critic_optimizer=optimizer(size["value_rate"]),
                eval_every_n_steps=steps + 1,
                max_steps=steps,
            ),
            rollout_config=RolloutConfig(
                max_tokens_to_generate=size["new_tokens"],
                temperature=size["temperature"],
                top_p=size["top_p"],
                max_prompt_length=size["prompt_tokens"],
                kv_cache_size=T,
            ),
        ),
    )
    learner = Timed(
        cluster,
        PPOConfig(
            beta=size["kl_coefficient"],
            clip_range_value=size["value_clip"],
            kl_method="kl",
            epsilon=size["ratio_clip"],
            gae_lambda=size["gae_lambda"],
        ),
        reward_fns=lambda prompts, completions, **settings: [
            float(len(set(text.split()))) for text in completions
        ],
    )
    learner.start()
    rng, samples = np.random.default_rng(0), size["samples"]
    batches = [
        {
            "prompts": np.asarray(
                [
                    " ".join(map(str, prompt))
                    for prompt in np.repeat(
                        rng.integers(
                            1, size["vocab_size"], (size["prompts"], size["prompt_tokens"])
                        ),
                        samples,
                        axis=0,
                    )
                ]
            )
        }
        for _ in range(steps)
    ]
    learner.train(batches)
    print(
        json.dumps(
            {
                "parts": learner.parts[size["warm_up"] :],
                "cpu": learner.cpu[size["warm_up"] :],
                "parameters": sum(x.size for x in jax.tree.leaves(nnx.state(actor, nnx.Param))),
                "versions": f"google-tunix {version('google-tunix')}, jax {jax.__version__}, "
                f"flax {flax.__version__}",
            }
        )
    )


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    main(json.loads(sys.argv[1]))
