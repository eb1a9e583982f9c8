"""What a folder says about its tokenizer besides ids: roles of tokens, templates, files.

transformers 4 and 5 write the same facts in different files and under different names:

    named tokens     tokenizer_config.json, before that special_tokens_map.json
    other specials   additional_special_tokens, or extra_special_tokens as a list or by name
    chat templates   chat_template as a string or a list; chat_template.jinja and
                     additional_chat_templates/NAME.jinja, which count more
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from qwen_jax.errors import CheckpointError, TokenizerError
from qwen_jax.utils.files import read_bytes

CONFIG = "tokenizer_config.json"
GENERATION = "generation_config.json"  # of the model; kept here since it names ids of tokens
_SPECIAL_MAP = "special_tokens_map.json"
_TEMPLATE = "chat_template.jinja"
_MORE_TEMPLATES = "additional_chat_templates"
_FILES = (
    "tokenizer.json",
    CONFIG,
    _SPECIAL_MAP,
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    _TEMPLATE,
    GENERATION,
)
_MAX_BYTES = 1 << 28  # of tokenizer.json; those of large vocabularies have 20 MB
_UNLIMITED = 1 << 40  # transformers writes 10^30 for a length without limit


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a tokenizer's files say besides tokens and ids.

    Args:
      named: name of a role ("eos_token", "bos_token", "pad_token", ...) -> token.
      model_max_length: tokens that the model takes; None: the files do not say.
      chat_templates: name -> Jinja source; the usual name is "default".
      files: name -> content of each file, as it was read.
      generation: what generation_config.json says about sampling and the ids that end a completion.
    """

    named: Mapping[str, str] = dataclasses.field(default_factory=dict)
    model_max_length: int | None = None
    chat_templates: Mapping[str, str] = dataclasses.field(default_factory=dict)
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict, repr=False)
    generation: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read_files(path: pathlib.Path) -> dict[str, bytes]:
    """Returns name -> content of the files of a tokenizer.

    Args:
      path: a folder, or one file, which is then the only one.

    Raises:
      TokenizerError: a file cannot be read, or is too large.
    """
    names = {path.name: path}
    if not path.is_file():
        names = {name: path / name for name in file_names(path)}
    return {
        name: read_bytes(
            file, error=TokenizerError, fix="download the file again.", max_bytes=_MAX_BYTES
        )
        for name, file in names.items()
    }


def file_names(folder: pathlib.Path) -> list[str]:
    """Returns the names of the files of a tokenizer in a folder, also of damaged ones."""
    more = sorted((folder / _MORE_TEMPLATES).glob("*.jinja"))
    return [
        *(name for name in _FILES if os.path.lexists(folder / name)),
        *sorted(file.name for file in folder.glob("*.tiktoken")),
        *(f"{_MORE_TEMPLATES}/{file.name}" for file in more),
    ]


def parse_json(files: Mapping[str, bytes], name: str, where: str) -> dict[str, Any]:
    """Returns the JSON object in a file; {}: there is no such file.

    Raises:
      CheckpointError: it is not a JSON object.
    """
    if name not in files:
        return {}
    try:
        found = json.loads(files[name])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"the file is not JSON: {error}.", f"{where}/{name}", "download the file again."
        ) from None
    if not isinstance(found, dict):
        raise CheckpointError(
            "the file is not a JSON object.", f"{where}/{name}", "download the file again."
        )
    return found


def special_names(config: Mapping[str, Any]) -> list[str]:
    """Returns the tokens that the settings call special, in any role."""
    names = list(_named(config).values())
    for key in ("additional_special_tokens", "extra_special_tokens"):
        listed = config.get(key) or []
        listed = listed.values() if isinstance(listed, dict) else listed
        names += [name for item in listed if (name := _content(item)) is not None]
    return list(dict.fromkeys(names))


def read_config(files: Mapping[str, bytes], where: str) -> dict[str, Any]:
    """Returns tokenizer_config.json, with the roles of special_tokens_map.json where it has none.

    Raises:
      CheckpointError: a file is not JSON.
      TokenizerError: text would get tokens that are not in it, such as one at its start.
    """
    config = parse_json(files, _SPECIAL_MAP, where) | parse_json(files, CONFIG, where)
    for flag, role in (("add_bos_token", "bos_token"), ("add_eos_token", "eos_token")):
        if config.get(flag) and config.get(role) is not None:
            raise TokenizerError(
                f"{flag} is true: every text would get a {role}.",
                f"{where}/{CONFIG}",
                f"set {flag} to false; training puts <|endoftext|> between documents.",
            )
    if config.get("add_prefix_space"):
        raise TokenizerError(
            "add_prefix_space is true: every text would get a blank at its start.",
            f"{where}/{CONFIG}",
            "use a tokenizer of Qwen, which adds none.",
        )
    return config


def read_settings(files: Mapping[str, bytes], config: Mapping[str, Any], where: str) -> Settings:
    """Returns the settings.

    Args:
      config: what read_config returns.

    Raises:
      TokenizerError: the chat templates are malformed.
    """
    length = config.get("model_max_length")
    limited = isinstance(length, int | float) and 0 < length < _UNLIMITED
    return Settings(
        named=_named(config),
        model_max_length=int(length) if limited and length is not None else None,
        chat_templates=_templates(files, config, where),
        files=files,
        generation=parse_json(files, GENERATION, where),
    )


def _named(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns the roles whose name ends with _token, also those of a dict of extra tokens."""
    extra = config.get("extra_special_tokens")
    roles = dict(config) | (extra if isinstance(extra, dict) else {})
    return {
        role: content
        for role, value in roles.items()
        if role.endswith("_token") and (content := _content(value)) is not None
    }


def _content(value: Any) -> str | None:
    """Returns the text of a token, which is a string or an object with its flags."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _templates(files: Mapping[str, bytes], config: Mapping[str, Any], where: str) -> dict[str, str]:
    found = {}
    for name, data in files.items():
        if name == _TEMPLATE or name.startswith(_MORE_TEMPLATES):
            key = "default" if name == _TEMPLATE else pathlib.PurePosixPath(name).stem
            try:
                found[key] = data.decode("utf-8")
            except UnicodeDecodeError:
                raise TokenizerError(
                    "the chat template is not UTF-8.", f"{where}/{name}", "save it as UTF-8."
                ) from None
    if found:
        return found
    template = config.get("chat_template")
    if isinstance(template, str):
        return {"default": template}
    try:
        named = {item["name"]: item["template"] for item in template or ()}
    except (KeyError, TypeError):
        named = {"": None}
    if not all(isinstance(text, str) for pair in named.items() for text in pair):
        raise TokenizerError(
            "chat_template is neither text nor a list of names and templates.",
            f"{where}/{CONFIG}",
            "download the file again.",
        )
    return {name: str(text) for name, text in named.items()}
