"""Runs code that nobody has read. Report: 3.4 (agents), and the code benchmarks.

>>> from qwen_jax import sandbox
>>> sandbox.run("print(1 + 1)", seconds=5, memory_mb=256).stdout
'2\\n'

`run` runs a program, `Session` cells that share their variables. `call` computes typed values with
one of its functions, and `check_values` compares them here, outside of it: for rewards. `check`
runs a benchmark's own asserts. `layers` says in one line what this machine enforces.

The names are imported on first use: the zygote imports this package, and each run is its copy.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwen_jax.sandbox.isolation import SandboxError as SandboxError
    from qwen_jax.sandbox.languages import missing as missing
    from qwen_jax.sandbox.programs import close as close
    from qwen_jax.sandbox.programs import layers as layers
    from qwen_jax.sandbox.programs import run as run
    from qwen_jax.sandbox.result import Result as Result
    from qwen_jax.sandbox.session import Cell as Cell
    from qwen_jax.sandbox.session import Session as Session
    from qwen_jax.sandbox.session import SessionEnded as SessionEnded
    from qwen_jax.sandbox.verdicts import Outcome as Outcome
    from qwen_jax.sandbox.verdicts import Verdict as Verdict
    from qwen_jax.sandbox.verdicts import call as call
    from qwen_jax.sandbox.verdicts import check as check
    from qwen_jax.sandbox.verdicts import check_values as check_values

_MODULES = {
    "Cell": "session",
    "Outcome": "verdicts",
    "Result": "result",
    "SandboxError": "isolation",
    "Session": "session",
    "SessionEnded": "session",
    "Verdict": "verdicts",
    "call": "verdicts",
    "check": "verdicts",
    "check_values": "verdicts",
    "close": "programs",
    "layers": "programs",
    "missing": "languages",
    "run": "programs",
}
__all__ = sorted(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]  (names are declared above)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'qwen_jax.sandbox' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"qwen_jax.sandbox.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
