"""`--config=FILE`: settings of a program from a run's config.json, or from YAML with the same keys.

    recipe: smoke              # optional; the other settings are values on top of it
    data:
      sources: [data/mine/shards/mine/train]
    train:
      num_steps: 100

A value is read as that of the flag would be, and flags of the command line replace it.
"""

import pathlib
from collections.abc import Callable, Collection, Iterable
from typing import Any

from qwen_jax.cli import paths
from qwen_jax.cli.suggest import unknown_flag
from qwen_jax.config import with_current_names
from qwen_jax.errors import ConfigError, QwenJaxError
from qwen_jax.train.run_folder import Identity, flatten_json
from qwen_jax.utils.files import read_bytes, read_json

_FIX = "fix the file; it has the nested keys of a run's config.json."
_HISTORY = "changes"  # of a run's config.json (train/attempts/record.py)


class ConfigFile:
    """The settings of one file.

    Attributes:
      recipe: the recipe that the file names; None: it names none.
    """

    def __init__(self, path: str):
        """
        Raises:
          ConfigError: the file cannot be read, is neither JSON nor YAML, or repeats a setting.
        """
        path = self.path = paths.checked(path, "path", "--config")
        read = {".json": _json, ".yaml": _yaml, ".yml": _yaml}.get(pathlib.Path(path).suffix)
        if read is None:
            raise ConfigError(
                "a file of settings ends with .json, .yaml or .yml.",
                f"--config={path}",
                "pass the config.json of a run folder, or a YAML file with the same keys.",
            )
        content = read(path)
        self._of_run = content.keys() >= set(Identity._fields)
        if self._of_run:
            content = {
                name: value
                for name, value in content.items()
                if name not in (*Identity._fields, _HISTORY)
            }
        recipe = content.pop("recipe", None)
        self.recipe = None if recipe is None else str(recipe)
        self._settings = flatten_json(content)
        for name in content:
            rest = {key: value for key, value in content.items() if key != name}
            if "." in name and name in flatten_json(rest):
                raise ConfigError(
                    f"the setting {name!r} is given twice.", path, "keep one of them."
                )

    def section(self, name: str) -> str | None:
        """Returns the text that the file has in place of a section; None if it has none."""
        value = self._settings.get(name)
        return value if isinstance(value, str) else None

    def arguments(
        self,
        recipe: Any,
        flags: Collection[str],
        refuse: Callable[[str], QwenJaxError | None],
        join_list: Callable[[Iterable[Any]], str],
    ) -> list[str]:
        """Returns the settings as flags: --train.num_steps=100.

        Args:
          recipe: the config whose fields declare their former names.
          flags: names of the program's flags.
          refuse: name -> the error of a section that rejects this flag; None if it does not. What a
            run has recorded of the architecture is left out: --init_from sets it again.
          join_list: writes the value of a flag with a list.

        Raises:
          ConfigError: an unknown setting, which suggests the closest flag, or a value that is no
            text, number, boolean, null or list of these.
        """
        found = []
        for name, value in with_current_names(self._settings, recipe, self.path).items():
            if name in flags:
                found.append(f"--{name}={self._text(name, value, join_list)}")
            elif value is None and any(flag.startswith(f"{name}.") for flag in flags):
                continue  # a section without settings
            elif (error := refuse(name)) is None:
                raise unknown_flag("setting", name, flags, self.path)
            elif not self._of_run:
                raise error
        return found

    def _text(self, name: str, value: Any, join_list: Callable[[Iterable[Any]], str]) -> str:
        if isinstance(value, list):
            return join_list(self._text(name, each, join_list) for each in value)
        if value is None or isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, str | int | float):
            return str(value)
        raise ConfigError(
            f"{name} is a {type(value).__name__}, not a text, number, boolean, null or list.",
            self.path,
            "write it in quotes, as the value of the flag.",
        )


def _json(path: str) -> dict[str, Any]:
    if not pathlib.Path(path).exists():
        raise ConfigError("the file does not exist.", f"--config={path}", "check the path.")
    return read_json(path, error=ConfigError, fix=_FIX)


def _yaml(path: str) -> dict[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise ConfigError(
            "reading YAML needs PyYAML.", f"--config={path}", "pip install pyyaml, or pass JSON."
        ) from error

    class Loader(yaml.SafeLoader):
        """Refuses repeated keys, of which PyYAML would take the last."""

        def construct_mapping(self, node, deep=False):
            names = [self.construct_object(key, deep=True) for key, _ in node.value]
            for index, (name, (key, _)) in enumerate(zip(names, node.value, strict=True)):
                if not isinstance(name, str) or name in names[:index]:
                    problem = "a key that is repeated" if isinstance(name, str) else "no text"
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {name!r} is {problem}", key.start_mark
                    )
            return super().construct_mapping(node, deep)

    raw = read_bytes(path, error=ConfigError, fix=_FIX)
    try:
        content = yaml.load(raw, Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())[:400]
        raise ConfigError(f"the file is not valid YAML: {reason}.", path, _FIX) from None
    if not isinstance(content, dict):
        raise ConfigError("the file has no settings: it is not a mapping.", path, _FIX)
    return content
