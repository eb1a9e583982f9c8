"""Command-line flags of a frozen dataclass: --train.num_steps=100 sets config.train.num_steps.

Every experiment has named recipes (--recipe). Each field of a recipe has a flag. An unknown flag is
an error that suggests the closest known flag. --config=FILE has values of flags (config_file.py). A
run prints its differences from the recipe.
"""

import contextlib
import dataclasses
import functools
import inspect
import os
import re
import sys
import traceback
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
from absl import flags

from qwen_jax import exit_codes
from qwen_jax.cli import console, paths
from qwen_jax.cli.config_file import ConfigFile
from qwen_jax.cli.suggest import unknown_flag
from qwen_jax.config import renamed, renamed_values, warn_renamed
from qwen_jax.errors import ConfigError, DiskFullError, QwenJaxError, unknown_name
from qwen_jax.parallel import distributed, xla_options
from qwen_jax.parallel.cpu import virtual_devices
from qwen_jax.ranges import check_field
from qwen_jax.train.run_folder import flatten
from qwen_jax.utils import output
from qwen_jax.utils.files import disk_full, out_of_reach

log = functools.partial(print, flush=True)  # the default logger of runs
_GENERAL = ("help", "h", "recipe", "config")  # flags that are no fields


def parse(doc: str | None, recipes: Mapping[str, Any], argv: list[str]) -> tuple[str, Any]:
    """Parses the command line into a config.

    Args:
      doc: the experiment's docstring, printed first by --help.
      recipes: name -> config; the first one is the default. A former name maps to its current name.
      argv: sys.argv.
    Returns:
      (recipe name, config).
    Raises:
      ConfigError: a flag or recipe is unknown, or a value has the wrong type or is out of range; or
        the same of a setting of --config.
    """
    for argument in argv[1:]:
        if re.search(r"[\ud800-\udfff]", argument):  # what Python makes of bytes it cannot decode
            shown = argument.encode("utf-8", "backslashreplace").decode()[:200]
            raise ConfigError("the flag is not UTF-8.", shown, "use a name in UTF-8.")
    default = next(iter(recipes))
    values = _defined(recipes, default)
    if any(re.fullmatch("--?flagfile=\\s*", argument) for argument in argv[1:]):  # absl skips it
        raise ConfigError("the path is empty.", "--flagfile", "pass a file of flags, or omit it.")
    try:
        argv = argv[:1] + values.read_flags_from_files(argv[1:], force_gnu=False)  # --flagfile
    except flags.Error as error:
        raise ConfigError(f"{error}.", "--flagfile", "check the path.") from error
    requested = functools.partial(_requested, argv, renamed(recipes[default]), values)
    path = requested("config")
    file = None if path is None else ConfigFile(path)
    name = requested("recipe") or (file and file.recipe) or default
    where = "--recipe" if requested("recipe") or file is None else file.path
    if name not in recipes:
        raise unknown_name("recipe", name, recipes, where)
    if isinstance(recipes[name], str):
        place = "the command line" if where == "--recipe" else where
        warn_renamed(f"--recipe={name}", f"--recipe={recipes[name]}", place)
        name = recipes[name]
    recipe = _with_named_sections(recipes[name], requested, file)
    values = values if recipe is recipes[default] else _defined({name: recipe}, name, recipes)
    argv = _with_current_names(argv, recipe, values)
    if file is not None:
        refuse = functools.partial(_refused_flag, recipe)
        settings = file.arguments(recipe, set(values).difference(_GENERAL), refuse, join_list)
        _read([*argv[:1], *settings], recipe, values, file.path)
    rest = _read(argv, recipe, values, "the command line")
    if values["help"].value:
        print(_help(doc, recipes, name, values), flush=True)
        sys.exit(0)
    if rest:
        _take_positional(rest, recipe, values)
    return name, _rebuild(recipe, "", values)


def _with_named_sections(recipe: Any, requested, file: ConfigFile | None) -> Any:
    """Returns a recipe with the sections that a flag names as a whole, such as --model=7b.

    The metadata `named` of such a field is a function: (recipe, name, flag) -> recipe.
    """
    for field in dataclasses.fields(recipe):
        if (named := field.metadata.get("named")) is None:
            continue
        where, text = f"--{field.name}", requested(field.name)
        if text is None and file is not None:
            where, text = file.path, file.section(field.name)
        if text is not None:
            recipe = named(recipe, paths.checked(text, "path", where), where)
    return recipe


def _read(argv: list[str], recipe, values: flags.FlagValues, where: str) -> list[str]:
    """Sets the flags of `argv`; returns its other arguments."""
    try:
        return values(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        raise _refused_flag(recipe, error.flagname) or unknown_flag(
            "flag", error.flagname, list(values), where
        ) from error
    except flags.Error as error:
        text = re.sub(r"\('Non-boolean argument.*', (.*)\)", r"\1 is not true or false", str(error))
        text = re.sub(r"invalid literal for int\(\).*?: (.*)", r"\1 is not an integer", text)
        text = re.sub(r"could not convert string to float: (.*)", r"\1 is not a number", text)
        text = text if len(text) <= 400 else f"{text[:400]}..."
        raise ConfigError(f"{text}.", where, "see --help.") from error


def _take_positional(arguments: list[str], recipe, values: flags.FlagValues) -> None:
    """Gives arguments that are not flags to the field that takes them (config.option)."""
    for field in dataclasses.fields(recipe):
        if field.metadata.get("positional"):
            values[field.name].value = arguments
            return
    model = any(field.name == "checkpoint" for field in dataclasses.fields(recipe))
    example = f"--checkpoint={arguments[0]}" if model else "--name=value"
    raise ConfigError(
        f"positional arguments are not supported: {' '.join(arguments)}.",
        "the command line",
        f"pass every setting as a flag: {example}.",
    )


def _defined(
    recipes: Mapping[str, Any], name: str, known: Mapping[str, Any] | None = None
) -> flags.FlagValues:
    """Defines the flags of a recipe.

    Args:
      known: the recipes that --recipe accepts; None: `recipes`.
    """
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # flags may follow other arguments
    flags.DEFINE_enum(
        "recipe",
        name,
        list(known or recipes),
        "recipe to start from; the other flags change its settings",
        flag_values=values,
    )
    text = "settings from a run's config.json or a YAML file with the same keys; flags replace them"
    flags.DEFINE_string("config", None, text, flag_values=values)
    flags.DEFINE_bool("help", False, "show this help", short_name="h", flag_values=values)
    _define(recipes[name], "", values)
    return values


def _refused_flag(config, flag: str) -> ConfigError | None:
    """Returns the error of a section that rejects this flag; None if it does not."""
    section, _, name = flag.partition(".")
    if section.startswith("no") and not hasattr(
        config, section
    ):  # --nomodel.NAME means --model.NAME=false
        section = section[2:]
    refuse = getattr(getattr(config, section, None), "refuse", None)
    return refuse and refuse(name)


def differences(config, recipe) -> list[str]:
    """Returns `name: recipe value -> value` per changed field; API keys are masked."""
    old, new = flatten(recipe), flatten(config)
    return [
        f"{name}: {old[name]!r} -> {'***' if name.endswith('api_key') else repr(new[name])}"
        for name in new
        if new[name] != old[name]
    ]


def run(main, doc: str | None, recipes: Mapping[str, Any], argv: list[str] | None = None) -> None:
    """Parses the flags, connects the processes of the run and calls main(config).

    Prints the differences from the recipe. A QwenJaxError or a full disk is printed without a
    traceback. The exit code is from qwen_jax.exit_codes. Only process 0 writes to stdout; every
    process writes to stderr. Exits quietly if the reader of the output is gone.
    """
    output.reserve_descriptors()
    flags.FLAGS.mark_as_parsed()  # libraries (Grain) read absl's global flags
    virtual_devices.reserve_threads()
    xla_options.reserve_gpu_memory()
    with output.exit_on_closed_pipe():
        _run(main, doc, recipes, sys.argv if argv is None else argv)


def _run(main, doc: str | None, recipes: Mapping[str, Any], argv: list[str]) -> None:
    package = sys.modules[main.__module__].__package__
    try:
        name, config = parse(console.as_typed(doc or "", package), recipes, argv)
        found = distributed.start()
        if distributed.is_distributed() and jax.process_index() > 0:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")
        changed = differences(config, recipes[name])
        shown = f"recipe {name}" + (", but " + "; ".join(changed) if changed else "")
        with contextlib.suppress(OSError):  # `main` decides whether it goes on without a reader
            print(*([found] if found is not None else []), shown, sep="\n", flush=True)
        main(config)
        if sys.stdout is not None:
            sys.stdout.flush()  # results that a full disk does not take are an error
    except KeyboardInterrupt:  # before or after the training loop, which saves a checkpoint
        output.print_error("stopped by Ctrl-C; run the same command to start or resume it")
        distributed.exit_process(exit_codes.INTERRUPTED)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and output.is_closed():
            raise
        code = exit_codes.of(error)
        if isinstance(error, QwenJaxError):
            text = f"{type(error).__name__}:{error}"
        elif (failed := exit_codes.file_error(error)) is not None:
            shown = out_of_reach(failed)
            text = f"{type(shown).__name__}:{shown}"
        elif (cause := exit_codes.full_disk(error)) is not None:  # of a library, without the file
            text = f"{DiskFullError.__name__}:{disk_full(cause)}"
        else:
            text = "".join(traceback.format_exception(error)).rstrip()
        output.print_error(console.as_typed(text, package))
        distributed.exit_process(code)


class _List(flags.ListParser):
    r"""Parses comma-separated values, each with `inner`; `\,` is a comma inside a value.

    Only backslashes before a comma are special: each pair is one backslash.
    """

    def __init__(self, inner: flags.ArgumentParser):
        super().__init__()
        self._inner = inner

    def parse(self, argument) -> list[Any]:
        values = argument if isinstance(argument, list) else _split(argument)
        return [self._inner.parse(value) for value in values]


def _split(text: str) -> list[str]:
    """Splits at commas, and strips spaces around the values (paths.stripped); "" has none."""
    values = [""]
    for part, slashes, comma in re.findall(r"(.*?)(\\*)(,|\Z)", text, re.DOTALL):
        escaped = comma and len(slashes) % 2
        values[-1] += part + (slashes[: len(slashes) // 2] if comma else slashes)
        if escaped:
            values[-1] += ","
        elif comma:
            values.append("")
    return list(map(paths.stripped, values)) if text else []


def join_list(values: Iterable[Any]) -> str:
    """Writes the value of a flag with a list. For a shell, quote it with shlex.quote."""
    escaped = [re.sub(r"(\\*),", r"\1\1\\,", str(value)) for value in values]
    ended = [re.sub(r"(\\+)\Z", r"\1\1", value) for value in escaped[:-1]]  # a comma follows
    return ",".join(ended + escaped[-1:])


class _Optional(flags.ArgumentParser):
    """Parses `none` as None, and other values with `inner`."""

    def __init__(self, inner: flags.ArgumentParser):
        super().__init__()
        self._inner = inner

    def parse(self, argument):
        if argument is None or str(argument).lower() == "none":
            return None
        return self._inner.parse(argument)

    def flag_type(self) -> str:
        return f"{self._inner.flag_type()} or none"


def _parser(annotation) -> flags.ArgumentParser:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        (inner,) = [a for a in arguments if a is not type(None)]
        return _Optional(_parser(inner))
    if origin is typing.Literal:
        return flags.EnumParser(list(arguments))
    if origin is tuple:
        return _List(_parser(arguments[0]))
    return {
        int: flags.IntegerParser,
        float: flags.FloatParser,
        bool: flags.BooleanParser,
        str: flags.ArgumentParser,
    }[annotation]()


_hints = functools.cache(typing.get_type_hints)


def _define(config, prefix: str, values: flags.FlagValues) -> None:
    hints = _hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            if "named" in field.metadata:
                flags.DEFINE_string(
                    prefix + field.name,
                    None,
                    field.metadata["help"],
                    flag_values=values,
                    module_name=__name__,
                )
            _define(value, f"{prefix}{field.name}.", values)
            continue
        limits = field.metadata.get("limits")
        texts = (_choices(hints[field.name]), field.metadata.get("help"), limits and str(limits))
        help_text = "; ".join(filter(None, texts))
        if hints[field.name] is bool:  # --name, --noname, --name=true
            flags.DEFINE_bool(prefix + field.name, value, help_text, values, __name__)
        else:
            flags.DEFINE(
                _parser(hints[field.name]),
                prefix + field.name,
                list(value) if isinstance(value, tuple) else value,
                help_text,
                flag_values=values,
                module_name=__name__,  # otherwise absl searches the stack for it
            )


def _choices(annotation) -> str:
    """Returns the choices of a Literal (or a tuple of Literals) as help text, else ''."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return f"one of {', '.join(map(str, arguments))}"
    return _choices(arguments[0]) if typing.get_origin(annotation) is tuple else ""


_FLAG = re.compile(r"--?([\w.]+)(?:=(.*))?", re.DOTALL)


def _each_flag(
    argv: list[str], names: Mapping[str, str], defined: flags.FlagValues
) -> Iterator[tuple[str, str, str | None]]:
    """Yields (what precedes the value, name of the flag, value) of each argument.

    The name of a value that is an argument of its own (--seed -1) is that of the flag before it,
    even if the value looks like a flag. Arguments that are not flags have an empty name.
    """
    pending = ""
    for argument in argv:
        match = None if pending else _FLAG.fullmatch(argument)
        if match is None:
            yield "", pending, argument
            pending = ""
            continue
        name, value = match[1], match[2]
        yield argument.removesuffix(value or ""), name, value
        name = names.get(name, name)
        takes_next = value is None and name in defined and not defined[name].boolean
        pending = name if takes_next else ""


def _requested(
    argv: list[str], names: Mapping[str, str], defined: flags.FlagValues, flag: str
) -> str | None:
    """Returns the value of the last flag of this name; None if there is none."""
    found = [value for _, name, value in _each_flag(argv, names, defined) if name == flag]
    return next((value for value in reversed(found) if value is not None), None)


def _with_current_names(argv: list[str], config, defined: flags.FlagValues) -> list[str]:
    """Replaces former flag names and values with the current ones; warns once for each."""
    names, values = renamed(config), renamed_values(config)
    current: list[str] = []
    warned: set[str] = set()

    def warn(former: str, flag: str) -> None:
        if former not in warned:
            warn_renamed(former, flag, "the command line")
        warned.add(former)

    for start, flag, value in _each_flag(argv, names, defined):
        negated = start and flag.startswith("no") and flag not in names and flag[2:] in names
        former = flag[2:] if negated else flag
        if start and former in names:
            warn(f"--{former}", f"--{names[former]}")
            flag = names[former]
            start = f"--{'no' if negated else ''}{flag}{'' if value is None else '='}"
        if value is not None and value in values.get(flag, ()):
            warn(f"--{flag}={value}", f"--{flag}={values[flag][value]}")
            value = values[flag][value]
        current.append(start + (value or ""))
    return current


def _rebuild(config, prefix: str, values: flags.FlagValues):
    changes = {}
    for field in dataclasses.fields(config):
        old = getattr(config, field.name)
        if dataclasses.is_dataclass(old):
            new = _rebuild(old, f"{prefix}{field.name}.", values)
        else:
            new = values[prefix + field.name].value
            new = tuple(new) if isinstance(new, list) else new
            if new != old:  # here, because only the flags know the section's name
                where = f"--{prefix}{field.name}"
                new = paths.checked(new, field.metadata.get("kind", "path"), where)
                check_field(type(config), field.name, new, where)
        if new != old:
            changes[field.name] = new
    try:
        return dataclasses.replace(config, **changes) if changes else config
    except ConfigError as error:  # of the section, which does not know its name
        flags_of = {name: f"--{prefix}{name}" for name in changes}
        named = {getattr(type(config), "_where", "{}").format(name): name for name in changes}
        where = flags_of.get(named.get(error.where, ""), error.where)
        if not any(flag[2:] in f"{error.what} {where}" for flag in flags_of.values()):
            where += f", set by {', '.join(flags_of.values())}"
        raise ConfigError(error.what, where, error.fix) from None


def _help(doc: str | None, recipes: Mapping[str, Any], name: str, values: flags.FlagValues) -> str:
    current = [name for name, recipe in recipes.items() if not isinstance(recipe, str)]
    lines = [
        inspect.cleandoc(doc or ""),
        "",
        f"Recipes (--recipe=): {', '.join(current)}. The flags below show the values of {name!r}.",
        f"--config=FILE: {values['config'].help}.",
        r"Values of a list are separated by commas; \, is a comma inside a value. Spaces around a "
        "value do not count, unless a file has that very name.",
        "",
    ]
    for flag in sorted(values):
        if flag in _GENERAL:
            continue
        value = values[flag].value
        lines.append(
            f"  --{flag}={join_list(value) if isinstance(value, list) else value}"
            + (f"  # {values[flag].help}" if values[flag].help else "")
        )
    return "\n".join(lines)
