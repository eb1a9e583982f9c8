"""How tests compile. Most of their time is XLA's, on programs that run for milliseconds.

Compiled programs are kept in .cache/jax and shared by workers, subprocesses and later runs. JAX
finds them by program, flags and versions; the folder's name adds the CPU, since a program for
another one may crash. `make test` compiles without most optimizations. `make test-slow` compiles
with them, as users do, and repeats the tests that compare the bits of different programs.
"""

import os
import pathlib
import shutil

from qwen_jax import compat
from qwen_jax.parallel.cpu.features import cpu_digest

CACHE = pathlib.Path(__file__).resolve().parents[2] / ".cache" / "jax"
CACHE_BYTES = 2 << 30  # beyond this it is deleted: nothing removes the programs of old code
OPTIMIZE = "QWEN_JAX_TEST_OPTIMIZE"  # 1: compile as users do
_UNOPTIMIZED = "JAX_DISABLE_MOST_OPTIMIZATIONS"


def set_environment() -> None:
    """Call before JAX is imported. A cache folder that the user has set is kept."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        os.environ |= {
            "JAX_COMPILATION_CACHE_DIR": str(CACHE / cpu_digest()),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
    if not is_optimized():
        os.environ[_UNOPTIMIZED] = "1"


def is_optimized() -> bool:
    """Whether tests compile as users do (`make test-slow`)."""
    return os.environ.get(OPTIMIZE) == "1"


def clean_cache(cache: pathlib.Path = CACHE, limit: int = CACHE_BYTES) -> None:
    """Deletes truncated programs, and all of them if they take more than `limit` bytes.

    JAX writes a program in place and never again, so a killed test would leave a truncated one for
    every later run to warn about.
    """
    files = [path for path in cache.rglob("*-cache") if path.is_file()]
    if sum(path.stat().st_size for path in files) > limit:
        shutil.rmtree(cache, ignore_errors=True)
        return
    for path in files:
        try:
            compat.decompress_program(path.read_bytes())
        except Exception:  # each compressor has its own
            path.unlink(missing_ok=True)
