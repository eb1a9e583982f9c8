"""Writes the report page of a run that has reached its end."""

import contextlib
import os
from collections.abc import Callable, Iterator

import jax

from qwen_jax.errors import QwenJaxError
from qwen_jax.report.page import write_report
from qwen_jax.train.attempts.staged import local, push
from qwen_jax.utils.best_effort import reason_of
from qwen_jax.utils.storage.path import is_remote


@contextlib.contextmanager
def report_at_end(run_dir: str | os.PathLike, log: Callable[[str], None] = print) -> Iterator[None]:
    """Writes the page of `run_dir` after the block, and logs one line: its path, or why not.

    Process 0 writes it. An error in the block, or a signal, leaves the folder as it is. A page that
    cannot be written changes nothing for the run, whose results are complete.
    """
    yield
    if jax.process_index() > 0:
        return
    try:
        page = write_report(local(run_dir))
        push(run_dir)
        log(f"report: {run_dir}/{page.name}" if is_remote(run_dir) else f"report: {page}")
    except QwenJaxError as error:
        log(f"no report page: {error.what} To have one, {error.fix}")
    except Exception as error:  # the run's exit code does not depend on a page
        log(f"no report page: {reason_of(error)}")
