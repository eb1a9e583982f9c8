"""Unknown compiler options: ours are dropped with a warning, those of the user raise."""

import jax
import jax.numpy as jnp
import pytest
from absl import logging

from qwen_jax.parallel import xla_options


@pytest.fixture
def lowered():
    return jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((4,), jnp.float32))


@pytest.fixture
def warnings(monkeypatch):
    found = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: found.append(text % values))
    return found


def test_compiler_options_are_known_here(lowered, warnings):
    assert xla_options.compile_for("cpu", lowered)(jnp.zeros(4))[0] == 1
    assert not warnings


def test_compile_for_drops_an_unknown_option_with_a_warning(lowered, warnings, monkeypatch):
    ours = xla_options.compiler_options("cpu")
    monkeypatch.setattr(
        xla_options,
        "compiler_options",
        lambda platform, layer_bytes: {"xla_of_next_year": "true", "xla_of_last_year": 1} | ours,
    )
    assert xla_options.compile_for("cpu", lowered)(jnp.zeros(4))[0] == 1
    assert len(warnings) == 2
    assert "xla_of_next_year=true" in " ".join(warnings) and "xla_of_last_year=1" in " ".join(
        warnings
    )


def test_compile_for_raises_on_an_unknown_user_option(lowered):
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_misspelled"):
        xla_options.compile_for("cpu", lowered, {"xla_misspelled": "true"})


def test_compile_for_raises_on_a_bad_value(lowered):
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_cpu_prefer_vector_width"):
        xla_options.compile_for("cpu", lowered, {"xla_cpu_prefer_vector_width": "wide"})


def test_compiler_options_of_gpus_are_known_to_this_compiler(lowered, warnings):
    """Options are read before the platform's compiler runs, so this needs no GPU."""
    for name, value in xla_options.compiler_options("gpu", 1 << 30).items():
        accepted = False
        for each, setting in ((name, value), (xla_options._FORMER.get(name, "none"), True)):
            try:
                lowered.compile(compiler_options={each: setting})
                accepted = True
            except jax.errors.JaxRuntimeError as error:
                assert "No such compile option" in str(error), (each, error)
        assert accepted, name
    assert not warnings


def test_compile_for_uses_the_former_name_of_an_option(lowered, warnings, monkeypatch):
    now, former = "xla_cpu_of_next_year", "xla_cpu_enable_fast_math"
    monkeypatch.setattr(xla_options, "_FORMER", {now: former})
    monkeypatch.setattr(xla_options, "compiler_options", lambda platform, layer_bytes: {now: "ON"})
    assert xla_options.compile_for("cpu", lowered)(jnp.zeros(4))[0] == 1
    assert not warnings


def test_compiler_options_combine_the_collectives_of_a_layer():
    name = "xla_gpu_all_gather_combine_threshold_bytes"
    assert xla_options.compiler_options("gpu", 1 << 30)[name] == 1 << 30
    assert xla_options.compiler_options("gpu", 1 << 20)[name] == 30 << 20


@pytest.mark.parametrize(
    "given, fraction",
    [
        ({}, "0.9"),
        ({"XLA_PYTHON_CLIENT_MEM_FRACTION": ".5"}, ".5"),
        ({"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}, None),
    ],
)
def test_reserve_gpu_memory_keeps_what_the_user_has_set(given, fraction):
    environ = dict(given)
    xla_options.reserve_gpu_memory(environ)
    assert environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION") == fraction
