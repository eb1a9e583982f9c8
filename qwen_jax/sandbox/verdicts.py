"""Verdicts on untrusted code, given outside of it. Its exit status is none: it can exit with 0.

`call` and `check_values`: the code only computes values, which are compared here; what is expected
never enters its process. For rewards. `check`: a benchmark's own asserts, as they were published,
and behind them a nonce that must be printed; code that looks for the nonce in its own process can
print it, or return an object that equals everything, so this is for published scores only.
"""

import dataclasses
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from qwen_jax.sandbox import compare, languages, programs, values, wall_clock
from qwen_jax.sandbox.result import Result


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one call returned: a value of built-in types, or an error."""

    value: Any = None
    error: str | None = None  # exception, refused value or limit; None: there is a value


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether code passed; if not, why."""

    passed: bool
    reason: str
    result: Result


def call(
    code: str,
    entry: str,
    inputs: Sequence[Sequence[Any]],
    *,
    seconds: float,
    memory_mb: int,
    files: Mapping[str, str] | None = None,
    wall_seconds: float | None = None,
    unsafe: bool = False,
) -> list[Outcome]:
    """Runs Python code and calls one of its functions for each input.

    Args:
      entry: name of the function.
      inputs: the positional arguments of each call, of built-in types. Each call gets new ones.
      seconds, memory_mb, files, unsafe: as in `run`, for all calls together.
      wall_seconds: limit of wall clock; None: ten times `seconds`, and more on a busy machine,
        which is no wrong answer (wall_clock.py).

    Returns:
      An outcome for each input.

    Raises:
      SandboxError: code cannot be isolated here.
      ValueRefused: an input has no typed form.
    """
    return _call(code, entry, inputs, seconds, memory_mb, files, wall_seconds, unsafe)[1]


def check_values(
    code: str,
    entry: str,
    inputs: Sequence[Sequence[Any]],
    expected: Sequence[Any],
    *,
    seconds: float,
    memory_mb: int,
    files: Mapping[str, str] | None = None,
    wall_seconds: float | None = None,
    unsafe: bool = False,
    **tolerance: Any,
) -> Verdict:
    """Compares what `call` returns with expected values; the verdict that rewards use.

    Args:
      expected: a value for each input.
      tolerance: as in compare.same.
    """
    if len(inputs) != len(expected):
        raise ValueError(f"{len(inputs)} inputs and {len(expected)} expected values")
    result, outcomes = _call(code, entry, inputs, seconds, memory_mb, files, wall_seconds, unsafe)
    for index, (outcome, value) in enumerate(zip(outcomes, expected, strict=True)):
        if outcome.error is not None:
            return Verdict(False, f"input {index}: {outcome.error}", result)
        if not compare.same(value, outcome.value, **tolerance):
            return Verdict(False, f"input {index}: another value", result)
    return Verdict(bool(inputs), "" if inputs else "no input", result)


def check(
    program: str,
    tests: str,
    *,
    seconds: float,
    memory_mb: int,
    language: str = "python",
    files: Mapping[str, str] | None = None,
    wall_seconds: float | None = None,
    unsafe: bool = False,
) -> Verdict:
    """Runs a program and the asserts that were published for it.

    Args:
      tests: code behind the program, which fails by an exception or an exit status. In Java a class
        Main, in C++ a function main, in Rust a module of tests, in Go functions of `testing`.
      seconds, memory_mb, language, files, unsafe: as in `run`.
      wall_seconds: limit of wall clock; None: ten times `seconds`, and more on a busy machine,
        which is no wrong answer (wall_clock.py).

    Returns:
      A verdict that code which attacks its own process can forge.
    """
    programs.check_text("program", program)
    programs.check_text("tests", tests)
    limits = programs.limits_of(seconds, memory_mb, wall_seconds, wall_factor=wall_clock.factor())
    named, nonce = programs.check_files(files or {}), secrets.token_hex(16)
    if language == "python":
        code = f"{program}\n{tests}\nprint({nonce!r})\n"
        result = programs.python(unsafe).run({"files": named, "code": code}, limits)
    else:
        languages.language(language)
        main = f"Nonce{nonce}"
        named = {**languages.more_files(language), **named}
        named |= _with_nonce(language, program, tests, nonce, main)
        steps = languages.steps(language, named, memory_mb=memory_mb, main=main, tests=True)
        result = programs.build(named, steps, limits, unsafe)
    if not result.ok:
        return Verdict(False, result.reason, result)
    if nonce not in result.stdout.splitlines():
        return Verdict(False, "it ended before its tests", result)
    return Verdict(True, "", result)


def _call(
    code: str,
    entry: str,
    inputs: Sequence[Sequence[Any]],
    seconds: float,
    memory_mb: int,
    files: Mapping[str, str] | None,
    wall_seconds: float | None,
    unsafe: bool,
) -> tuple[Result, list[Outcome]]:
    programs.check_text("code", code)
    programs.check_text("entry", entry)
    encoded = [[values.encode(each) for each in arguments] for arguments in inputs]
    payload = {
        "files": programs.check_files(files or {}),
        "code": code,
        "entry": entry,
        "inputs": encoded,
    }
    limits = programs.limits_of(seconds, memory_mb, wall_seconds, wall_factor=wall_clock.factor())
    result = programs.python(unsafe).run(payload, limits)
    return result, _outcomes(result, len(inputs))


def _outcomes(result: Result, count: int) -> list[Outcome]:
    """Reads the lines of an untrusted process: one for each input, in order."""
    outcomes: list[Outcome] = []
    lines = result.results.split(b"\n")
    for index, raw in enumerate(lines[:-1]):  # the last one is empty, or incomplete
        try:
            line = values.from_bytes(raw)
            if not isinstance(line, list) or len(line) != 3 or line[0] != index or index >= count:
                raise values.ValueRefused("lines that do not belong to the inputs")
            if line[1] == "value":
                outcomes.append(Outcome(values.decode(line[2])))
            else:
                outcomes.append(Outcome(error=str(line[2])[:500]))
        except values.ValueRefused as error:
            outcomes.append(Outcome(error=str(error)))
    if len(lines) - 1 > count:  # one line too many: whose is whose is not known
        return [Outcome(error="more values than inputs")] * count
    last = result.stderr.strip().splitlines()[-1:] or [""]
    reason = last[0][:500] if result.reason.startswith("exit status") and last[0] else result.reason
    lost = Outcome(error=reason or "it ended before this input")
    return outcomes + [lost] * (count - len(outcomes))


def _with_nonce(language: str, program: str, tests: str, nonce: str, main: str) -> dict[str, str]:
    """Returns the files of a program whose tests print the nonce after the last one."""
    code = f"{program}\n{tests}\n"
    file = languages.LANGUAGES[language].file
    if language == "js":
        # Node's own only prints, and goes on.
        strict = "console.assert = (ok) => { if (!ok) throw new Error('assertion failed'); };\n"
        return {file: f"{strict}{code}console.log({nonce!r});\n"}
    if language == "java":
        launcher = (
            f"public class {main} {{ public static void main(String[] a) throws Throwable {{ "
            f'Main.main(a); System.out.println("{nonce}"); }} }}\n'
        )
        return {file: code, f"{main}.java": launcher}
    if language == "cpp":
        end = re.sub(r"(return\s+0\s*;\s*)?\}\s*$", "", code)
        return {file: f'#include <cstdio>\n{end}\nstd::puts("{nonce}");\n}}\n'}
    if language == "rust":
        last = f'#[test] fn zzz_{nonce}() {{ println!("\\n{nonce}"); }}'
        return {file: f"{code}\n#[cfg(test)] mod zzz_{nonce} {{ {last} }}\n"}
    launcher = (
        'package main\nimport ("fmt"; "os"; "testing")\n'
        "func TestMain(m *testing.M) { status := m.Run(); "
        f'if status == 0 {{ fmt.Println("\\n{nonce}") }}; os.Exit(status) }}\n'
    )
    return {"main_test.go": code, "nonce_test.go": launcher}
