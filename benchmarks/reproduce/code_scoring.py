"""Whether programs that a model wrote pass their tests, in the sandbox."""

import json
from collections.abc import Sequence

from qwen_jax.sandbox.verdicts import check, check_values
from qwen_jax.synthetic.worlds.programs import Program

_SECONDS, _MEMORY_MB = 2.0, 256
_JAVASCRIPT = """
const cases = {cases};
for (const [args, expected] of cases) {{
  if (JSON.stringify(f(...args)) !== JSON.stringify(expected)) throw new Error("wrong");
}}
"""


def first_function(program: Program, completion: str) -> str:
    """Returns the program up to the end of its function: a base model does not stop by itself."""
    lines = []
    for line in completion.splitlines():
        if program.programming == "javascript":
            lines.append(line)
            if line.startswith("}"):
                break
        elif line.strip() and not line.startswith(" "):
            break
        else:
            lines.append(line)
    return program.prompt + "\n".join(lines) + "\n"


def passes(programs: Sequence[Program], completions: Sequence[str]) -> list[int]:
    """Returns 1 for each completion that passes its tests, else 0."""
    return [int(_passes(p, text)) for p, text in zip(programs, completions, strict=True)]


def _passes(program: Program, completion: str) -> bool:
    code = first_function(program, completion)
    if program.programming == "python":
        inputs, expected = zip(*program.tests, strict=True)
        return check_values(
            code, "f", inputs, expected, seconds=_SECONDS, memory_mb=_MEMORY_MB
        ).passed
    cases = json.dumps([[list(arguments), value] for arguments, value in program.tests])
    tests = _JAVASCRIPT.format(cases=cases)
    return check(code, tests, seconds=_SECONDS, memory_mb=_MEMORY_MB, language="js").passed
