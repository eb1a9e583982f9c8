"""Daft runs tasks: one row of its DataFrame is one task, and its streaming engine spreads them.

The same call runs in this process (`workers=0`), in worker processes of this computer, and on a
Ray cluster. A task depends on its own description alone, so how many workers there are, where they
are and which of them is first changes no byte of what they write.
"""

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from qwen_jax.errors import ConfigError, DataError, QwenJaxError


def daft():
    """The engine's module.

    Raises:
      DataError: it is not installed.
    """
    # Importing it would tell its makers, and wait for their answer where there is no network.
    os.environ.setdefault("DAFT_ANALYTICS_ENABLED", "0")
    os.environ.setdefault("DAFT_PROGRESS_BAR", "0")  # there is one of our own, of partitions
    try:
        import daft as module
    except ImportError as error:
        raise DataError(
            "the data plan runs on Daft.", "qwen_jax.corpus.engine", "pip install 'qwen_jax[data]'."
        ) from error
    return module


def start(ray: str | None) -> None:
    """Chooses where tasks run, once in a process.

    Args:
      ray: address of a cluster; "local": one on this computer; None: worker processes.

    Raises:
      ConfigError: Ray is not installed, or does not answer.
    """
    if ray is None:
        return
    try:
        import ray as cluster  # pyright: ignore[reportMissingImports] (an extra)

        cluster.init(
            address=None if ray == "local" else ray,
            ignore_reinit_error=True,
            include_dashboard=False,
            log_to_driver=False,
        )
    except ImportError as error:
        raise ConfigError(
            "Ray is not installed.", f"--ray={ray}", "pip install 'qwen_jax[ray]'."
        ) from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"Ray does not answer: {error}.",
            f"--ray={ray}",
            "give the address of a running cluster, or --ray=local.",
        ) from error
    daft().set_runner_ray(noop_if_initialized=True)


def run_tasks(
    work: Callable[[Any], Any], tasks: Sequence[Any], *, workers: int
) -> Iterator[tuple[Any, Any]]:
    """(task, work(task)) of every task, as they end.

    A task that fails for a reason of its own (a file that has gone, a full disk) does not stop the
    others; what failed is raised when all have ended.

    Args:
      work: can be pickled, as can tasks and results.
      workers: processes; on Ray, actors; 0: this process, without the engine.

    Raises:
      DataError: naming the tasks that failed, and why; or a worker was killed.
    """
    failures = []
    # One task alone is done before a process would have started.
    calls = (
        zip(tasks, map(work_safely(work), tasks), strict=True)
        if workers == 0 or len(tasks) < 2
        else _stream(work, tasks, workers)
    )
    for task, (result, problem) in calls:
        if problem is None:
            yield task, result
        else:
            failures.append((task, problem))
    if failures:
        task, problem = failures[0]
        rest = f"; {len(failures) - 1} others failed as well" if failures[1:] else ""
        where = f"{task}" if len(f"{task}") < 500 else f"{str(task)[:500]} ..."  # of many files
        raise DataError(
            f"{problem}{rest}.",
            where,
            "mend it and run the same command again: what is finished is kept.",
        )


def work_safely(work: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, str | None]]:
    """`work` that returns (result, None) or (None, what was wrong), except for bugs."""

    def call(task):
        try:
            return work(task), None
        except QwenJaxError as error:
            return None, f"{error.what.rstrip('.')} ({error.where})"
        except OSError as error:
            return None, f"{error.strerror or error}" + (
                f": {error.filename}" if error.filename else ""
            )

    return call


def _stream(work, tasks: Sequence[Any], workers: int) -> Iterator[tuple[Any, tuple]]:
    engine = daft()

    @engine.cls(use_process=True, max_concurrency=min(workers, len(tasks)))
    class Worker:
        def __init__(self, pickled: bytes):
            self._work = work_safely(pickle.loads(pickled))

        @engine.method(return_dtype=engine.DataType.binary())
        def run(self, task: bytes) -> bytes:
            return pickle.dumps(self._work(pickle.loads(task)))

    rows = {"number": list(range(len(tasks))), "task": [pickle.dumps(task) for task in tasks]}
    worker = Worker(pickle.dumps(work))
    frame = (
        engine.from_pydict(rows)
        .into_batches(1)
        .with_column("result", worker.run(engine.col("task")))
        .select("number", "result")
    )
    try:
        for row in frame.iter_rows(results_buffer_size=None):
            yield tasks[row["number"]], pickle.loads(row["result"])
    except RuntimeError as error:
        if "closed the connection" not in str(error) and "ActorDied" not in str(error):
            raise
        raise DataError(
            "a worker was killed, by the system or by a person.",
            f"{workers} workers",
            "run the same command again: what is finished is kept. If memory ran out, "
            "use fewer workers or a smaller partition_mb.",
        ) from error
