"""A program that writes the pydoc pages of the modules listed on stdin, one JSON line each.

It runs as a subprocess because importing a module runs its code, which may print, hang or crash.
"""

import contextlib
import importlib
import io
import json
import os
import pydoc
import sys
import warnings


def main(names: list[str]) -> None:
    """Writes {"module": name, "html": page} or {"module": name, "error": reason} to stdout."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # discards what modules print
    sys.stdin, sys.argv = io.StringIO(), ["pydoc"]
    warnings.simplefilter("ignore")
    for name in names:
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                module = importlib.import_module(name)
                body = pydoc.html.document(module, name)
            record = {"module": name, "html": pydoc.html.page(pydoc.describe(module), body)}
        except (Exception, SystemExit) as error:  # a module's import may raise anything
            record = {"module": name, "error": f"{type(error).__name__}: {error}"}
        print(json.dumps(record), file=out, flush=True)


if __name__ == "__main__":
    main(sys.stdin.read().split())
