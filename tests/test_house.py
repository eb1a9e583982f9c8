"""The rules of the repository (WORKSPACE.md): import order and sizes."""

import pathlib
import subprocess
import sys
import textwrap

import pytest

from tests.helpers import house

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_order_violations_finds_none():
    assert house.order_violations(ROOT) == []


def test_cycles_finds_none():
    assert house.cycles(house.imports(ROOT)) == []
    assert house.cycles(house.between_rooms(house.imports(ROOT))) == []


def test_size_violations_finds_none():
    assert house.size_violations(ROOT) == []


@pytest.fixture
def broken(tmp_path):
    """A checkout that violates every rule once."""
    for name, text in {
        "qwen_jax/__init__.py": "",
        "qwen_jax/model/__init__.py": "",
        "qwen_jax/model/up.py": "from qwen_jax.train import loop\n",
        "qwen_jax/train/loop.py": "import qwen_jax.model.up\nfrom experiments import page\n",
        "experiments/page.py": "x = 1\n" * 451,
        "launch/long.py": "def f():\n" + "    x = 1\n" * 61,
        "launch/relative.py": "from .long import f\n",
        "benchmarks/wide.py": textwrap.dedent(
            """
            import dataclasses

            @dataclasses.dataclass(frozen=True)
            class Config:
            """
        )
        + "".join(f"    field_{i}: int = {i}\n" for i in range(21)),
        **{f"benchmarks/full/file_{i}.py": "x = 1\n" for i in range(16)},
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_house_reports_every_broken_rule(broken):
    assert house.order_violations(broken) == [
        "qwen_jax/model/up.py (model) imports qwen_jax/train/loop.py (train)",
        "qwen_jax/train/loop.py imports experiments/page.py: "
        "the package may not import from outside",
    ]
    assert house.cycles(house.imports(broken)) == [
        ["qwen_jax/model/up.py", "qwen_jax/train/loop.py"]
    ]
    assert house.imports(broken)[pathlib.Path("launch/relative.py")] == {
        pathlib.Path("launch/long.py")
    }
    found = [line for line in house.size_violations(broken) if "exception" not in line]
    assert found == [
        "experiments/page.py: 451 lines, the limit is 450",
        "launch/long.py:f: 62 lines of code, the limit is 60",
        "benchmarks/full: 16 files, the limit is 15",
        "benchmarks/wide.py:Config: 21 fields, the limit is 20",
    ]


def test_house_command_fails_only_for_a_broken_rule(broken):
    with pytest.raises(SystemExit) as exited:  # here, where the files are parsed already
        house.main(["--check", "--root", str(ROOT)])
    assert exited.value.code == 0
    command = [sys.executable, "-m", "tests.helpers.house", "--check", "--root", broken]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "451 lines, the limit is 450" in done.stderr
