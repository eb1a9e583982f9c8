"""Programs with their tests. Python's are run here; the other languages' are compared as text."""

import gzip
import json
import subprocess
import sys

import pytest

from qwen_jax.errors import ConfigError
from qwen_jax.grading import code, programs

HUMANEVAL = {
    "prompt": "def one():\n",
    "test": "def check(candidate):\n    assert candidate() == 1\n",
    "entry_point": "one",
}


def _run(program):
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True)
    return done.stdout


def _passes(program):
    """Whether the last line runs: a program's own nonce is the sandbox's."""
    return _run(f"{program.program}\n{program.tests}\nprint('n17')\n") == "n17\n"


def test_humaneval_program_is_the_prompt_with_its_completion_and_the_tests():
    for completion, passes in (
        ("    return 1", True),
        ("    return 2", False),
        ("    return 1\nraise SystemExit(0)", False),
    ):
        program = programs.humaneval_program(HUMANEVAL, completion)
        assert program.program == "def one():\n" + completion
        assert _passes(program) == passes


def test_mbpp_program_sets_up_behind_the_completion():
    problem = {"test_setup_code": "node = Node(1)", "test_list": ["assert node.x == 1"]}
    completion = "class Node:\n    def __init__(self, x):\n        self.x = x\n"
    assert _passes(programs.mbpp_program(problem, completion))
    assert not _passes(programs.mbpp_program({"test_list": ["assert x == 1"]}, "x = 2"))


def _humaneval(shared):
    with gzip.open(shared / "data/eval/HumanEval.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


# Runs programs of the data set's authors, each in an empty namespace, and prints how many pass.
RUN_ALL = """
import contextlib, io, json, sys
passed = 0
for program in json.load(sys.stdin):
    printed = io.StringIO()
    with contextlib.suppress(Exception), contextlib.redirect_stdout(printed):
        exec(program, {"__name__": "test"})
    passed += printed.getvalue().endswith("n17\\n")
print(passed)
"""


@pytest.mark.parametrize(
    "stops, ceiling", [(code.QWEN_STOPS, 127), (code.CODEX_STOPS, 164), (code.BIGCODE_STOPS, 164)]
)
def test_humaneval_ceilings(shared, stops, ceiling):
    """How many canonical solutions pass after a protocol's stops."""
    found = [
        programs.humaneval_program(
            problem, code.cut_completion(problem["canonical_solution"], stops)
        )
        for problem in _humaneval(shared)
    ]
    texts = [f"{one.program}\n{one.tests}\nprint('n17')\n" for one in found]
    done = subprocess.run(
        [sys.executable, "-I", "-c", RUN_ALL],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout.split()[-1]) == ceiling


PACK = {
    "js": {
        "declaration": "\nconst one = () => {\n",
        "test": "const testOne = () => {\n  console.assert(one() === 1)\n}\ntestOne()\n",
    },
    "java": {
        "declaration": "import java.util.*;\n\nclass Solution {\n    public int one() {\n",
        "test": "public class Main {\n    public static void main(String[] args) {\n    }\n}",
    },
    "go": {
        "declaration": "\nfunc one() int {\n",
        "import": 'import (\n    "math"\n    "sort"\n)\n',
        "test_setup": 'package main\n\nimport (\n    "testing"\n    "github.com/a/assert"\n)\n',
        "test": "func TestOne(t *testing.T) {\n    a := assert.New(t)\n    a.Equal(1, one())\n}\n",
    },
    "cpp": {
        "declaration": "#include<vector>\nusing namespace std;\nint one(){\n",
        "test": "#include<assert.h>\nint main(){\n    assert (one()==1);\n}\n",
    },
    "rust": {
        "declaration": "use std::cmp;\n\nfn one() -> i32 {\n",
        "test": "mod tests {\n    #[test]\n    fn t() {\n        assert_eq!(one(), 1);\n    }\n}\n",
    },
}
BODIES = {"js": "  return 1;\n}\n", "java": "        return 1;\n    }\n}"}


for _problem in PACK.values():
    _problem["prompt"] = _problem["declaration"]


@pytest.mark.parametrize("language", PACK)
def test_pack_program_is_the_declaration_with_its_body_and_the_tests(language):
    problem = PACK[language] | {"entry_point": "one"}
    body = BODIES.get(language, "    return 1;\n}\n")
    program = programs.pack_program(problem, body, language)
    assert program.tests == problem["test"]
    declared = problem["declaration"].strip() + "\n" + body
    assert program.program.strip().endswith(declared.strip())


def test_pack_program_imports_what_go_uses():
    body = '    // math.Abs(1)\n    return strings.Count("1", "1") + len(sort.StringSlice{})\n}\n'
    program, _ = programs.pack_program(PACK["go"], body, "go")
    assert program.count("import") == 1
    assert program.startswith(
        'package main\n\nimport (\n    "github.com/a/assert"\n    "sort"\n    "strings"\n'
        '    "testing"\n)\n'
    )


@pytest.mark.parametrize(
    "language, answer, kept, lost",
    [
        (
            "cpp",
            "#include<map>\nint one(){\n    return 1;\n}\nint main(){\n  one();\n}\n",
            "map",
            "one();\n}",
        ),
        ("rust", "fn one() -> i32 {\n    1\n}\nfn main() {\n    one();\n}\n", "    1\n", "fn main"),
        (
            "java",
            "class Solution {\n  int one() { return 1; }\n}\npublic class Main {}",
            "one()",
            "Main {}",
        ),
        (
            "java",
            "public int one() {\n    return 1;\n}\n",
            "class Solution {\npublic int one",
            "xx",
        ),
        (
            "js",
            "const two = 2;\nfunction one() {\n  return 1;\n}\n",
            "two = 2",
            "const one = () =>",
        ),
        (
            "go",
            "package main\nfunc one() int {\n    return 1\n}\nfunc main() {\n    one()\n}\n",
            "return 1",
            "func main",
        ),
    ],
)
def test_pack_chat_program_takes_the_answers_code_whole(language, answer, kept, lost):
    problem = PACK[language] | {"entry_point": "one"}
    text = f"Here:\n```\n{answer}```\nDone."
    program, tests = programs.pack_chat_program(problem, text, language)
    assert kept in program and lost not in program
    assert program.count("package main") == (language == "go")
    assert tests == problem["test"]


HELPED = {
    "prompt": "#include<map>\n/* one(2) */\nint two(){ return 2; }\nint one(){\n",
    "declaration": "#include<map>\n#include<set>\nint one(){\n",
    "test": "int main(){}",
    "entry_point": "one",
}


def test_pack_programs_have_the_helpers_of_the_prompt_and_all_imports():
    program, _ = programs.pack_program(HELPED, "  return two();\n}\n", "cpp")
    assert program == "#include<set>\n" + HELPED["prompt"] + "  return two();\n}\n"
    answer = "```\nint one(){ return two() - 1; }\n```"
    program, _ = programs.pack_chat_program(HELPED, answer, "cpp")
    assert program.count("int two()") == program.count("#include<set>") == 1
    own = "```\nint two(){ return 3; }\nint one(){ return two() - 2; }\n```"
    program, _ = programs.pack_chat_program(HELPED, own, "cpp")
    assert program.count("int two()") == 1 and "/*" not in program


def test_pack_chat_program_finds_the_function_that_is_declared():
    program, _ = programs.pack_chat_program(
        HELPED | {"entry_point": "another"}, "```\nint one(){ return 1; }\n```", "cpp"
    )
    assert program.count("int one()") == 1


def test_pack_chat_program_lets_rust_import_again():
    program, _ = programs.pack_chat_program(
        PACK["rust"] | {"entry_point": "one"},
        "```\nuse std::cmp;\nfn one() -> i32 { 1 }\n```",
        "rust",
    )
    assert program.startswith("mod declared {\npub use std::cmp;\n}\nuse declared::*;\n")


def test_pack_chat_program_continues_the_declaration():
    problem = PACK["js"] | {"entry_point": "one"}
    program, _ = programs.pack_chat_program(problem, "  return 1;\n}\nconsole.log(5)", "js")
    assert "const one = () => {\n  return 1;\n}" in program and "log(5)" not in program


def test_pack_program_refuses_an_unknown_language():
    with pytest.raises(ConfigError, match="did you mean 'rust'"):
        programs.pack_program(PACK["js"], "", "rusty")
