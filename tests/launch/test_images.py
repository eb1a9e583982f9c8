"""The images: what they copy, the versions they install, the variables a job depends on."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
IMAGES = {"tpu": "tpu", "gpu": "cuda"}


def lines(name: str) -> list[str]:
    text = (ROOT / f"launch/Dockerfile.{name}").read_text().replace("\\\n", "")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def variables(name: str) -> dict[str, str]:
    found = [line for line in lines(name) if line.startswith("ENV ")]
    return dict(pair.split("=", 1) for line in found for pair in line.split()[1:])


@pytest.mark.parametrize("name", IMAGES)
def test_image_copies_what_exists_and_the_context_has(name):
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in allowed
    copied = [line.split()[1:-1] for line in lines(name) if line.startswith("COPY ")]
    for path in (each for group in copied for each in group):
        assert (ROOT / path).exists(), path
        assert f"!{path.split('/')[0]}" in allowed, path


@pytest.mark.parametrize("name, platform", IMAGES.items())
def test_image_never_falls_back_to_the_cpu(name, platform):
    """With "cuda,cpu", JAX uses the CPU without an error if there is no GPU."""
    assert variables(name)["JAX_PLATFORMS"] == platform
    assert variables(name)["QWEN_JAX_COMMIT"] == "${COMMIT}"


def test_image_for_gpus_finds_the_driver():
    assert variables("gpu")["LD_LIBRARY_PATH"] == "/usr/local/nvidia/lib64"
    assert variables("gpu")["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"


@pytest.mark.parametrize("extra", ["tpu", "cuda12", "cuda13"])
def test_constraints_pin_what_an_image_installs(extra):
    text = (ROOT / f"launch/constraints/{extra}.txt").read_text()
    pinned = dict(re.findall(r"^([a-z0-9_.-]+)==([0-9][\w.+]*)", text, re.MULTILINE))
    setup = (ROOT / "setup.py").read_text()
    required = re.search(r"install_requires=\[(.*?)\]", setup, re.DOTALL)
    assert required is not None
    for name in re.findall(r'"([\w-]+)>=', required[1]):
        assert name.lower().replace("_", "-") in pinned, name
    wanted = {"tpu": "libtpu", "cuda12": "jax-cuda12-plugin", "cuda13": "jax-cuda13-plugin"}
    assert wanted[extra] in pinned and "jaxlib" in pinned
    assert "://" not in text  # no address of a package index
