"""The tool that breaks things breaks what it says, and nothing else."""

import os
import random

import pytest

from experiments.faults import main
from qwen_jax.errors import ConfigError
from qwen_jax.train.resilience import fault_injection


@pytest.fixture
def checkpoint(tmp_path):
    for step in (9, 10):
        folder = tmp_path / "run" / "checkpoints" / str(step)
        folder.mkdir(parents=True)
        for name in ("a", "b"):
            (folder / name).write_bytes(bytes(range(100)))
    return tmp_path / "run"


def contents(run):
    return {
        path.relative_to(run / "checkpoints").as_posix(): path.read_bytes()
        for path in run.rglob("*")
        if path.is_file()
    }


def test_one_bit_of_the_newest_checkpoint_flips(checkpoint, capsys):
    before = contents(checkpoint)
    main([f"--flip_bit={checkpoint}", "--seed=1"])
    after = contents(checkpoint)
    changed = [name for name in before if before[name] != after[name]]
    assert len(changed) == 1 and changed[0].startswith("10/")
    flipped = int.from_bytes(before[changed[0]]) ^ int.from_bytes(after[changed[0]])
    assert flipped.bit_count() == 1
    assert f"of {changed[0][3:]}" in capsys.readouterr().out


def test_a_cut_file_is_a_beginning_of_what_it_was(checkpoint):
    before = contents(checkpoint)
    for seed in range(2):
        said = fault_injection.truncate(checkpoint / "checkpoints" / "9", random.Random(seed))
        assert "after" in said
    after = contents(checkpoint)
    assert all(before[name].startswith(after[name]) for name in before)
    assert after["10/a"] == before["10/a"] and sum(map(len, after.values())) < 400


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no checkpoint"):
        main([f"--cut={tmp_path}"])
    with pytest.raises(ConfigError, match="process 3 is none of"):
        main([f"--kill={os.getpid()}", "--process=3"])
