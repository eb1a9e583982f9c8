"""The check that all processes see one run folder."""

import pathlib
import subprocess
import sys

import pytest

from qwen_jax.errors import ConfigError, UnreadableError
from qwen_jax.train.resilience import shared_folder

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOUND = {0: ("a", ""), 1: ("b", "does not see what process 0 writes"), 2: ("c", "")}


@pytest.mark.parametrize("resumes, kind", [(False, ConfigError), (True, UnreadableError)])
def test_error_names_hosts_and_path(tmp_path, resumes, kind):
    error = shared_folder._error(tmp_path, FOUND, resumes)
    assert type(error) is kind
    assert error.what == (
        "not shared: b (process 1) does not see what process 0 writes. Process 0 is on a."
    )
    assert error.where == f"run_dir={tmp_path}"


def test_error_is_none_if_all_see_it(tmp_path):
    assert shared_folder._error(tmp_path, {0: ("a", ""), 1: ("b", "")}, False) is None


def test_error_of_many_hosts_is_short(tmp_path):
    found = {number: (f"h{number}", "does not have this folder") for number in range(30)}
    error = shared_folder._error(tmp_path, found, False)
    assert error is not None and "; and 22 more" in error.what and "h7 (process 7)" in error.what


CHECK = """
import jax, os, sys
from qwen_jax.parallel import distributed
from qwen_jax.train.resilience import shared_folder
shared_folder._SEEN_SECONDS = 1
distributed.start()
me = os.environ["JAX_PROCESS_ID"]
folder = sys.argv[1] if sys.argv[2] == "shared" else os.path.join(sys.argv[1], me)
if me == "0" or sys.argv[2] != "absent":
    os.makedirs(folder, exist_ok=True)
try:
    shared_folder.check(folder, resumes=sys.argv[2] == "absent" and me == "0")
    print("all see it")
except Exception as error:
    print(type(error).__name__, error)
distributed.barrier("end")
print(sorted(os.listdir(folder)) if os.path.exists(folder) else "none", flush=True)
jax.distributed.shutdown()  # waits for the other process
distributed.exit_process(0)
"""


@pytest.mark.parametrize(
    "kind, lines",
    [
        ("shared", ["[0] all see it", "[1] all see it", "[0] []", "[1] []"]),
        (
            "apart",
            [
                "(process 1) does not see what process 0 writes",
                "[0] ConfigError",
                "[1] ConfigError",
            ],
        ),
        (
            "absent",
            [
                "(process 1) does not have this folder",
                "[0] UnreadableError",
                "[1] UnreadableError",
                "[1] none",
            ],
        ),
    ],
)
def test_check_in_two_processes(tmp_path, kind, lines):
    done = subprocess.run(
        [
            *[sys.executable, "-m", "launch.local", "--max_restarts=0", "--"],
            *["-c", CHECK, str(tmp_path), kind],
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    for line in lines:
        assert line in done.stdout, done.stdout
