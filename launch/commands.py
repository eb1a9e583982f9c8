"""What the launchers of clusters share: flags, and commands that are shown or run."""

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
    """(options, command behind --) of a launcher.

    Args:
      launcher: name of its module.
      settings: name -> (default, what it is for); a default of None has to be given.
    """
    parser = make_parser(doc, launcher)
    for name, (default, meaning) in settings.items():
        if default is False:
            parser.add_argument(f"--{name}", help=meaning, action="store_true")
        elif default is None:
            parser.add_argument(
                f"--{name}", help=f"{meaning} (required)", required=True, metavar="X"
            )
        else:
            shown = f"{meaning} (default {default})" if default != "" else meaning
            parser.add_argument(
                f"--{name}", help=shown, type=type(default), default=default, metavar="X"
            )
    parser.add_argument(
        "--dry_run", action="store_true", help="print what would be done, do nothing"
    )
    return split(parser, argv)


def make_parser(doc: str | None, launcher: str) -> argparse.ArgumentParser:
    """A launcher's parser, with the command lines of its docstring as they are typed here."""
    return argparse.ArgumentParser(
        prog=_PROGRAM + launcher,
        description=(doc or "").replace("python -m launch.", _PROGRAM),
        usage="%(prog)s [options] -- COMMAND",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def split(parser: argparse.ArgumentParser, argv: list[str]):
    """(options, what Python is given): from before and behind --.

    A command that begins with a word is a page: `pretrain --recipe=7b` is the module of that name.
    Ends the program where there is no command.
    """
    cut = argv.index("--") if "--" in argv else len(argv)
    if not argv[cut + 1 :] and not {"-h", "--help"} & set(argv):
        parser.error("no command. It stands behind --, as in: -- pretrain --recipe=7b")
    command = argv[cut + 1 :]
    if command and command[0].isidentifier():
        command = ["-m", f"{PAGES}.{command[0]}", *command[1:]]
    return parser.parse_args(argv[:cut]), command


def need(program: str, where: str, *, dry_run: bool) -> None:
    """Ends the program if one that it calls is not installed."""
    if not dry_run and shutil.which(program) is None:
        sys.exit(
            f"{program} is not installed here, and this launcher calls it: see {where}. "
            "--dry_run shows what would be called."
        )


def run(command: list[str], *, dry_run: bool, text: str | None = None) -> int:
    """Runs a command to its end, or prints it; its exit code.

    Args:
      text: for its standard input.
    """
    if dry_run:
        print(shlex.join(command) + (f" <<'END'\n{text}END" if text else ""))
        return 0
    print("+ " + shlex.join(command), file=sys.stderr, flush=True)
    return subprocess.run(command, input=text, text=True, check=False).returncode
