"""Run folders of an earlier version: the current code resumes and reads them.

README.md describes the archives and how they were made.
"""

import importlib.metadata
import json
import pathlib
import subprocess
import sys
import tarfile

import jax
import numpy as np
import pytest

from qwen_jax.pretrained.huggingface import load_pretrained
from qwen_jax.report import write_report
from qwen_jax.report.records import current_name
from tests.archives.make import cpu, records, response, weights
from tests.helpers.compilation import is_optimized
from tests.helpers.tiny_checkpoint import ROOT, environment

ARCHIVES = pathlib.Path(__file__).parent
LANGUAGE_MODELS = ("pretrain", "sft_lora", "ppo")


class Archive:
    """An extracted archive and its commands."""

    def __init__(self, name: str, folder: pathlib.Path, env: dict[str, str]):
        with tarfile.open(ARCHIVES / f"{name}.tar.gz") as tar:
            tar.extractall(folder, filter="data")
        self.folder, self._env = folder, env
        self.commands, self.expected, self._made = (
            json.loads((folder / f"{file}.json").read_text(encoding="utf-8"))
            for file in ("COMMANDS", "expected", "made")
        )
        self.run_dir = folder / self.commands["run_dir"]

    def run(self, command: str, *flags: str, typed: str | None = None) -> str:
        """Runs a command of COMMANDS.json, and more flags, with `typed` as its input.

        Returns:
          Its output.
        """
        program, *arguments = *self.commands[command], *flags
        assert program == "python"
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self._env,
            text=True,
            input=typed,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout

    def made_here(self) -> bool:
        """Whether XLA compiles the same instructions here: its version, the CPU and the
        optimizations (those of `make test-slow`) are those of the archive.

        The Python version and the number of cores have not changed any bit.
        """
        return (
            is_optimized()
            and cpu() == self._made["cpu"]
            and all(
                importlib.metadata.version(package) == self._made["versions"][package]
                for package in ("jax", "jaxlib")
            )
        )


@pytest.fixture(scope="module")
def env():
    # Processes run in the archive's folder, so PYTHONPATH finds the code.
    return environment() | {"PYTHONPATH": str(ROOT)}


@pytest.fixture
def extract(env, tmp_path, monkeypatch):
    def archive(name: str) -> Archive:
        monkeypatch.chdir(tmp_path)  # the base of adapters has a relative path
        return Archive(name, tmp_path, env)

    return archive


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("pretrain", marks=pytest.mark.slow),
        "sft_lora",
        pytest.param("reward_model", marks=pytest.mark.slow),
        pytest.param("ppo", marks=pytest.mark.slow),
    ],
)  # compiles for half a minute
def test_archives_resume_with_the_expected_metrics(extract, name):
    archive = extract(name)
    half = archive.commands["stopped_after"]
    assert f"resuming after step {half}" in archive.run("resume")
    expected = [
        {current_name(name): value for name, value in record.items()}
        for record in records(archive.folder / "expected.jsonl")
    ]
    found = records(archive.run_dir / "metrics.jsonl", half)
    assert [record["step"] for record in found] == [record["step"] for record in expected]
    if archive.made_here():
        assert found == expected
    else:
        # Another CPU or XLA sums in another order. Without AVX-512 or AVX the values differed by
        # at most 4e-6 (relative) or 5e-7. PPO may sample another token if a random number falls
        # close to the boundary between two tokens; check rollout/length first.
        for a, b in zip(found, expected, strict=True):
            assert a == pytest.approx(b, rel=2e-5, abs=2e-6)
    events = [
        json.loads(line)
        for line in (archive.run_dir / "events.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [event["step"] for event in events if event["event"] == "resume"] == [half]
    killed = archive.commands["stopped_by"] == "SIGKILL"
    assert [event["event"] for event in events].count("killed") == killed
    assert events[-1]["event"] == "end" and events[-1]["step"] == archive.commands["num_steps"]


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_archives_export_the_expected_weights(extract, name):
    archive = extract(name)
    archive.run("export")
    model, exported = load_pretrained("exported")
    assert (model.vocab_size, model.hidden_size, model.num_layers) == (464, 16, 2)
    found, expected = weights("exported"), archive.expected["weights"]
    assert found.keys() == expected.keys()
    for leaf, (shape, *moments) in expected.items():
        assert found[leaf][0] == shape, leaf
        # numpy's BLAS multiplies the adapters in float32, in any order; sums cancel.
        assert found[leaf][1:] == pytest.approx(moments, rel=1e-6, abs=1e-5), leaf
    jax.tree.map(np.testing.assert_array_equal, exported, load_pretrained(archive.run_dir)[1])


@pytest.mark.parametrize(
    "name", [pytest.param("pretrain", marks=pytest.mark.slow), "sft_lora", "ppo"]
)
def test_archives_chat_gives_the_expected_response(extract, name):
    archive = extract(name)
    # A short context compiles faster, and does not change a response that fits in it.
    output = archive.run("chat", "--context=64", typed=archive.commands["question"] + "\n")
    found = response(output)
    # On other machines the two best tokens may be swapped.
    assert found == archive.expected["answer"] if archive.made_here() else found


@pytest.mark.parametrize("name", [*LANGUAGE_MODELS, "reward_model"])
def test_archives_write_report(extract, name):
    archive = extract(name)
    page = write_report(archive.run_dir).read_text(encoding="utf-8")
    for section in ("Loss", "Configuration", "Versions", "Events"):
        assert f"<h2>{section}</h2>" in page
    # From config.json, versions.json and metrics.jsonl.
    assert "20,144" in page and "85fc48d" in page and "data:image/png" in page
