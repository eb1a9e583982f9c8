"""Small files: JSON objects, read with an error that names the file, and written."""

import json
import pathlib

from qwen_jax.errors import CheckpointError


def read_json(file: pathlib.Path) -> dict:
    """The object in a JSON file, or a CheckpointError that names the file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"there is no {file.name}.", str(file.parent), "pass the folder that holds it."
        ) from None
    except ValueError as error:
        raise CheckpointError(
            f"{file.name} is not JSON: {error}.", str(file), "copy the file again."
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{file.name} holds no JSON object.", str(file), "copy the file again."
        )
    return content


def write_json(file: pathlib.Path, content: dict) -> None:
    """Indented JSON with a final newline, UTF-8."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
