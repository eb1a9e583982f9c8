"""Runs a module with compilation cache writes in every process, for fast restarts.

    JAX_COMPILATION_CACHE_DIR=FOLDER \\
      python -m launch.local -- -m benchmarks.resilience.cached experiments.pretrain ...

JAX only lets process 0 write the cache. On CPUs, the cache key of a program differs between
processes because it contains a fingerprint of their devices. Without this module, every process
except 0 would recompile after each restart.
"""

import runpy
import sys

from qwen_jax import compat


def main() -> None:
    if sys.argv[1:] in ([], ["-h"], ["--help"]):
        print(__doc__)
        return
    compat.write_cache_from_every_process()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
