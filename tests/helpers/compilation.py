"""How tests compile. Most of their time is XLA's, on programs that run for milliseconds.

Compiled programs are kept in .cache/jax and shared by workers, subprocesses and later runs. JAX
finds them by program, flags and versions; the folder's name adds the CPU, since a program for
another one may crash.
"""

import hashlib
import os
import pathlib
import re
import shutil

CACHE = pathlib.Path(__file__).resolve().parents[2] / ".cache" / "jax"
CACHE_BYTES = 2 << 30  # beyond this it is deleted: nothing removes the programs of old code


def set_environment() -> None:
    """Call before JAX is imported. A cache folder that the user has set is kept."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        os.environ |= {
            "JAX_COMPILATION_CACHE_DIR": str(CACHE / _cpu()),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }


def limit_cache() -> None:
    """Deletes the cache if it has grown beyond CACHE_BYTES."""
    if sum(path.stat().st_size for path in CACHE.rglob("*") if path.is_file()) > CACHE_BYTES:
        shutil.rmtree(CACHE, ignore_errors=True)


def _cpu() -> str:
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    lines = re.findall(r"^(?:vendor_id|model name|flags|Features)\s*:.*$", text, re.MULTILINE)
    return hashlib.sha256("\n".join(sorted(set(lines))).encode()).hexdigest()[:12]
