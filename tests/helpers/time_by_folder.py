"""A pytest plugin that ends a run with the seconds of tests in each folder.

The seconds are those of setup, call and teardown, summed over workers. An issue may add 60 seconds
to all of them.
"""

import collections
import pathlib

_seconds: collections.Counter[str] = collections.Counter()
_tests: collections.Counter[str] = collections.Counter()


def pytest_runtest_logreport(report) -> None:
    parts = pathlib.PurePosixPath(report.nodeid.split("::")[0]).parts
    folder = parts[1] if len(parts) > 2 else "tests"
    _seconds[folder] += report.duration
    _tests[folder] += report.when == "call"


def pytest_terminal_summary(terminalreporter) -> None:
    if len(_seconds) < 2:
        return
    terminalreporter.section(f"{sum(_seconds.values()):,.0f} s of tests by folder")
    for folder, seconds in _seconds.most_common():
        terminalreporter.line(f"{seconds:8.1f} s  {_tests[folder]:5} tests  {folder}")
