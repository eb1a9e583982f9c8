"""GRPO from folder to folder: rewards from columns of the prompts, resuming, adapters, refusals."""

import dataclasses
import functools
import importlib.machinery
import json
import sys
import types

import pytest

from experiments import grpo
from qwen_jax.align.grpo import train as train_grpo
from qwen_jax.errors import ConfigError
from qwen_jax.model.lora import LoRAConfig
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.plan.stages import Workload, build
from qwen_jax.pretrained.huggingface import load_pretrained
from qwen_jax.report.page import write_report
from tests.helpers.alignment import MODEL, config_of, full_and_resumed, records, run


@pytest.fixture
def rewards(monkeypatch):
    """The module of a user's reward functions."""
    module = types.ModuleType("my_rewards")
    monkeypatch.setitem(sys.modules, "my_rewards", module)
    module.__spec__ = importlib.machinery.ModuleSpec("my_rewards", None)  # it has no file
    return module


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "sums.jsonl"
    rows = [{"prompt": f"{i}+1", "answer": str(i + 1), "difficulty": i} for i in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(folder, run_dir, prompts, **changes):
    changes = {"reward_functions": ("my_rewards:reward",)} | changes
    return config_of(grpo, folder, run_dir, data={"prompts": (str(prompts),)}, **changes)


def test_grpo_learns_from_a_column_of_the_prompts(folder, prompts, rewards, tmp_path):
    seen = []

    def reward(completions, answer, **columns):
        seen.append((answer, columns["difficulty"]))
        return [len(set(text)) / (1 + len(text)) for text in completions]

    rewards.reward = reward
    output = run(grpo, config(folder, tmp_path / "run", prompts))
    assert "2 prompts, 4 completions each" in output and "KL weight 0.04" in output
    assert "not read" not in output  # the function reads all keys
    found = records(tmp_path / "run")
    assert len(found) == len(seen) == 6
    for answer, difficulty in seen:
        assert answer == [str(i + 1) for i in difficulty] and len(answer) == 8
        assert len(set(answer[:4])) == len(set(answer[4:])) == 1  # completions of one prompt
    # One update per rollout; two compilations of one function differ in their last digits.
    assert all(record["policy/ratio"] == pytest.approx(1, abs=1e-6) for record in found)
    assert abs(found[0]["rollout/kl"]) < 1e-4 < abs(found[-1]["rollout/kl"])
    assert all(record["policy/kl"] > -1e-6 for record in found)
    assert not any("value" in name for name in found[0])
    assert load_pretrained(tmp_path / "run")[0] == MODEL  # of the policy
    raw = json.loads((tmp_path / "run/config.json").read_text())
    assert (raw["training_stage"], raw["parameters"]) == ("grpo", "policy.params")


@pytest.mark.slow  # three runs; a quick test resumes PPO
@pytest.mark.parametrize("lora", [LoRAConfig(), LoRAConfig(rank=3)], ids=["full", "adapters"])
def test_grpo_resumes(folder, prompts, rewards, tmp_path, lora):
    rewards.reward = lambda prompts, completions, answer: [
        float(a in text) + len(set(text)) / 9 for a, text in zip(answer, completions, strict=True)
    ]
    several = dataclasses.replace(grpo.SMOKE.grpo, epochs=2, minibatches=2)
    make = lambda run_dir: config(folder, run_dir, prompts, lora=lora, grpo=several)  # noqa: E731
    output, found = full_and_resumed(grpo, make, tmp_path)
    assert len(found) == 6 and ("adapters: rank 3" in output) == (lora.rank is not None)
    assert any(record["policy/ratio"] != 1 for record in found)  # the second update of a rollout
    assert load_pretrained(tmp_path / "full")[0] == MODEL
    assert write_report(tmp_path / "full").is_file()


def test_grpo_refuses_settings_before_anything_is_compiled(
    folder, prompts, rewards, tmp_path, monkeypatch
):
    def compiled(*rest, **more):
        raise AssertionError("compiled")

    monkeypatch.setattr(train_grpo, "grpo_program", compiled)
    rewards.reward = lambda prompts, completions, solution: [0.0] * len(completions)
    make = functools.partial(config, folder, tmp_path / "run", prompts)
    plain = {"reward_functions": ("qwen_jax.align.rewards:arithmetic",)}
    long = dataclasses.replace(grpo.SMOKE.grpo, max_new_tokens=90)
    for refused, message in (
        (make(), r"(?s)takes solution.*rows have answer, difficulty, prompt"),
        (make(reward_functions=()), "no reward is configured"),
        (dataclasses.replace(make(), data=grpo.PromptData()), "no prompts are set"),
        (make(train={"batch_size": 6}, **plain), "(?s)multiple of 4.*--grpo.num_generations"),
        (make(grpo=long, **plain), "(?s)context length.*--grpo.max_new_tokens"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(grpo, refused)
    assert not (tmp_path / "run").exists()


def test_plan_build_refuses_grpo_by_name():
    workload = Workload("grpo", MODEL, grpo.SMOKE.optimizer, grpo.SMOKE.train)
    with pytest.raises(ConfigError, match="unknown training stage 'grpo'"):
        build(workload, make_mesh(grpo.SMOKE.mesh))
