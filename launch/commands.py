"""What the launchers of clusters share: flags, and commands that are shown or run."""

import argparse
import shlex
import subprocess
import sys


def parse(doc: str, module: str, argv: list[str], settings: dict[str, tuple]):
    """(options, command behind --) of a launcher.

    Args:
      settings: name -> (default, what it is for); a default of None has to be given.
    """
    cut = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}", description=doc, usage="%(prog)s [options] -- COMMAND",
        formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (default, meaning) in settings.items():
        kind = {"action": "store_true"} if default is False else {
            "default": default, "type": str if default is None else type(default),
            "required": default is None}
        parser.add_argument(f"--{name}", help=meaning + (
            "" if default in (None, False, "") else f" ({default})"), **kind)
    parser.add_argument("--dry_run", action="store_true", help="print what would be done")
    options, command = parser.parse_args(argv[:cut]), argv[cut + 1:]
    if not command:
        parser.error("no command: write it behind --, as in -- -m experiments.pretrain --recipe=7b")
    return options, command


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
