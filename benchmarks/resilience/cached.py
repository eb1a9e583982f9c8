"""Runs a module as a program in which every process writes the compilation cache, for restarts.

    JAX_COMPILATION_CACHE_DIR=FOLDER \\
      python -m launch.local -- -m benchmarks.resilience.cached experiments.pretrain ...

JAX lets only process 0 write the cache. On CPUs the cache key of a program differs between
processes, because it contains a fingerprint of their devices. Without this, every process but 0
compiles again after each restart.
"""

import runpy
import sys

from qwen_jax import compat


def main() -> None:
    compat.write_cache_from_every_process()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
