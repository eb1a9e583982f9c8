"""The PPO benchmark: a small run without its peer, sampled tokens, a missing peer."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.common import turns
from benchmarks.inference.generation_loop import PythonLoop, by_sorting
from benchmarks.ppo import ppo, ppo_steps
from qwen_jax import sizes
from qwen_jax.inference.decode import generate
from qwen_jax.inference.decoder.weights import for_decoding
from qwen_jax.inference.loop import DecodeState
from qwen_jax.model.spec import init_params

SMALL = ppo.Config(
    size="tiny", prompts=2, samples=2, prompt_tokens=4, new_tokens=4, warm_up=1, steps=2, rounds=1
)


@pytest.mark.slow  # compiles a full PPO step and four decoders
def test_ppo_benchmark_smoke_run_without_a_peer(tmp_path, monkeypatch, capsys):
    made, make = [], ppo_steps.TimedSteps
    monkeypatch.setattr(
        ppo_steps, "TimedSteps", lambda *args, **named: made.append(make(*args, **named)) or made[0]
    )
    monkeypatch.setattr(
        turns, "run", lambda command, environment: json.loads(json.dumps(ppo.measure(SMALL)))
    )  # in this process: another one takes seconds to start
    config = dataclasses.replace(
        SMALL, peer_python="no/such/python", output=str(tmp_path / "ppo.json")
    )
    ppo.main(config)
    found = json.loads((tmp_path / "ppo.json").read_text())
    row = found["table"]["ours"]
    for name in ("step", "cpu", *ppo.PHASES, *ppo.DECODERS):
        assert 0 < row[name]["min"] <= row[name]["median"] <= row[name]["max"]
    (measured,) = found["rounds"]["ours"]
    assert len(measured["parts"]) == len(measured["cpu"]) == SMALL.steps
    assert {"date", "python", "jax"} <= set(found)
    out = capsys.readouterr().out
    assert "no/such/python: No such file" in out and "top-p by sorting" in out
    # Every completion had its full length, and both models were trained.
    (steps,) = made
    assert steps.metrics["rollout/length"] == SMALL.new_tokens
    assert steps.metrics["rollout/finished"] == 0
    assert steps.metrics["policy/grad_norm"] > 0 and steps.metrics["value/grad_norm"] > 0


def test_python_loop_samples_the_tokens_of_the_compiled_loop():
    model = dataclasses.replace(sizes.TINY, num_layers=1)
    params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(0))
    prompts = np.random.default_rng(0).integers(0, model.vocab_size, (4, 4), dtype=np.int32)
    want = generate(params, prompts, config=model, max_new_tokens=4, temperature=1.0, top_p=0.9)
    loop = PythonLoop(model, new_tokens=4, donate=True)
    got = loop(for_decoding(params, config=model), prompts, top_p=0.9)
    np.testing.assert_array_equal(got, want)


def test_by_sorting_keeps_the_fewest_tokens_with_top_p():
    logits = jnp.log(jnp.asarray([[0.1, 0.5, 0.4], [0.2, 0.1, 0.7]], jnp.float32))
    sampling = types.SimpleNamespace(top_p=jnp.asarray([0.6, 0.6], jnp.float32))
    sampled = set()
    for count in range(20):
        state = DecodeState(
            cache=None, last=None, counts=jnp.full((2,), count, jnp.int32), active=None, seen=None
        )
        state, token = by_sorting(state, logits, sampling)
        sampled |= set(enumerate(token.tolist()))
    assert sampled == {(0, 1), (0, 2), (1, 2)} and state.counts.tolist() == [20, 20]


@pytest.mark.parametrize("python, reason", [("", "no --peer_python"), ("false", "google-tunix")])
def test_why_missing_names_the_reason(python, reason):
    assert reason in ppo.why_missing(python)
