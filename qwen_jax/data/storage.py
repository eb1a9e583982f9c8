"""Files of a source: of this computer by the operating system, of object stores by the data engine.
"""

import dataclasses
import hashlib
import pathlib
from typing import BinaryIO

from qwen_jax.data.engine import daft
from qwen_jax.errors import DataError

REMOTE = ("s3://", "gs://", "az://", "http://", "https://")


@dataclasses.dataclass(frozen=True)
class File:
    name: str  # its path in the source; "" where the source is the file
    size: int  # bytes
    changed: int = 0  # when, in nanoseconds; 0 where that is not known


def listing(path: str) -> list[File]:
    """The files of a file or folder in the order of their names, hidden ones left out.

    Raises:
      DataError: there are none, or the place does not answer.
    """
    if path.startswith(REMOTE):
        return _remote_listing(path)
    root = pathlib.Path(path)
    if not root.exists():
        raise DataError("this source does not exist.", path,
                        "check the name; a source is a file or a folder of files.")
    found = [root] if root.is_file() else [
        file for file in root.rglob("*") if file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(root).parts)]
    if not found:
        raise DataError("this source is an empty folder.", path, "put files there.")
    files = []
    for file in found:
        status = file.stat()
        name = "" if file == root else file.relative_to(root).as_posix()
        files.append(File(name, status.st_size, status.st_mtime_ns))
    return sorted(files, key=lambda file: file.name)


def _remote_listing(path: str) -> list[File]:
    engine = daft()
    for pattern in (f"{path}/**", path):
        try:
            rows = engine.from_glob_path(pattern).to_pydict()
        except FileNotFoundError:
            continue
        except Exception as error:  # whatever its clients raise: the run has not begun
            raise DataError(f"cannot be listed: {str(error).splitlines()[0]}.", path,
                            "check the address and the credentials in the environment.") from error
        prefix = len(path) + 1 if pattern != path else len(rows["path"][0])
        files = [File(full[prefix:], size) for full, size in
                 zip(rows["path"], rows["size"], strict=True)]
        files = [file for file in files
                 if not any(part.startswith(".") for part in file.name.split("/"))]
        if files:
            return sorted(files, key=lambda file: file.name)
    raise DataError("there are no files.", path, "check the address.")


def open_binary(path: str) -> BinaryIO:
    """The file, to read; it can be told to go to any place."""
    return daft().open_file(path, "rb") if path.startswith(REMOTE) else open(path, "rb", 1 << 20)


def row_groups(path: str, size: int) -> list[int]:
    """Rows of a Parquet file at which to cut it into parts of about `size` bytes: from 0 to all."""
    import pyarrow
    import pyarrow.parquet

    cuts, total = [0], 0
    try:
        with open_binary(path) as file:
            metadata = pyarrow.parquet.ParquetFile(file).metadata
    except pyarrow.ArrowException as error:
        raise DataError(f"not a Parquet file: {error}.", path, "write it again.") from error
    rows = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if total and total + group.total_byte_size > size:
            cuts.append(rows)
            total = 0
        rows += group.num_rows
        total += group.total_byte_size
    return [*cuts, rows]


def digest(text: str) -> str:
    """32 hex digits that stand for a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
