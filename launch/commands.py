"""Shared parts of the launchers: flags, and commands that are printed or run."""

import argparse
import shlex
import shutil
import subprocess
import sys

# In a checkout this module is launch.commands; installed it is qwen_jax.launch.commands.
_PARENT = __name__.removesuffix("launch.commands")
PAGES = f"{_PARENT}experiments"
_PROGRAM = "qwen-jax launch." if _PARENT else "python -m launch."


def parse(doc: str | None, launcher: str, argv: list[str], settings: dict[str, tuple]):
    """Returns (options, command after --) of a launcher.

    Args:
      launcher: name of its module.
      settings: name -> (default, help); a flag with default None is required.
    """
    parser = make_parser(doc, launcher)
    for name, (default, help_text) in settings.items():
        if default is False:
            parser.add_argument(f"--{name}", help=help_text, action="store_true")
        elif default is None:
            parser.add_argument(
                f"--{name}", help=f"{help_text} (required)", required=True, metavar="X"
            )
        else:
            shown = f"{help_text} (default {default})" if default != "" else help_text
            parser.add_argument(
                f"--{name}", help=shown, type=type(default), default=default, metavar="X"
            )
    parser.add_argument(
        "--dry_run", action="store_true", help="print the commands, but do not run them"
    )
    return split(parser, argv)


def make_parser(doc: str | None, launcher: str) -> argparse.ArgumentParser:
    """Returns a launcher's parser; command lines in its help fit a checkout or an installation."""
    return argparse.ArgumentParser(
        prog=_PROGRAM + launcher,
        description=(doc or "").replace("python -m launch.", _PROGRAM),
        usage="%(prog)s [options] -- COMMAND",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def split(parser: argparse.ArgumentParser, argv: list[str]):
    """Returns (options, arguments for Python), from before and after `--`.

    A command that starts with an identifier is an experiment: `pretrain --recipe=7b` is the module
    of that name. Exits without a command.
    """
    end = argv.index("--") if "--" in argv else len(argv)
    if not argv[end + 1 :] and not {"-h", "--help"} & set(argv):
        parser.error(
            "no command is given. Put it after --, for example: -- pretrain --recipe=7b; "
            "--help lists the options."
        )
    command = argv[end + 1 :]
    if command and command[0].isidentifier():
        command = ["-m", f"{PAGES}.{command[0]}", *command[1:]]
    return parser.parse_args(argv[:end]), command


def need(program: str, where: str, *, dry_run: bool) -> None:
    """Exits if a program that the launcher calls is not installed."""
    if not dry_run and shutil.which(program) is None:
        sys.exit(
            f"{program} is not installed here, but this launcher needs it: see {where}. "
            "--dry_run prints the commands without it."
        )


def run(command: list[str], *, dry_run: bool, text: str | None = None) -> int:
    """Runs or prints a command; returns its exit code.

    Args:
      text: its standard input.
    """
    if dry_run:
        print(shlex.join(command) + (f" <<'END'\n{text}END" if text else ""))
        return 0
    print("+ " + shlex.join(command), file=sys.stderr, flush=True)
    return subprocess.run(command, input=text, text=True, check=False).returncode
