"""The sandbox's code and an interpreter for another user."""

import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOBODY = 65534


def copy_sandbox(folder: pathlib.Path) -> None:
    """Copies the sandbox and its attempts to a folder where every user can read them."""
    for name in ("sandbox", "utils"):
        shutil.copytree(ROOT / "qwen_jax" / name, folder / "qwen_jax" / name)
    for name in ("__init__", "errors", "exit_codes"):
        shutil.copy(ROOT / "qwen_jax" / f"{name}.py", folder / "qwen_jax")
    shutil.copytree(ROOT / "tests" / "sandbox", folder / "tests" / "sandbox")
    subprocess.run(["chmod", "-R", "a+rX", folder], check=True)


def python_of_nobody() -> str | None:
    """Returns an interpreter that another user can start."""
    for python in (sys.executable, shutil.which("python3", path="/usr/bin:/usr/local/bin")):
        probe = "import sys; sys.exit(sys.version_info < (3, 11))"
        try:
            if (
                python
                and not subprocess.run(
                    [python, "-c", probe], user=NOBODY, group=NOBODY, extra_groups=[], cwd="/"
                ).returncode
            ):
                return python
        except OSError:
            pass
    return None
