"""SamplingParams: validation, and the arrays of a batch."""

import dataclasses

import numpy as np
import pytest

from qwen_jax.errors import ConfigError
from qwen_jax.inference.sampling import (
    MAX_LOGIT_BIAS,
    SamplingArrays,
    SamplingParams,
    per_prompt,
    sampling_arrays,
    write_slot,
)

BAD = [
    ("max_new_tokens", 0),
    ("max_new_tokens", 2.5),
    ("temperature", -1.0),
    ("temperature", float("nan")),
    ("temperature", "hot"),
    ("top_p", 0.0),
    ("top_p", 1.01),
    ("top_k", 0),
    ("top_k", True),
    ("repetition_penalty", 0.0),
    ("presence_penalty", 2.1),
    ("frequency_penalty", float("nan")),
    ("stop", 3),
    ("stop", ("",)),
    ("stop", [1]),
    ("seed", -1),
    ("seed", 2**32),
    ("n", 0),
    ("logprobs", 1),
]


@pytest.mark.parametrize("name, value", BAD)
def test_sampling_params_names_a_value_out_of_range_with_its_flag(name, value):
    fields = {"max_new_tokens": 3, name: value}
    with pytest.raises(ConfigError) as caught:
        SamplingParams.named("--settings.{}", **fields)
    assert caught.value.where == f"--settings.{name}" and f"{name}={value!r}" in caught.value.what
    with pytest.raises(ConfigError) as caught:
        SamplingParams(**fields)
    assert caught.value.where == name


def test_sampling_params_validates_every_field():
    checked = {name for name, _ in BAD} | {"stop_token_ids", "logit_bias"}
    assert checked == {field.name for field in dataclasses.fields(SamplingParams)}
    with pytest.raises(ConfigError, match="stop_token_ids"):
        SamplingParams(3, stop_token_ids=("a",))


@pytest.mark.parametrize(
    "name",
    ["top_logprobs", "min_p", "max_tokens"],
)
def test_sampling_params_rejects_an_unknown_setting(name):
    with pytest.raises(TypeError, match=name):
        SamplingParams(3, **{name: 1})


@pytest.mark.parametrize(
    "bias", [{"a": 1}, {"5": 101}, {"5": float("nan")}, {"5": True}, {"-1": 1}, {1.5: 1}, 5, ["5"]]
)
def test_sampling_params_refuses_a_bias_that_is_none(bias):
    with pytest.raises(ConfigError) as caught:
        SamplingParams(3, logit_bias=bias)
    assert caught.value.where == "logit_bias"


def test_a_fixed_batch_refuses_settings_of_the_engine():
    for name, value in (("presence_penalty", 1), ("frequency_penalty", 1), ("logit_bias", {5: 1})):
        with pytest.raises(ConfigError) as caught:
            sampling_arrays([SamplingParams(3, **{name: value})], vocab_size=9, num_stop_ids=1)
        assert caught.value.where == name


def test_sampling_params_accepts_one_stop_string():
    assert SamplingParams(3, stop="END") == SamplingParams(3, stop=["END"])
    assert hash(SamplingParams(3, stop=["a"], stop_token_ids=[1]))


def test_per_prompt_takes_one_value_for_all_or_one_each():
    found = per_prompt(
        2, max_new_tokens=5, temperature=[0, 0.5], top_k=(None, 3), seed=np.asarray([1, 2])
    )
    assert found == [
        SamplingParams(5, temperature=0, seed=1),
        SamplingParams(5, temperature=0.5, top_k=3, seed=2),
    ]
    assert per_prompt(2, max_new_tokens=5, stop=["a"]) == [SamplingParams(5, stop=("a",))] * 2
    with pytest.raises(ConfigError, match="top_p has 3 values for 2 prompts") as caught:
        per_prompt(2, "generate({})", max_new_tokens=5, top_p=[0.1, 0.2, 0.3])
    assert caught.value.where == "generate(top_p)"
    with pytest.raises(ConfigError, match="top_p=2"):
        per_prompt(2, max_new_tokens=5, top_p=[1, 2])


def test_write_slot_equals_sampling_arrays():
    params = [
        SamplingParams(4),
        SamplingParams(
            7,
            0.5,
            9,
            0.9,
            1.2,
            presence_penalty=0.5,
            frequency_penalty=-1,
            logit_bias={"7": 2, 3: -100},
            stop_token_ids=(5, 6),
            seed=2**32 - 1,
        ),
    ]
    ids, bias = np.full((2, MAX_LOGIT_BIAS), 2**31 - 1, np.int32), np.zeros((2, MAX_LOGIT_BIAS))
    ids[1, :2], bias[1, :2] = [3, 7], [-100, 2]
    expected = SamplingArrays(
        seeds=np.uint32([0, 2**32 - 1]),
        streams=np.uint32([0, 3]),
        temperature=np.float32([0, 0.5]),
        top_k=np.int32([2**31 - 1, 9]),
        top_p=np.float32([1, 0.9]),
        repetition_penalty=np.float32([1, 1.2]),
        stop_ids=np.int32([[-1] * 3, [5, 6, -1]]),
        limits=np.int32([4, 7]),
        vocab_size=np.int32(100),
        presence_penalty=np.float32([0, 0.5]),
        frequency_penalty=np.float32([0, -1]),
        bias_ids=ids,
        bias=bias.astype(np.float32),
    )
    shape: dict = dict(vocab_size=100, num_stop_ids=3, served=True)
    found = sampling_arrays(params, streams=[0, 3], **shape)
    written = sampling_arrays(params[1:] + params[:1], **shape)
    write_slot(written, 0, params[0], stream=0)
    write_slot(written, 1, params[1], stream=3)
    for field in dataclasses.fields(SamplingArrays):
        expected_array = getattr(expected, field.name)
        for arrays in (found, written):
            np.testing.assert_array_equal(getattr(arrays, field.name), expected_array, field.name)
            assert getattr(arrays, field.name).dtype == expected_array.dtype, field.name
