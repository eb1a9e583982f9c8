"""The folder of a run."""

import pytest

from qwen_jax.train import run_folder


@pytest.mark.parametrize(
    "settings, stage, parameters",
    [
        ({}, "pretrain", "params"),
        ({"data": {"sources": []}}, "pretrain", "params"),
        ({"data": {"conversations": []}}, "sft", "params"),
        ({"data": {"pairs": []}}, "reward_model", "params"),
        ({"data": {"pairs": []}, "beta": 0.1}, "dpo", "params"),
        ({"data": {"prompts": []}, "ppo": {}}, "ppo", "policy.params"),
    ],
)
def test_identity_is_read_from_the_config_or_inferred_from_older_settings(
    settings, stage, parameters
):
    assert run_folder.identity({"model": {}, **settings}) == (stage, parameters)
    written = run_folder.Identity("reward_model", "params")._asdict()
    assert run_folder.identity({**written, **settings}) == ("reward_model", "params")
