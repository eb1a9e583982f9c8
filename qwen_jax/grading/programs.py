"""Programs of the code tasks: a problem and a completion -> the text of a program, and its tests.

HumanEval and MBPP are Python; HumanEvalPack has six languages. `sandbox.check` runs a program with
its tests: it puts a nonce behind the last test, and lets JavaScript's asserts throw.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from qwen_jax.errors import unknown_name
from qwen_jax.grading.code import chat_code, cut_at_brace

LANGUAGES = ("python", "js", "java", "go", "cpp", "rust")  # of HumanEvalPack
_BRACES = {"js": 1, "java": 2, "go": 1, "cpp": 1, "rust": 1}


class Program(NamedTuple):
    """A program and the data set's tests, which stand behind it in the same file."""

    program: str
    tests: str


def humaneval_program(problem: Mapping[str, Any], completion: str) -> Program:
    """Returns prompt and completion, and the tests of a HumanEval problem.

    Args:
      problem: a row of HumanEval.jsonl: `prompt`, `test`, `entry_point`.
      completion: text behind the prompt, already cut.
    """
    tests = f"{problem['test']}\ncheck({problem['entry_point']})"
    return Program(problem["prompt"] + completion, tests)


def mbpp_program(problem: Mapping[str, Any], completion: str) -> Program:
    """Returns the completion, and setup and asserts of an MBPP problem, a row of mbpp.jsonl."""
    setup = problem.get("test_setup_code") or ""
    return Program(completion, "\n".join([setup, *problem["test_list"]]))


def pack_program(problem: Mapping[str, Any], completion: str, language: str) -> Program:
    """Returns prompt and completion, and the tests of a HumanEvalPack problem.

    Args:
      problem: a row of humanevalpack_LANGUAGE.jsonl.
      completion: the function's body behind the prompt, such as `canonical_solution`.
      language: a name in LANGUAGES.

    Raises:
      ConfigError: an unknown language.
    """
    return _assembled(problem, _declared(problem) + completion, language)


_LIBRARY = re.compile(r"\s*(?:#include|import\b|from\b|use\b|using\b)")


def _declared(problem: Mapping[str, Any]) -> str:
    """The prompt, which has the helper functions, behind imports that only the declaration has."""
    there = problem["prompt"].splitlines()
    lines = [line for line in problem["declaration"].splitlines() if _LIBRARY.match(line)]
    return "".join(f"{line}\n" for line in lines if line not in there) + problem["prompt"]


def cut_body(text: str, language: str) -> str:
    """Returns a continuation of a declaration up to the end of its function.

    Python's ends at stop strings instead, and is returned whole.
    """
    if language not in _BRACES:
        return text
    return cut_at_brace(text, _BRACES[language], quoted=language == "js")


def pack_chat_program(problem: Mapping[str, Any], response: str, language: str) -> Program:
    """Returns a program of a chat answer to a HumanEvalPack instruction, and the tests.

    The answer's code is taken whole, behind the declared imports and helper functions, if it
    defines the function; it continues the declaration otherwise. A main program of its own is
    removed.

    Raises:
      ConfigError: an unknown language.
    """
    declaration = _declared(problem)
    if language != "python":  # its comments are docstrings
        declaration = re.sub(r"/\*.*?\*/|//[^\n]*", "", declaration, flags=re.DOTALL)
    name = _declared_name(declaration, problem["entry_point"])
    begin, code = _definition(declaration, name), chat_code(response, name)
    if _definition(code, name) is None or begin is None:
        return _assembled(problem, declaration + cut_body(code, language), language)
    header = _header(declaration[:begin], code)
    if language == "java":
        code = _java_class(header, code)
    elif language == "go":
        code = header + re.sub(r"(?m)^package .*$", "", code)
        code = _without_function(code, r"func main\(\)")
    elif language in ("cpp", "rust"):
        header = _shadowed(header) if language == "rust" else header
        code = header + _without_function(code, r"(?:int main\s*\([^)]*\)|fn main\(\))")
    else:
        code = header + code
    return _assembled(problem, code, language)


def _assembled(problem: Mapping[str, Any], code: str, language: str) -> Program:
    if language not in LANGUAGES:
        raise unknown_name("language", language, LANGUAGES, "language")
    tests = problem["test"]
    return Program(_go_program(problem, code, tests) if language == "go" else code, tests)


_BEFORE_CALLS = r"(?:return|else|await|yield|throw|new|case|in|not|and|or|if|while)\b"


def _definition(code: str, entry_point: str) -> int | None:
    """Where the line begins that defines the function: its name before `(`, `=` or `<`."""
    name = re.escape(entry_point)
    found = re.search(
        rf"^[^\n]*\b(?!{_BEFORE_CALLS})(?:const|let|var|[\w<>\[\],:&*]+)\s+{name}\s*[(=<]",
        code,
        re.MULTILINE,
    )
    return None if found is None else found.start()


def _declared_name(declaration: str, entry_point: str) -> str:
    """The entry point, or the function that is declared last: Java/99 names another one."""
    if _definition(declaration, entry_point) is not None:
        return entry_point
    found = re.search(r"(\w+)\s*(?:=\s*)?\(", declaration.rstrip().rpartition("\n")[2])
    return entry_point if found is None else found[1]


_IMPORT = re.compile(r"\s*(?:#|import\b|from\b|use\b|using\b|//|/\*|$)")


def _header(header: str, code: str) -> str:
    """What stands before the declared function: imports, and a helper that the code lacks."""
    lines = header.splitlines(True)
    rest = "".join(line for line in lines if not _IMPORT.match(line))
    for helper in re.findall(r"\b(\w+)\s*[(=]", rest):
        if _definition(code, helper) is not None:
            return "".join(line for line in lines if _IMPORT.match(line))
    return header


def _without_function(code: str, head: str) -> str:
    """The code without the function whose head the pattern matches."""
    found = re.search(rf"(?m)^[^\S\n]*(?:pub )?{head}[^{{\n]*\{{", code)
    if found is None:
        return code
    body = cut_at_brace(code[found.end() :])
    return code[: found.start()] + code[found.end() + len(body) :]


_USE = re.compile(r"(?m)^use [^;]*;\n?")


def _shadowed(header: str) -> str:
    """Rust's imports in a module: an import of the code then hides one with the same name."""
    uses = "".join(f"pub {one.strip()}\n" for one in _USE.findall(header))
    return f"mod declared {{\n{uses}}}\nuse declared::*;\n{_USE.sub('', header)}"


def _java_class(header: str, code: str) -> str:
    """The declaration's imports and the class; a bare method is put into the class."""
    if re.search(r"\bclass\s+Solution\b", code):
        imports = "".join(line for line in header.splitlines(True) if line.startswith("import"))
        code = re.sub(r"(?m)^public\s+class\s+Solution\b", "class Solution", code)
        main = re.search(r"\b(?:public\s+)?class\s+Main\b", code)
        return imports + (code[: main.start()] if main else code)
    return f"{header}{code}\n}}\n"


# Packages that a solution may use without importing them: their last name -> path.
_GO_STANDARD = {
    name.rpartition("/")[2]: name
    for name in "math sort strings strconv fmt regexp unicode errors time bytes crypto/md5"
    " math/rand container/heap os bufio unicode/utf8".split()
}
_GO_IMPORT = re.compile(r"(?m)^import\s*(?:\((?P<several>[^)]*)\)|(?P<one>\"[^\"]+\"))\s*$")


def _go_program(problem: Mapping[str, Any], code: str, tests: str) -> str:
    """One import block with what program and tests use: an unused import does not compile."""
    parts = [problem.get("test_setup", ""), problem.get("import", ""), code]
    paths: dict[str, None] = {}
    for part in parts:
        for block in _GO_IMPORT.finditer(part):
            paths |= dict.fromkeys(re.findall(r"\"([^\"]+)\"", block["several"] or block["one"]))
    body = _GO_IMPORT.sub("", code)
    plain = re.sub(r"//[^\n]*", "", f"{body}\n{tests}")
    names = {path.rpartition("/")[2]: path for path in paths} | _GO_STANDARD
    used = [path for name, path in names.items() if re.search(rf"\b{name}\.[A-Z]", plain)]
    imports = "".join(f'    "{path}"\n' for path in sorted(used))
    return f"package main\n\nimport (\n{imports})\n{body}"
