"""experiments.faults damages the file that it names, and no other."""

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


def test_flip_bit_changes_one_bit_of_the_newest_checkpoint(checkpoint, capsys):
    before = contents(checkpoint)
    main([f"--flip_bit={checkpoint}", "--seed=1"])
    after = contents(checkpoint)
    changed = [name for name in before if before[name] != after[name]]
    assert len(changed) == 1 and changed[0].startswith("10/")
    flipped = int.from_bytes(before[changed[0]]) ^ int.from_bytes(after[changed[0]])
    assert flipped.bit_count() == 1
    assert f"of {changed[0][3:]}" in capsys.readouterr().out


def test_truncate_keeps_the_start_of_a_file(checkpoint):
    before = contents(checkpoint)
    for seed in range(2):
        message = fault_injection.truncate(checkpoint / "checkpoints" / "9", random.Random(seed))
        assert "after" in message
    after = contents(checkpoint)
    assert all(before[name].startswith(after[name]) for name in before)
    assert after["10/a"] == before["10/a"] and sum(map(len, after.values())) < 400


def test_faults_accepts_the_former_name_of_truncate_and_warns(checkpoint, capsys):
    before = contents(checkpoint)
    main([f"--cut={checkpoint}", "--seed=1"])
    after = contents(checkpoint)
    (changed,) = [name for name in before if before[name] != after[name]]
    assert changed.startswith("10/") and before[changed].startswith(after[changed])
    (warning,) = capsys.readouterr().err.splitlines()
    assert "--cut" in warning and "now --truncate" in warning


def test_faults_reports_a_missing_checkpoint_and_process(tmp_path):
    with pytest.raises(ConfigError, match="no checkpoint"):
        main([f"--truncate={tmp_path}"])
    with pytest.raises(ConfigError, match="the launcher has no process 3"):
        main([f"--kill={os.getpid()}", "--process=3"])
