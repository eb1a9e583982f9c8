"""A path of a folder without the characters that Orbax and TensorStore interpret.

Orbax uses the path as a glob pattern, and TensorStore reads a backslash as a slash. A folder such
as `sweep[lr=1e-4]` gets a symbolic link in a private temporary folder.
"""

import os
import pathlib
import re
import shutil
import tempfile
import weakref

import jax
import numpy as np
from jax.experimental import multihost_utils

from qwen_jax.errors import CheckpointError

# Letters of all languages, digits and these signs. A root such as /gs/ is a bucket to Orbax, and
# both libraries resolve `..` without following links.
_PLAIN = re.compile(r"(?!/(gs|s3|az|hf)(/|\Z))(/(?!\.\.?(/|\Z))[\w .,=+@~-]*)+")
_PATH_BYTES = 4096


class PlainPath:
    """A path that libraries take literally. The link is deleted with this object; keep it.

    Attributes:
      path: `folder` itself if its name is plain, else a symbolic link to it.
    """

    def __init__(self, folder: pathlib.Path, *, shared: bool = False):
        """Creates the link if needed.

        Args:
          folder: an absolute path.
          shared: whether all processes of a run create it together and get equal paths, which
            Orbax compares; False: only this process.

        Raises:
          CheckpointError: the link cannot be created.
        """
        self.path = folder
        if is_plain(folder):
            return
        try:
            home = _shared_home() if shared and jax.process_count() > 1 else _new_home()
            self.path = home / "folder"
            weakref.finalize(self, _delete, home, os.getpid())
            _link(self.path, folder)
        except OSError as error:
            raise CheckpointError(
                f"the path has special characters, which need a symbolic link: {error}.",
                str(folder),
                "use a --run_dir of letters, digits, '-', '_' and '.', or set TMPDIR to a folder "
                "that can hold symbolic links.",
            ) from error


def _delete(home: pathlib.Path, process: int) -> None:
    if os.getpid() == process:  # not a forked one
        shutil.rmtree(home, ignore_errors=True)


def is_plain(folder: pathlib.Path) -> bool:
    """Returns whether Orbax and TensorStore take this absolute path literally."""
    return _PLAIN.fullmatch(str(folder)) is not None


def _new_home() -> pathlib.Path:
    root = tempfile.gettempdir()
    home = tempfile.mkdtemp(
        prefix="qwen_jax-", dir=root if is_plain(pathlib.Path(root)) else "/tmp"
    )
    return pathlib.Path(home)


def _shared_home() -> pathlib.Path:
    """Returns a folder with the same path in all processes, which may run on several computers."""
    path = np.zeros(_PATH_BYTES, np.uint8)
    if jax.process_index() == 0:
        encoded = os.fsencode(_new_home())
        path[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    path = np.asarray(multihost_utils.broadcast_one_to_all(path))
    home = pathlib.Path(os.fsdecode(path.tobytes().rstrip(b"\0")))
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if home.stat().st_uid != os.getuid():  # another user guessed a random name
        raise PermissionError(f"{home} belongs to another user")
    return home


def _link(link: pathlib.Path, folder: pathlib.Path) -> None:
    try:
        link.symlink_to(folder)
    except FileExistsError:  # another process on this computer created it
        if os.readlink(link) != str(folder):
            raise
