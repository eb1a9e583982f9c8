"""A module as a program, every process of which keeps what it compiles:
for runs that are about lives.

    JAX_COMPILATION_CACHE_DIR=FOLDER \\
      python -m launch.local -- -m benchmarks.inference.cached experiments.pretrain ...

JAX lets process 0 alone write into the cache, and on CPUs a program has another key in each process
(the fingerprint of its own devices): without this, all others compile again in every life.
"""

import runpy
import sys

from jax._src import compiler, distributed


def main() -> None:
    write = compiler._cache_write

    def written_by_all(*arguments):
        state = distributed.global_state
        process, state.process_id = state.process_id, 0
        try:
            write(*arguments)
        finally:
            state.process_id = process

    compiler._cache_write = written_by_all
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
