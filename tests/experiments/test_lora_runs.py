"""Stages with adapters: from a folder to a folder, interrupted half-way, exported as one model."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from test_alignment import (  # noqa: F401  (two are fixtures)
    compiled_once,
    config_of,
    folder,
    records,
    run,
    whole_and_halves,
)

from experiments import dpo, sft
from qwen_jax.errors import QwenJaxError
from qwen_jax.export.huggingface import load_pretrained
from qwen_jax.model.lora import LoRAConfig

LORA = LoRAConfig(rank=4, alpha=8.0)


@pytest.fixture(scope="module")
def tuned(folder, tmp_path_factory):  # noqa: F811
    """SFT of adapters in one piece and in two; where, what it said and what was measured."""
    runs = tmp_path_factory.mktemp("tuned")

    def make(run_dir):
        config = config_of(sft, folder, run_dir, train={"num_steps": 16, "eval_every": None},
                           data={"conversations": (f"{folder}/talks.jsonl",)}, lora=LORA)
        return dataclasses.replace(config, optimizer=dataclasses.replace(
            config.optimizer, peak_learning_rate=1e-2))

    return runs, make, *whole_and_halves(sft, make, runs)


def test_sft_of_adapters_learns_and_goes_on_where_it_was(tuned):
    _, _, output, found = tuned
    assert "adapters: rank 4, alpha 8, on wq" in output and "frozen weights" in output
    losses = [record["train/loss"] for record in found]
    # The base knows nothing and its output projection, frozen, is small: the logits can be no larger.
    # Without learning the last loss was 0.03 below the first.
    assert losses[-1] < losses[0] - 0.2


def test_a_run_is_small_and_is_the_base_with_what_was_learnt(folder, tuned):  # noqa: F811
    runs, *_ = tuned
    (_, base), (_, whole), (_, halves) = map(load_pretrained, (
        folder / "base", runs / "whole", runs / "halves"))
    for (path, a), b, c in zip(jax.tree_util.tree_leaves_with_path(whole), jax.tree.leaves(halves),
                               jax.tree.leaves(base), strict=True):
        np.testing.assert_array_equal(a, b)
        adapted = path[-1].name in LORA.targets
        assert np.array_equal(a, c) != adapted, path
    meta = json.loads(next((runs / "whole" / "checkpoints").glob("*/meta.json")).read_text())
    rank = [shape for shape, _ in meta["leaves"].values() if shape]
    assert rank and all(LORA.rank in shape for shape in rank)


def test_a_run_does_not_go_on_beside_other_weights(tuned, tmp_path):
    runs, make, *_ = tuned
    record = json.loads((runs / "halves" / "base.json").read_text())
    try:
        (runs / "halves" / "base.json").write_text(json.dumps(record | {"sample": "0"}))
        with pytest.raises(QwenJaxError, match="other weights"):
            run(sft, make(runs / "halves"))
    finally:
        (runs / "halves" / "base.json").write_text(json.dumps(record))


def test_dpo_of_adapters_starts_as_its_reference_beside_a_run_of_adapters(
        folder, tuned, tmp_path):  # noqa: F811
    runs, *_ = tuned
    run(dpo, config_of(
        dpo, folder, tmp_path / "dpo", init_from=str(runs / "whole"), lora=LORA,
        train={"num_steps": 8, "eval_every": 8}, data={
            "pairs": (f"{folder}/pairs.jsonl",), "eval_pairs": (f"{folder}/pairs_held.jsonl",)}))
    found = records(tmp_path / "dpo")
    assert found[0]["train/loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert found[0]["train/margin"] == pytest.approx(0, abs=1e-5)
    assert found[-1]["eval/pairs_held/accuracy"] > 0.9
    load_pretrained(tmp_path / "dpo")
