"""Keeps compiled programs on disk: only the first start of a model waits for the compiler."""

import os
import pathlib

import jax

from qwen_jax.parallel.cpu.features import cpu_digest


def enable() -> pathlib.Path | None:
    """Sets JAX's persistent compilation cache; returns its folder, or None if there is none.

    A folder that the user has set (JAX_COMPILATION_CACHE_DIR) is kept. The default is
    ~/.cache/qwen_jax. JAX finds programs by their code, flags and versions, and
    JAX_ENABLE_COMPILATION_CACHE=false turns the cache off.
    """
    if jax.config.jax_compilation_cache_dir is None:
        folder = default_folder()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:  # no home folder, or a full disk: programs are compiled again
            return None
        jax.config.update("jax_compilation_cache_dir", str(folder))
    return pathlib.Path(str(jax.config.jax_compilation_cache_dir))


def default_folder() -> pathlib.Path:
    """Returns the folder for this user and CPU: a program for another CPU may crash."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(home) / "qwen_jax" / f"programs-{cpu_digest()}"
