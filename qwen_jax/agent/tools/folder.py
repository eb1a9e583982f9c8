"""Names of files that a model writes: they stay in the working folder."""

import pathlib


class OutsideError(OSError):
    """A name that leads out of the folder."""


def inside(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Returns the path of a file of a folder.

    Raises:
      OutsideError: it is outside of the folder, also by a symbolic link.
    """
    path = folder / name
    try:
        outside = not path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError) as error:
        raise OutsideError(f"{name[:100]!r} is not a name of a file: {error}") from None
    if outside or not name:
        raise OutsideError(f"{name[:100]!r} is not in the working folder")
    return path
