"""The peer: Tunix's PPO on a Qwen2 of the same size. Run in an environment with google-tunix.

Its vanilla rollout engine, a critic made by create_critic_model, a reference model and a reward
function; everything else as it comes. Prints one line of JSON: seconds of every step and of its
parts, and versions.
"""

import json
import sys
import time

import flax
import jax
import numpy as np
import optax
from flax import nnx
from importlib.metadata import version
from tunix.models.qwen2.model import ModelConfig, Qwen2
from tunix.rl import rl_cluster
from tunix.rl.ppo.ppo_learner import PPOConfig, PPOLearner
from tunix.rl.rollout.base_rollout import RolloutConfig
from tunix.rl.utils import create_critic_model


class Numbers:
    """Ids written out as numbers. No id ends an answer or fills a row up: all have their length."""

    def encode(self, text, **settings):
        return [int(word) for word in text.split()]

    def decode(self, ids, **settings):
        return " ".join(map(str, ids))

    def bos_id(self):
        return 0  # none is put in front of a prompt

    def eos_id(self):
        return -1

    def pad_id(self):
        return -2


class Timed(PPOLearner):
    """The learner with a clock. Parts are waited for, so they are timed in steps of their own."""

    def start(self, whole: int):
        """The first `whole` steps are timed as they come, those after them in parts."""
        self.whole, self.steps, self.parts = whole, [], []
        cluster, self._generate = self.rl_cluster, self.rl_cluster.generate
        cluster.generate = self.generate

    def generate(self, *arguments, **settings):
        begin = time.perf_counter()
        found = self._generate(*arguments, **settings)  # on the host: nothing is left to wait for
        self.generation = time.perf_counter() - begin
        return found

    def _generate_and_compute_advantage(self, *arguments, **settings):
        found = super()._generate_and_compute_advantage(*arguments, **settings)
        if len(self.steps) >= self.whole:
            jax.block_until_ready(found)
        self.sampled = time.perf_counter()
        return found

    def _run_global_step(self, *arguments, **settings):
        begin = time.perf_counter()
        super()._run_global_step(*arguments, **settings)
        cluster = self.rl_cluster
        jax.block_until_ready((nnx.state(cluster.actor_trainer.model),
                               nnx.state(cluster.critic_trainer.model)))
        seconds = time.perf_counter() - begin
        self.steps.append(seconds)
        if len(self.steps) > self.whole:
            sampled = self.sampled - begin
            self.parts.append({"generation": self.generation,
                               "scoring": sampled - self.generation, "updates": seconds - sampled})


def main(size: dict) -> None:
    config = ModelConfig(
        num_layers=size["num_layers"], vocab_size=size["vocab_size"],
        embed_dim=size["hidden_size"], hidden_dim=size["ffn_size"], num_heads=size["num_heads"],
        head_dim=size["hidden_size"] // size["num_heads"], num_kv_heads=size["num_heads"],
        rope_theta=10_000, norm_eps=1e-6)
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"),
                         axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with mesh:
        actor, reference = (Qwen2(config, rngs=nnx.Rngs(0)) for _ in range(2))
        critic = create_critic_model(actor)
    steps = size["warm_up"] + 2 * size["steps"]
    adam, T = size["adam"], size["prompt_tokens"] + size["new_tokens"]

    def optimizer(rate):
        return optax.chain(optax.clip_by_global_norm(adam["clip_norm"]),
                           optax.adam(rate, adam["beta1"], adam["beta2"], adam["epsilon"]))

    cluster = rl_cluster.RLCluster(
        actor=actor, critic=critic, reference=reference, tokenizer=Numbers(),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh={role: mesh for role in rl_cluster.Role}, rollout_engine="vanilla",
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optimizer(adam["policy_rate"]),
                critic_optimizer=optimizer(adam["value_rate"]),
                eval_every_n_steps=steps + 1, max_steps=steps),
            rollout_config=RolloutConfig(
                max_tokens_to_generate=size["new_tokens"], temperature=size["temperature"],
                top_p=size["top_p"], max_prompt_length=size["prompt_tokens"], kv_cache_size=T)))
    learner = Timed(
        cluster, PPOConfig(beta=size["kl_coefficient"], clip_range_value=size["value_clip"]),
        reward_fns=lambda prompts, completions, **settings: [
            float(len(set(answer.split()))) for answer in completions])
    learner.start(size["warm_up"] + size["steps"])
    draw, samples = np.random.default_rng(0), size["samples"]
    batches = [{"prompts": np.asarray([" ".join(map(str, row)) for row in np.repeat(
        draw.integers(1, size["vocab_size"], (size["prompts"], size["prompt_tokens"])),
        samples, axis=0)])} for _ in range(steps)]
    learner.train(batches)
    print(json.dumps({
        "seconds": learner.steps[size["warm_up"]:learner.whole], "parts": learner.parts,
        "parameters": sum(x.size for x in jax.tree.leaves(nnx.state(actor, nnx.Param))),
        "versions": f"google-tunix {version('google-tunix')}, jax {jax.__version__}, "
                    f"flax {flax.__version__}"}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
