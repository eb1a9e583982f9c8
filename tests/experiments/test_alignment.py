"""The stages after pretraining, from folder to folder, interrupted halfway and resumed."""

import dataclasses
import functools
import json
import random
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import dpo, ppo, reward_model, sft
from qwen_jax.align import rewards, train_ppo
from qwen_jax.checkpoint.checkpointer import Checkpointer
from qwen_jax.config import DataConfig
from qwen_jax.errors import CheckpointError, QwenJaxError
from qwen_jax.model.spec import init_params
from qwen_jax.plan.stages import Workload, build
from qwen_jax.pretrained.from_run import save_run
from qwen_jax.pretrained.huggingface import load_pretrained
from qwen_jax.pretrained.start import start
from qwen_jax.train.telemetry.phases import PHASES
from qwen_jax.types import TrainState
from tests.helpers.alignment import MODEL, config_of, full_and_resumed, records, run
from tests.helpers.tiny_checkpoint import ROOT, TOKENIZER, environment


def test_sft_learns_and_resumes(folder, tmp_path):
    def make(run_dir):
        return config_of(
            sft,
            folder,
            run_dir,
            train={"num_steps": 16, "eval_every": 16},
            data={
                "conversations": (f"{folder}/conversations.jsonl",),
                "eval_conversations": (f"{folder}/conversations_held.jsonl",),
            },
        )

    output, found = full_and_resumed(sft, make, tmp_path, devices=8)
    assert "64 kept" in output and "held-out conversations_held" in output
    losses = [record["train/loss"] for record in found if "train/loss" in record]
    assert losses[-1] < losses[0] - 1
    model, _ = load_pretrained(tmp_path / "full")
    assert model == dataclasses.replace(MODEL, dropout=0.1)  # report 3.1.2


@pytest.fixture(scope="module")
def scored(folder, tmp_path_factory):
    """PMP from a language model, then fine-tuning from PMP's run; the folder and both outputs."""
    runs = tmp_path_factory.mktemp("scored")
    data = {"pairs": (f"{folder}/pairs.jsonl",), "eval_pairs": (f"{folder}/pairs_held.jsonl",)}
    first = run(
        reward_model,
        config_of(
            reward_model, folder, runs / "pmp", data=data, train={"num_steps": 8, "eval_every": 8}
        ),
    )
    second = run(
        reward_model,
        config_of(
            reward_model,
            folder,
            runs / "reward",
            data=data,
            init_from=str(runs / "pmp"),
            train={"num_steps": 3},
        ),
    )
    return runs, first, second


def test_reward_model_starts_from_a_language_model_and_from_pmp(scored):
    runs, first, second = scored
    assert "starting from the weights of a language model" in first and "pairs_held" in first
    assert "starting from the weights of a PMP run" in second and "16 pairs" in second
    pmp, reward = (records(runs / name) for name in ("pmp", "reward"))
    assert pmp[-1]["eval/pairs_held/accuracy"] == 1.0
    # It starts with PMP's score: a new one would start at log 2 = 0.69.
    assert reward[0]["train/loss"] < 0.3 < pmp[0]["train/loss"]


@pytest.mark.slow  # three runs; quick tests resume SFT and PPO
def test_reward_model_resumes(folder, tmp_path):
    full_and_resumed(
        reward_model,
        lambda run_dir: config_of(
            reward_model,
            folder,
            run_dir,
            train={"num_steps": 8},
            data={"pairs": (f"{folder}/pairs.jsonl",)},
        ),
        tmp_path,
    )


def dpo_config(folder, run_dir):
    return config_of(
        dpo,
        folder,
        run_dir,
        train={"num_steps": 8, "eval_every": 8},
        data={
            "pairs": (f"{folder}/pairs.jsonl",),
            "eval_pairs": (f"{folder}/pairs_held.jsonl",),
        },
    )


def test_dpo_prefers_the_chosen_response(folder, tmp_path):
    run(dpo, dpo_config(folder, tmp_path / "full"))
    found = records(tmp_path / "full")
    # Policy and reference are equal at first: every margin is 0.
    assert found[0]["train/loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert found[0]["train/margin"] == pytest.approx(0, abs=1e-5)
    assert found[-1]["eval/pairs_held/accuracy"] > 0.9
    model, _ = load_pretrained(tmp_path / "full")
    assert model == MODEL


@pytest.mark.slow  # three runs; quick tests resume SFT and PPO
def test_dpo_resumes(folder, tmp_path):
    full_and_resumed(dpo, functools.partial(dpo_config, folder), tmp_path)


@pytest.mark.slow  # two runs
def test_dpo_resumes_with_the_reference_that_it_started_from(folder, tmp_path):
    """The SFT run gains a checkpoint meanwhile: DPO's loss at step 4 was 0.19 and 0.32."""
    base = shutil.copytree(folder / "base", tmp_path / "base")
    make = lambda name: dataclasses.replace(  # noqa: E731
        dpo_config(folder, tmp_path / name), init_from=str(base)
    )
    run(dpo, make("whole"))
    run(dpo, make("resumed"), until="step 4/")
    _, params = load_pretrained(base)
    state = TrainState(np.int32(9), jax.tree.map(lambda leaf: leaf * 2, params), ())
    checkpoints = Checkpointer(base / "checkpoints", keep=9)
    checkpoints.save(9, state, {})
    checkpoints.close()
    run(dpo, make("resumed"))
    assert records(tmp_path / "resumed") == records(tmp_path / "whole")
    record = json.loads((tmp_path / "resumed/inputs.json").read_text())["inputs"]
    assert {each["role"]: each["step"] for each in record if each["step"] is not None} == {
        "init_from": 0
    }
    shutil.rmtree(base / "checkpoints/0")
    with pytest.raises(CheckpointError, match="step 0 of this run is missing"):
        dpo.main(make("resumed"))


def ppo_config(folder, run_dir, *, data=None, **changes):
    return config_of(
        ppo,
        folder,
        run_dir,
        data={"prompts": (f"{folder}/conversations.jsonl",), **(data or {})},
        **changes,
    )


def test_ppo_with_both_rewards_and_pretraining_resumes(folder, scored, tmp_path):
    """With a reward model, a reward function and the pretraining gradient."""

    def make(run_dir):
        return ppo_config(
            folder,
            run_dir,
            reward_functions=("qwen_jax.align.rewards:arithmetic",),
            reward_model=f"{scored[0]}/reward",
            data={"pretrain": DataConfig(sources=(f"{folder}/text/train",))},
        )

    output = run(ppo, make(tmp_path / "full"))
    found = records(tmp_path / "full")
    assert len(found) == 6
    assert "4 prompts, 2 completions each" in output and "  kl " in output
    assert "pretraining gradient: 32 sequences of 96 tokens per step, coefficient 0.5" in output
    for record in found:
        assert record["rollout/entropy"] > 0 and record["rollout/sampler_logprob_gap"] < 1e-5
        # One update per rollout; two compilations of one function differ in their last digits.
        assert record["policy/ratio"] == pytest.approx(float(record["step"] > 2), abs=1e-6)
        assert (record["policy/pretrain_loss"] > 0) == (record["step"] > 2)
    assert "frozen weights" in output
    lines = (tmp_path / "full" / "metrics.jsonl").read_text().splitlines()
    for record in map(json.loads, lines[1:]):
        phases = [record[f"perf/{name}_seconds"] for name in PHASES]
        assert sum(phases) == pytest.approx(record["perf/step_seconds"]) and min(phases) >= 0
    # The policy equals the reference for the first two steps, which train only the value model.
    assert [abs(record["rollout/kl"]) < 1e-4 for record in found] == [True] * 3 + [False] * 3
    model, params = load_pretrained(tmp_path / "full")  # of the policy
    assert model == MODEL
    # As if it had been killed before its last save.
    shutil.rmtree(tmp_path / "full/checkpoints/6")
    assert "resuming after step 3" in run(ppo, make(tmp_path / "full"))
    assert records(tmp_path / "full") == found
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(tmp_path / "full")[1], params)


def test_plan_build_compiles_the_program_of_a_ppo_run(folder, tmp_path, monkeypatch):
    jobs = []
    monkeypatch.setattr(train_ppo, "run", lambda config, job, log: jobs.append(job))
    config = ppo_config(
        folder,
        tmp_path / "run",
        reward_functions=("qwen_jax.align.rewards:arithmetic",),
        data={"pretrain": DataConfig(sources=(f"{folder}/text/train",))},
    )
    run(ppo, config)
    (job,) = jobs
    workload = Workload(
        "ppo",
        start(config)[0].model,
        config.optimizer,
        config.train,
        ppo=config.ppo,
        value_optimizer=config.value_optimizer,
        prompt_tokens=job.program.batch.rollout.tokens.shape[1] - config.ppo.max_new_tokens,
    )
    planned = build(workload, job.mesh)
    assert planned.arguments == (job.program.state, job.program.batch)
    assert planned.frozen.reference == job.frozen.outside_step.reference


@pytest.mark.slow  # a dozen processes
def test_ppo_is_bitwise_the_same_after_ten_kills(folder, scored, run_ppo, tmp_path):
    """Kills it at ten random moments: while it samples, scores, trains or saves."""
    flags = (
        f"--reward_model={scored[0]}/reward",
        f"--data.pretrain.sources={folder}/text/train",
        "--train.num_steps=40",
        "--train.save_every=2",
        "--train.log_every=1",
    )
    run_ppo(tmp_path / "full", *flags)
    rng, resumed = random.Random(0), 0
    for _ in range(10):
        resumed += "resuming after step" in run_ppo(
            tmp_path / "killed", *flags, kill_after=(rng.randrange(1, 7), rng.random() * 0.3)
        )
    resumed += "resuming after step" in run_ppo(tmp_path / "killed", *flags)
    assert resumed >= 8
    assert records(tmp_path / "killed") == records(tmp_path / "full")
    assert len(records(tmp_path / "full")) == 40
    a, b = (jax.tree.leaves(load_pretrained(tmp_path / name)[1]) for name in ("full", "killed"))
    for x, y in zip(a, b, strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


PROCESS = """
import sys
import jax
number, port, *argv = sys.argv[1:]
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(number))
from experiments import ppo
from qwen_jax.cli import flags
flags.run(ppo.main, ppo.__doc__, ppo.RECIPES, ["ppo", *argv])
"""


@pytest.mark.slow  # three processes, two of them at once
def test_ppo_on_two_processes_matches_one_process(folder, scored, tmp_path):
    """Each process has one device and half of every rollout."""
    argv = [
        "--recipe=smoke",
        f"--init_from={folder}/base",
        f"--data.prompts={folder}/conversations.jsonl",
        f"--reward_model={scored[0]}/reward",
        f"--data.pretrain.sources={folder}/text/train",
        "--reward_functions=qwen_jax.align.rewards:arithmetic",
        "--train.log_every=1",
        "--model.unroll_layers=2",
    ]  # launched CPU processes unroll their layers
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])

    def start(code, *arguments, devices):
        return subprocess.Popen(
            [sys.executable, *code, *arguments],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={
                **environment(),
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            },
        )

    def end(*processes):
        for process in processes:
            output = process.communicate(timeout=600)[0]
            assert process.returncode == 0, output[-3000:]

    end(
        *[
            start(["-c", PROCESS], number, port, f"--run_dir={tmp_path}/two", *argv, devices=1)
            for number in "01"
        ]
    )
    end(start(["-m", "experiments.ppo"], f"--run_dir={tmp_path}/one", *argv, devices=2))
    two, one = records(tmp_path / "two"), records(tmp_path / "one")
    assert len(two) == len(one) == 6
    for a, b in zip(two, one, strict=True):
        # The same program on the same mesh; collectives between processes add in another order.
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)


@pytest.mark.slow  # compiles all of PPO once more
def test_ppo_with_only_a_reward_function_runs_without_pretraining_data(run_ppo, tmp_path):
    output = run_ppo(tmp_path / "run", "--train.num_steps=1")
    assert "pretraining gradient: none" in output
    (record,) = records(tmp_path / "run")
    assert 0 <= record["rollout/reward"] <= 1 and "policy/pretrain_loss" not in record


def test_stages_refuse_invalid_settings_and_leave_no_folder(folder, scored, tmp_path):
    one = {"reward_functions": ("qwen_jax.align.rewards:arithmetic",)}
    reward = f"{scored[0]}/reward"
    wide = dataclasses.replace(MODEL, hidden_size=64)
    save_run(
        tmp_path / "wide",
        wide,
        jax.jit(init_params, static_argnums=0)(wide, jax.random.key(0)),
        tokenizer=TOKENIZER,
    )
    run_dir = tmp_path / "run"
    for stage, config, message in (
        (sft, sft.SMOKE, "no conversations"),
        (dpo, dpo.SMOKE, "no pairs"),
        (
            reward_model,
            config_of(
                reward_model,
                folder,
                run_dir,
                init_from="",
                data={"pairs": (f"{folder}/pairs.jsonl",)},
            ),
            "no model to start from",
        ),
        (ppo, ppo_config(folder, run_dir), "no reward"),
        (ppo, ppo_config(folder, run_dir, init_from=str(tmp_path), **one), "no config.json"),
        (
            ppo,
            ppo_config(folder, run_dir, reward_functions=("qwen_jax.align.rewards:arithmetik",)),
            "did you mean 'arithmetic'",
        ),
        (ppo, ppo_config(folder, run_dir, reward_functions=("no.module:f",)), "No module"),
        (
            ppo,
            ppo_config(
                folder, run_dir, ppo=dataclasses.replace(ppo.SMOKE.ppo, max_new_tokens=64), **one
            ),
            "longer than the model's context length, 96",
        ),
        (
            ppo,
            ppo_config(folder, run_dir, data={"max_prompt_tokens": 8}, **one),
            "longer than 8 tokens",
        ),
        (ppo, ppo_config(folder, run_dir, train={"batch_size": 9}, **one), "2 samples"),
        (ppo, ppo_config(folder, run_dir, reward_model=f"{folder}/base"), "not a reward model run"),
        (
            ppo,
            ppo_config(folder, run_dir, init_from=str(tmp_path / "wide"), reward_model=reward),
            "hidden_size 32, not 64",
        ),
        (
            ppo,
            ppo_config(
                folder,
                run_dir,
                ppo=dataclasses.replace(ppo.SMOKE.ppo, pretrain_ratio=1.1),
                data={"pretrain": DataConfig(sources=(f"{folder}/text/train",))},
                **one,
            ),
            "batch_size=9 cannot be divided evenly",
        ),
    ):
        with pytest.raises(QwenJaxError, match=message):
            run(stage, config, devices=8)
    assert not run_dir.exists()


def test_arithmetic_rewards_correct_sums():
    found = rewards.arithmetic(
        ["user\n2+3<|im_end|>", "4 - 6", "2*3 and 7*8"], ["It is 5", "2", "6, no: 56"]
    )
    assert found == [1.0, 0.0, 1.0]
    with pytest.raises(ValueError, match="no expression a \\+ b"):
        rewards.arithmetic(["Hello"], ["Hi"])
