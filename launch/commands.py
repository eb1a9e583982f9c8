"""Shared code of the launchers: flags, and commands to print or run."""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn

from qwen_jax import exit_codes
from qwen_jax.utils import output

# This module is launch.commands in a checkout and qwen_jax.launch.commands when installed.
_PARENT = __name__.removesuffix("launch.commands")
PAGES = f"{_PARENT}experiments"
_PROGRAM = "qwen-jax launch " if _PARENT else "python -m launch."
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")  # of an environment variable


def parse(doc: str | None, launcher: str, argv: list[str], settings: dict[str, tuple]):
    """Parses a launcher's command line; returns (options, command after --).

    Args:
      launcher: name of the launcher's module.
      settings: name -> (default, help text) or, of an integer, (default, help text, minimum). A
        flag whose default is None is required; one with a list may be repeated. `env` holds
        NAME=VALUE pairs, which become a dictionary.
    """
    parser = make_parser(doc, launcher)
    required, minimum = {}, {}
    for name, (default, help_text, *least) in settings.items():
        if default is False:
            parser.add_argument(f"--{name}", help=help_text, action="store_true")
        elif isinstance(default, list):
            shown = f"{help_text} (may be repeated)"
            parser.add_argument(
                f"--{name}", help=shown, action="append", default=[*default], metavar="X"
            )
        elif default is None:
            required[name] = help_text
            parser.add_argument(f"--{name}", help=f"{help_text} (required)", metavar="X")
        else:
            shown = f"{help_text} (default {default})" if default != "" else help_text
            parser.add_argument(
                f"--{name}", help=shown, type=type(default), default=default, metavar="X"
            )
            if isinstance(default, int):
                minimum[name] = least[0] if least else 0
    parser.add_argument(
        "--dry_run", action="store_true", help="print the commands, but do not run them"
    )
    return split(parser, argv, required, minimum)


def environment(pairs: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Returns the variables of NAME=VALUE pairs, and what is wrong with them.

    Example:
      >>> environment(["A=1", "B"])
      ({'A': '1'}, ["--env=B is not NAME=VALUE"])
    """
    found, wrong = {}, []
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not _NAME.fullmatch(name):
            wrong.append(f"--env={pair} is not NAME=VALUE")
        elif name in found:
            wrong.append(f"--env={pair} sets {name} a second time")
        else:
            found[name] = value
    return found, wrong


def make_parser(doc: str | None, launcher: str) -> argparse.ArgumentParser:
    """Returns a launcher's parser; its help shows the commands of a checkout or an installation."""
    return argparse.ArgumentParser(
        prog=_PROGRAM + launcher,
        description=(doc or "").replace("python -m launch.", _PROGRAM),
        usage="%(prog)s [options] -- COMMAND",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def split(
    parser: argparse.ArgumentParser,
    argv: list[str],
    required: Mapping[str, str] | None = None,
    minimum: Mapping[str, int] | None = None,
):
    """Parses the arguments before and after `--`; returns (options, arguments for Python).

    A command that starts with an identifier runs the experiment of that name, such as
    `pretrain --recipe=7b`. Exits with one error that lists all that is wrong or missing: a required
    flag with an empty value is missing too.

    Args:
      required: name -> help text of the flags that must have a value.
      minimum: name -> the least value of an integer.
    """
    end = argv.index("--") if "--" in argv else len(argv)
    options, unknown = parser.parse_known_args(argv[:end])
    wrong = [f"unrecognized arguments: {shlex.join(unknown)}"] if unknown else []
    wrong += [
        f"--{name} is missing: {help_text}"
        for name, help_text in (required or {}).items()
        if not (getattr(options, name) or "").strip()
    ]
    wrong += [
        f"--{name}={getattr(options, name)} is less than {least}"
        for name, least in (minimum or {}).items()
        if getattr(options, name) < least
    ]
    if "env" in options:
        options.env, bad = environment(options.env)
        wrong += bad
    command = argv[end + 1 :]
    if not command:
        wrong.append("no command is given. Put it after --, for example: -- pretrain --recipe=7b")
    if wrong:
        parser.error("\n  ".join([*wrong, "--help lists the options."]))
    if command[0].isidentifier():
        command = ["-m", f"{PAGES}.{command[0]}", *command[1:]]
    return options, command


def exit_with(main: Callable[[list[str]], int]) -> NoReturn:
    """Runs a launcher's main, and exits with its code."""
    with output.exit_on_closed_pipe():
        try:
            sys.exit(main(sys.argv[1:]))
        except OSError as error:
            if exit_codes.full_disk(error) is None:
                raise
            output.print_error(f"{error.filename or 'the output'}: {error.strerror}")
            sys.exit(exit_codes.DISK_FULL)


def need(program: str, where: str, *, dry_run: bool) -> None:
    """Exits with an error if a program that the launcher calls is not installed."""
    if not dry_run and shutil.which(program) is None:
        sys.exit(
            f"{program} is not installed, but this launcher requires it: see {where}. "
            "--dry_run prints the commands without running them."
        )


def run(command: list[str], *, dry_run: bool, text: str | None = None) -> int:
    """Runs a command, or prints it for a dry run; returns the exit code.

    Args:
      text: standard input of the command.
    """
    if dry_run:
        print(shlex.join(command) + (f" <<'END'\n{text}END" if text else ""))
        return 0
    print("+ " + shlex.join(command), file=sys.stderr, flush=True)
    return subprocess.run(command, input=text, text=True, check=False).returncode
