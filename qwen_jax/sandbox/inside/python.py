"""Runs Python code in a locked process: as a program, or one of its functions on inputs."""

import atexit
import linecache
import os
import sys
import threading
import traceback
import types

from qwen_jax.sandbox import values

_NAME = "main.py"
_exit = os._exit  # the code may replace it


def program(code: str) -> None:
    """Runs code as `python main.py` would, and exits."""
    namespace, status = _module(), 0
    try:
        _execute(code, namespace)
    except BaseException as error:
        status = _report(error)
    _finish(status)


def calls(code: str, entry: str, inputs: list, results: int) -> None:
    """Runs code, calls its function `entry` for each input, writes the values, and exits.

    Args:
      inputs: a list of encoded arguments for each call.
      results: descriptor for lines [index, "value", encoded] or [index, "error", text].
    """
    namespace = _module()
    try:
        _execute(code, namespace)
    except BaseException as error:
        _finish(_report(error) or 1)
    for index, arguments in enumerate(inputs):
        try:
            value = namespace[entry](*[values.decode(each) for each in arguments])
            line = [index, "value", values.encode(value)]
        except BaseException as error:
            line = [index, "error", _one_line(error)]
        data = values.to_bytes(line) + b"\n"
        while data:
            data = data[os.write(results, data) :]
    _finish(0)


def _module() -> dict:
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = module
    sys.argv = [_NAME]
    return module.__dict__


def _execute(code: str, namespace: dict) -> None:
    linecache.cache[_NAME] = (len(code), None, code.splitlines(keepends=True), _NAME)
    exec(compile(code, _NAME, "exec"), namespace)


def _one_line(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:500]
    except BaseException:
        return "an error without a message"


def _report(error: BaseException) -> int:
    """Prints an uncaught exception as Python does; returns the exit status."""
    try:
        if isinstance(error, SystemExit):
            if error.code is None or isinstance(error.code, int):
                return (error.code or 0) & 0xFF
            print(error.code, file=sys.stderr)
            return 1
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename != _NAME:
            trace = trace.tb_next  # frames of this file
        traceback.print_exception(type(error), error, trace)
    except BaseException:
        pass
    return 1


def _finish(status: int) -> None:
    try:
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        atexit._run_exitfuncs()
    except BaseException as error:
        status = _report(error) or status
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:
            status = status or 1
    _exit(status)
