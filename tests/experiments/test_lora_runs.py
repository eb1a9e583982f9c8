"""Stages with adapters: from folder to folder, resumed halfway, read as one merged model."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from experiments import dpo, ppo, reward_model, sft
from qwen_jax.align import train_ppo
from qwen_jax.config import MeshConfig
from qwen_jax.errors import QwenJaxError
from qwen_jax.model import spec
from qwen_jax.model.lora import LoRAConfig
from qwen_jax.model.value_head import scoring_specs
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.pretrained.huggingface import load_pretrained
from qwen_jax.pretrained.scoring import open_scoring
from qwen_jax.pretrained.start import scoring_weights_of, start
from tests.helpers.alignment import config_of, full_and_resumed, records, run

LORA = LoRAConfig(rank=4, alpha=8.0)


@pytest.fixture(scope="module")
def tuned_config(folder):
    """Makes the config of SFT of adapters."""

    def make(run_dir):
        config = config_of(
            sft,
            folder,
            run_dir,
            train={"num_steps": 16, "eval_every": None},
            data={"conversations": (f"{folder}/conversations.jsonl",), "eval_fraction": 0.0},
            lora=LORA,
        )
        return dataclasses.replace(
            config, optimizer=dataclasses.replace(config.optimizer, peak_learning_rate=1e-2)
        )

    return make


@pytest.fixture(scope="module")
def tuned(tuned_config, tmp_path_factory):
    """SFT of adapters: the run and its output."""
    folder = tmp_path_factory.mktemp("tuned") / "full"
    return folder, run(sft, tuned_config(folder))


@pytest.mark.slow  # three runs; a quick test of tests/archives resumes SFT of adapters
def test_sft_of_adapters_resumes(tuned_config, tmp_path):
    full_and_resumed(sft, tuned_config, tmp_path)
    full, resumed = (load_pretrained(tmp_path / name)[1] for name in ("full", "resumed"))
    jax.tree.map(np.testing.assert_array_equal, full, resumed)


def test_sft_of_adapters_learns(tuned):
    folder, output = tuned
    found = records(folder)
    assert "adapters: rank 4, alpha 8, on wq" in output and "frozen weights" in output
    losses = [record["train/loss"] for record in found]
    # The base is untrained and its frozen output projection is small, which limits the logits.
    # Without learning, the last loss was 0.03 below the first.
    assert losses[-1] < losses[0] - 0.2


def test_load_pretrained_merges_adapters_and_checkpoints_hold_only_them(folder, tuned):
    run_dir, _ = tuned
    (_, base), (_, full) = map(load_pretrained, (folder / "base", run_dir))
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(full), jax.tree.leaves(base), strict=True
    ):
        adapted = path[-1].name in LORA.targets
        assert np.array_equal(a, b) != adapted, path
    meta = json.loads(next((run_dir / "checkpoints").glob("*/meta.json")).read_text())
    rank = [shape for shape, _ in meta["leaves"].values() if shape]
    assert rank and all(LORA.rank in shape for shape in rank)


def test_sft_refuses_to_resume_with_another_base(tuned, tuned_config):
    run_dir, _ = tuned
    record = json.loads((run_dir / "base.json").read_text())
    try:
        (run_dir / "base.json").write_text(json.dumps(record | {"sample": "0"}))
        with pytest.raises(QwenJaxError, match="weights of the base model have changed"):
            run(sft, tuned_config(run_dir))
    finally:
        (run_dir / "base.json").write_text(json.dumps(record))


def test_dpo_of_adapters_starts_equal_to_its_reference(folder, tuned, tmp_path):
    run(
        dpo,
        config_of(
            dpo,
            folder,
            tmp_path / "dpo",
            init_from=str(tuned[0]),
            lora=LORA,
            train={"num_steps": 8, "eval_every": 8},
            data={
                "pairs": (f"{folder}/pairs.jsonl",),
                "eval_pairs": (f"{folder}/pairs_held.jsonl",),
            },
        ),
    )
    found = records(tmp_path / "dpo")
    assert found[0]["train/loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert found[0]["train/margin"] == pytest.approx(0, abs=1e-5)
    assert found[-1]["eval/pairs_held/accuracy"] > 0.9
    load_pretrained(tmp_path / "dpo")


@pytest.fixture(scope="module")
def scored_config(folder):
    """Makes the config of a reward model of adapters."""

    def make(run_dir, **changes):
        config = config_of(
            reward_model,
            folder,
            run_dir,
            lora=LORA,
            data={
                "pairs": (f"{folder}/pairs.jsonl",),
                "eval_pairs": (f"{folder}/pairs_held.jsonl",),
            },
            **changes,
        )
        return dataclasses.replace(
            config, optimizer=dataclasses.replace(config.optimizer, peak_learning_rate=1e-2)
        )

    return make


FROM_PMP = {"num_steps": 4, "eval_every": None}


@pytest.fixture(scope="module")
def scored(scored_config, tmp_path_factory):
    """PMP of adapters on a language model, then fine-tuning of adapters on top of PMP's run."""
    runs = tmp_path_factory.mktemp("scored")
    run(reward_model, scored_config(runs / "pmp", train={"num_steps": 8, "eval_every": 8}))
    run(
        reward_model,
        scored_config(runs / "reward", init_from=str(runs / "pmp"), train=FROM_PMP),
    )
    return runs


def scoring_weights(saved):
    """A reward model's weights as PPO loads them."""
    config = open_scoring(str(saved)).config
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    weights = spec.abstract(scoring_specs(config), "float32", mesh)
    return jax.device_get(scoring_weights_of(str(saved), seed=0)(weights))


def test_reward_model_of_adapters_trains_its_score_and_starts_from_pmp(folder, scored):
    pmp = records(scored / "pmp")
    assert pmp[-1]["eval/pairs_held/accuracy"] == 1.0
    # It starts with PMP's score: a new one would start at log 2 = 0.69.
    assert records(scored / "reward")[0]["train/loss"] < 0.3 < pmp[0]["train/loss"]
    base, one, two = map(scoring_weights, (folder / "base", scored / "pmp", scored / "reward"))
    for (path, a), b, c in zip(
        jax.tree_util.tree_leaves_with_path(base),
        jax.tree.leaves(one),
        jax.tree.leaves(two),
        strict=True,
    ):
        trained = path[-1].name in (*LORA.targets, "score")
        assert (not np.array_equal(a, b) and not np.array_equal(b, c)) == trained, path
    meta = json.loads(next((scored / "pmp" / "checkpoints").glob("*/meta.json")).read_text())
    shapes = [shape for shape, _ in meta["leaves"].values() if len(shape) > 1]
    assert shapes and all(LORA.rank in shape for shape in shapes)


@pytest.mark.slow  # three runs; quick tests resume SFT of adapters, and a reward model
def test_reward_model_of_adapters_resumes(scored_config, scored, tmp_path):
    full_and_resumed(
        reward_model,
        lambda run_dir: scored_config(run_dir, init_from=str(scored / "pmp"), train=FROM_PMP),
        tmp_path,
    )


@pytest.mark.slow  # three processes; tests/align/test_ppo_adapters.py tests the step
def test_ppo_of_adapters_starts_equal_to_its_reference_and_resumes(
    folder,
    scored,
    run_ppo,
    tmp_path,
):
    flags = (
        f"--reward_model={scored}/reward",
        "--lora.rank=4",
        "--lora.alpha=8",
        "--train.log_every=1",
    )
    output = run_ppo(tmp_path / "full", *flags)
    assert "again to resume" in run_ppo(tmp_path / "resumed", *flags, until="step 3/")
    assert "resuming after step" in run_ppo(tmp_path / "resumed", *flags)
    found = records(tmp_path / "full")
    assert records(tmp_path / "resumed") == found and len(found) == 6
    assert "adapters: rank 4, alpha 8" in output
    # The policy is the reference for two steps, which train only the value model; up to rounding,
    # because the two are different programs.
    kl = [abs(record["rollout/kl"]) for record in found]
    assert max(kl[:3]) < 1e-5 and min(kl[3:]) > 1e-4, kl
    base, merged, resumed = (
        jax.tree_util.tree_leaves_with_path(load_pretrained(path)[1])
        for path in (folder / "base", tmp_path / "full", tmp_path / "resumed")
    )
    for (path, a), (_, b), (_, c) in zip(base, merged, resumed, strict=True):
        np.testing.assert_array_equal(b, c)
        assert np.array_equal(a, b) != (path[-1].name in LORA.targets), path
    meta = json.loads(next((tmp_path / "full" / "checkpoints").glob("*/meta.json")).read_text())
    shapes = [shape for shape, _ in meta["leaves"].values() if len(shape) > 1]
    assert shapes and all(LORA.rank in shape for shape in shapes)


@pytest.mark.parametrize("name", ["base.json", "value_base.json"])
def test_frozen_models_refuses_to_resume_with_another_base(folder, scored, tmp_path, name):
    """The error comes before anything is compiled."""
    config = config_of(
        ppo,
        folder,
        tmp_path / "run",
        lora=LORA,
        data={"prompts": (f"{folder}/conversations.jsonl",)},
        reward_model=f"{scored}/reward",
    )
    config, _ = start(config)
    program = types.SimpleNamespace(lora=LORA)  # without compiled functions
    _, files, _ = train_ppo.frozen_models(config, program, config.reward_model)
    assert set(files) == {"base.json", "value_base.json"}
    (tmp_path / "run/checkpoints/3").mkdir(parents=True)  # a run that has saved
    for file, record in files.items():
        changes = {"sample": "0"} if file == name else {}
        (tmp_path / "run" / file).write_text(json.dumps(record | changes))
    with pytest.raises(QwenJaxError, match="weights of the base model have changed"):
        train_ppo.frozen_models(config, program, config.reward_model)
