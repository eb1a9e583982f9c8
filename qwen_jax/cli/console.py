"""`qwen-jax NAME ...`: runs an experiment or launcher of the installed package.

    qwen-jax --help                                            # lists every NAME
    qwen-jax pretrain --help
    qwen-jax pretrain --recipe=smoke --data.sources=FOLDER
    qwen-jax launch local --processes=2 -- pretrain --recipe=smoke --data.sources=FOLDER

In a checkout, run `python -m experiments.NAME` or `python -m launch.NAME` instead.
"""

import ast
import importlib.util
import os
import pathlib
import runpy
import sys

import qwen_jax
from qwen_jax.errors import QwenJaxError, unknown_name
from qwen_jax.utils.output import exit_on_closed_pipe

INSTALLED = "qwen_jax.experiments"  # `experiments` in a checkout
_NAMES = {"": "experiments", "launch ": "launch"}  # prefix of a program -> its package


def main() -> None:
    """Runs the program named on the command line, like `python -m`."""
    with exit_on_closed_pipe():
        _main()


def _main() -> None:
    name, *arguments = sys.argv[1:] or ["--help"]
    if name == "launch":  # two words; launch.NAME is the same
        name = " ".join([name, *arguments[:1]])
        arguments = arguments[1:]
    name = name.replace("launch.", "launch ", 1) if name.startswith("launch.") else name
    if name.removeprefix("launch ") in ("--help", "-h"):
        print(_help())
    elif name == "--version":
        print(qwen_jax.__version__)
    else:
        try:
            module = _module(name)
        except QwenJaxError as error:
            sys.exit(f"{type(error).__name__}:{error}")
        sys.path.append(os.getcwd())  # to import the modules of --reward_functions
        sys.argv[1:] = arguments
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def programs() -> dict[str, str]:
    """Returns {program: first line of its docstring}, read without importing it."""
    found = {}
    for prefix, name in _NAMES.items():
        for path in sorted(folder(package(name)).glob("*.py")):
            text = path.read_text(encoding="utf-8")
            if '\nif __name__ == "__main__":' in text:
                doc = ast.get_docstring(ast.parse(text)) or ""
                found[prefix + path.stem] = doc.partition("\n")[0]
    return found


def package(name: str) -> str:
    """Returns the package of `experiments` or `launch`: of the wheel, or of a checkout.

    An editable install has those of its checkout.

    Raises:
      QwenJaxError: the package is not installed.
    """
    installed = f"qwen_jax.{name}"
    if importlib.util.find_spec(installed) is not None:
        return installed
    checkout = pathlib.Path(qwen_jax.__file__).parents[1] / name
    spec = importlib.util.find_spec(name)
    if spec is not None and list(spec.submodule_search_locations or ()) == [str(checkout)]:
        return name
    raise QwenJaxError(
        f"{installed} is not installed.", "qwen-jax", "in a checkout, run pip install -e ."
    )


def folder(package: str) -> pathlib.Path:
    """Returns the folder of a package that `package` has found."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    return pathlib.Path(spec.submodule_search_locations[0])


def as_typed(text: str, package: str | None) -> str:
    """Replaces `python -m ...` in `text` by `qwen-jax ...` if `package` is the installed one."""
    if package != INSTALLED:
        return text
    for prefix in ("experiments.", "launch."):
        command = "qwen-jax " + ("" if prefix == "experiments." else "launch ")
        text = text.replace(f"python -m {prefix}", command)
    return text


def _module(name: str) -> str:
    known = programs()
    if name not in known:
        raise unknown_name("program", name, known, "qwen-jax NAME")
    prefix, _, last = name.rpartition(" ")
    return f"{package(_NAMES[prefix and prefix + ' '])}.{last}"


def _help() -> str:
    known = programs()
    width = max(map(len, known)) + 2
    return "\n".join(
        [
            f"qwen-jax {qwen_jax.__version__}: qwen-jax NAME [--flag=value ...]",
            "`qwen-jax NAME --help` describes a program and its flags.",
            "",
            *(f"  {name:{width}}{line}" for name, line in known.items()),
            "",
            f"Slurm scripts and container files: {folder(package('launch'))}",
        ]
    )
