"""How tests compile. Most of their time is XLA's, on programs that run for milliseconds.

Compiled programs are kept in .cache/jax and shared by workers, subprocesses and later runs. JAX
finds them by program, flags and versions; the folder's name adds the CPU, since a program for
another one may crash. `make test` compiles without most optimizations. `make test-slow` compiles
with them, as users do, and repeats the tests that compare the bits of different programs.
"""

import hashlib
import os
import pathlib
import re
import shutil

from qwen_jax import compat

CACHE = pathlib.Path(__file__).resolve().parents[2] / ".cache" / "jax"
CACHE_BYTES = 2 << 30  # beyond this it is deleted: nothing removes the programs of old code
OPTIMIZE = "QWEN_JAX_TEST_OPTIMIZE"  # 1: compile as users do
_UNOPTIMIZED = "JAX_DISABLE_MOST_OPTIMIZATIONS"


def set_environment() -> None:
    """Call before JAX is imported. A cache folder that the user has set is kept."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        os.environ |= {
            "JAX_COMPILATION_CACHE_DIR": str(CACHE / _cpu()),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
    if os.environ.get(OPTIMIZE) != "1":
        os.environ[_UNOPTIMIZED] = "1"


def optimized(environment: dict[str, str]) -> dict[str, str]:
    """The environment of a program that compiles as it does for users."""
    return {name: value for name, value in environment.items() if name != _UNOPTIMIZED}


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


def _cpu() -> str:
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    lines = re.findall(r"^(?:vendor_id|model name|flags|Features)\s*:.*$", text, re.MULTILINE)
    return hashlib.sha256("\n".join(sorted(set(lines))).encode()).hexdigest()[:12]
