"""A module as a program, every process of which keeps what it compiles:
for runs that are about lives.

    JAX_COMPILATION_CACHE_DIR=FOLDER \\
      python -m launch.local -- -m benchmarks.resilience.cached experiments.pretrain ...

JAX lets process 0 alone write into the cache, and on CPUs a program has another key in each process
(the fingerprint of its own devices): without this, all others compile again in every life.
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
