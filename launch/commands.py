"""What the launchers of clusters share: flags, and commands that are shown or run."""

import argparse
import shlex
import shutil
import subprocess
import sys


def parse(doc: str, module: str, argv: list[str], settings: dict[str, tuple]):
    """(options, command behind --) of a launcher.

    Args:
      settings: name -> (default, what it is for); a default of None has to be given.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=doc,
        usage="%(prog)s [options] -- COMMAND",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, (default, meaning) in settings.items():
        kind = (
            {"action": "store_true"}
            if default is False
            else {
                "default": default,
                "type": str if default is None else type(default),
                "required": default is None,
                "metavar": "X",
            }
        )
        parser.add_argument(
            f"--{name}",
            help=meaning
            + (
                " (required)"
                if default is None
                else ""
                if default in (False, "")
                else f" (default {default})"
            ),
            **kind,
        )
    parser.add_argument(
        "--dry_run", action="store_true", help="print what would be done, do nothing"
    )
    return split(parser, argv)


def split(parser: argparse.ArgumentParser, argv: list[str]):
    """(options, command): what stands before and behind --.
    Ends the program where one is missing."""
    cut = argv.index("--") if "--" in argv else len(argv)
    if not argv[cut + 1 :] and not {"-h", "--help"} & set(argv):
        parser.error(
            "no command. It stands behind --, as in: -- -m experiments.pretrain --recipe=7b"
        )
    return parser.parse_args(argv[:cut]), argv[cut + 1 :]


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
