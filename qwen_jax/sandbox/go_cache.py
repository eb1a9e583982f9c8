"""Go's compiled standard library, which its distributions do not have: made once, then read.

Each run has an empty folder, so without it a run would compile what it imports, which takes 20
seconds. Runs read the cache and cannot write to it.
"""

import hashlib
import os
import pathlib
import shutil
import subprocess
import tempfile

_SECONDS = 1200.0
SETTINGS = {"GOPROXY": "off", "GO111MODULE": "on", "CGO_ENABLED": "0"}


def folder(go: str) -> pathlib.Path:
    """Returns where the cache of a toolchain is, or would be.

    Args:
      go: path of the program.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    found = os.stat(go)
    identity = f"{go} {found.st_size} {found.st_mtime_ns}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return pathlib.Path(home) / "qwen_jax" / f"go-{digest}"


def prepare(go: str) -> None:
    """Makes the cache, which takes a minute, unless it is there; does nothing where it cannot.

    Runs the toolchain itself, outside of the sandbox, and no other program.
    """
    target = folder(go)
    if target.is_dir():
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        made = tempfile.mkdtemp(prefix="go-making-", dir=target.parent)
    except OSError:
        return
    try:
        environment = SETTINGS | {
            "PATH": os.defpath,
            "HOME": made,
            "GOCACHE": made,
            "GOPATH": f"{made}/path",
            "GOROOT": os.path.dirname(os.path.dirname(go)),
        }
        subprocess.run(
            [go, "build", "std"],
            cwd=made,
            env=environment,
            capture_output=True,
            timeout=_SECONDS,
            check=True,
        )
        for path in (made, *map(str, pathlib.Path(made).rglob("*"))):
            os.chmod(path, 0o755 if os.path.isdir(path) else 0o644)  # also for another user
        os.rename(made, target)
    except (OSError, subprocess.SubprocessError):  # or another process was first
        shutil.rmtree(made, ignore_errors=True)
