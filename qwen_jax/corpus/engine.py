"""Runs tasks on Daft: each task is one row of a DataFrame that its streaming engine distributes.

The same call runs in this process (`workers=0`), in local worker processes, or on a Ray cluster.
A task's output depends only on its own description. The number, placement and order of the workers
therefore do not change the bytes written.
"""

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from qwen_jax import exit_codes
from qwen_jax.errors import ConfigError, DataError, QwenJaxError


def daft():
    """Imports Daft with telemetry and progress bar disabled.

    Raises:
      DataError: Daft is not installed.
    """
    # With telemetry on, the import sends a request, which blocks without network access.
    os.environ.setdefault("DAFT_ANALYTICS_ENABLED", "0")
    os.environ.setdefault("DAFT_PROGRESS_BAR", "0")  # our own bar counts partitions
    try:
        import daft as module
    except ImportError as error:
        raise DataError(
            "Daft is not installed.",
            "qwen_jax.corpus.engine",
            "pip install 'qwen_jax[data]'.",
        ) from error
    return module


def start(ray: str | None) -> None:
    """Selects where tasks run. Call it once per process.

    Args:
      ray: the address of a Ray cluster; "local" starts one on this machine; None uses local worker
        processes.

    Raises:
      ConfigError: Ray is not installed or the cluster cannot be reached.
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
            f"cannot connect to the Ray cluster: {error}.",
            f"--ray={ray}",
            "pass the address of a running cluster, or --ray=local.",
        ) from error
    daft().set_runner_ray(noop_if_initialized=True)


def run_tasks(
    work: Callable[[Any], Any], tasks: Sequence[Any], *, workers: int
) -> Iterator[tuple[Any, Any]]:
    """Yields (task, work(task)) for every task, in completion order.

    A failed task (a missing file, a full disk) does not stop the others. Failures are raised after
    all tasks have finished.

    Args:
      work: the function to call. It, the tasks and the results must be picklable.
      workers: the number of processes, or of actors on Ray; 0 runs in this process without Daft.

    Raises:
      DataError: tasks failed (the error names the first and its reason), or a worker was killed.
    """
    failures = []
    # A single task finishes faster than a worker process starts.
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
        task, (problem, code) = failures[0]
        rest = f"; {len(failures) - 1} more failed" if failures[1:] else ""
        where = (
            f"{task}" if len(f"{task}") < 500 else f"{str(task)[:500]} ..."
        )  # a task can list many files
        error = DataError(
            f"{problem}{rest}.",
            where,
            "fix the cause and run the same command again; finished work is kept.",
        )
        if code in (exit_codes.DISK_FULL, exit_codes.UNREADABLE):
            error.exit_code = code
        raise error


def work_safely(
    work: Callable[[Any], Any],
) -> Callable[[Any], tuple[Any, tuple[str, int] | None]]:
    """Wraps `work` to return (result, None) or (None, (error message, exit code)).

    QwenJaxError and OSError become messages; other exceptions propagate.
    """

    def call(task):
        try:
            return work(task), None
        except QwenJaxError as error:
            text = f"{error.what.rstrip('.')} ({error.where}; {error.fix.rstrip('.')})"
            return None, (text, exit_codes.of(error))
        except OSError as error:
            text = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
            return None, (text, exit_codes.of(error))

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
            "a worker process was killed (often out of memory).",
            f"{workers} workers",
            "run the same command again; finished work is kept. If memory ran out, use fewer "
            "--workers or a smaller --partition_mb.",
        ) from error
