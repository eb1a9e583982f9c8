"""run: what programs may do, which limit ends them, and that nothing is left behind."""

import os
import pathlib
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from qwen_jax import sandbox
from qwen_jax.errors import ConfigError
from qwen_jax.sandbox import isolation, languages, programs, workdir
from qwen_jax.sandbox.inside.processes import Tree
from qwen_jax.sandbox.supervisor import Limits, Supervisor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the layers are Linux's")


def run(code, seconds=10.0, memory_mb=256, **options):
    return sandbox.run(code, seconds=seconds, memory_mb=memory_mb, **options)


def test_layers_is_one_line():
    line = sandbox.layers()
    assert "\n" not in line and "out of reach: files and network" in line


def test_run_returns_output_and_status():
    result = run("import sys\nprint('é')\nprint('no', file=sys.stderr)\nsys.exit(3)")
    assert (result.ok, result.status, result.reason) == (False, 3, "exit status 3")
    assert (result.stdout, result.stderr) == ("é\n", "no\n")
    assert run("pass").ok and run("pass").reason == ""


def test_run_shows_tracebacks_of_the_program_only():
    result = run("def f():\n    return 1 / 0\nf()")
    lines = result.stderr.splitlines()
    assert lines[1] == '  File "main.py", line 3, in <module>'
    assert lines[-1] == "ZeroDivisionError: division by zero" and "zygote" not in result.stderr


def test_run_lets_programs_do_what_programs_do():
    result = run(
        """
import asyncio, atexit, dataclasses, datetime, decimal, json, math, os, random, re, tempfile
import threading
import helper
thread = threading.Thread(target=lambda: print("thread")); thread.start(); thread.join()
with tempfile.NamedTemporaryFile("w+") as file:
    file.write("x"); file.flush(); print(open(file.name).read())
os.makedirs("a/b"); open("a/b/c", "w").write("c"); os.rename("a", "d"); print(os.listdir("d/b"))
random.random(); print(decimal.Decimal(1) / 8, datetime.date(2023, 9, 28), helper.VALUE)
async def f(): await asyncio.sleep(0); return "async"
print(asyncio.run(f()))
@dataclasses.dataclass
class A: x: int = 1
print(A(), __name__)
atexit.register(print, "at exit")
try: input()
except EOFError: print("no input")
""",
        files={"helper.py": "VALUE = 42\n"},
    )
    assert result.reason == "", result.stderr
    assert result.stdout.splitlines() == [
        *("thread", "x", "['c']", "0.125 2023-09-28 42", "async", "A(x=1) __main__"),
        *("no input", "at exit"),
    ]


def test_run_imports_installed_packages():
    result = run("import numpy as np; print(np.linalg.det(np.eye(3)))", memory_mb=1024)
    assert (result.stdout, result.stderr) == ("1.0\n", "")


@pytest.mark.parametrize(
    "code, reason",
    [
        ("while True: pass", "time: more than 1 s"),
        ("import time; time.sleep(60)", "time: more than 1 s of wall clock"),
        ("bytearray(1 << 30)", "memory: more than 256 MB"),
        ("while True: print('x' * 1000)", "output: more than"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "signal 11"),
    ],
)
def test_run_ends_programs_at_a_limit(code, reason):
    result = run(code, seconds=1)
    assert not result.ok and result.reason.startswith(reason)
    assert len(result.stdout) <= 1 << 20


def test_run_counts_cpu_time_apart():
    result = run("while True: pass", seconds=1, wall_seconds=60)
    assert result.reason == "time: more than 1 s of CPU"
    assert result.cpu_seconds > 0.5  # the kernel counts in ticks


def test_run_replaces_invalid_utf8():
    assert run("import os; os.write(1, b'a\\xff')").stdout == "a\ufffd"


@pytest.mark.parametrize(
    "options", [{"seconds": 0}, {"memory_mb": -1}, {"seconds": float("nan")}, {"wall_seconds": 0}]
)
def test_run_refuses_limits_out_of_range(options):
    with pytest.raises(ConfigError, match="out of range"):
        sandbox.run("", **{"seconds": 1, "memory_mb": 64} | options)


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", ""])
def test_run_refuses_files_outside_of_its_folder(name):
    with pytest.raises(ConfigError, match="leaves the folder"):
        run("", files={name: ""})


def test_run_names_unknown_and_missing_languages(monkeypatch):
    with pytest.raises(ConfigError, match="Known: cpp"):
        run("", language="c")
    monkeypatch.setenv("PATH", "/nowhere")
    languages.find.cache_clear()
    try:
        with pytest.raises(isolation.SandboxError, match="golang-go"):
            run("", language="go")
        assert set(sandbox.missing()) == set(languages.LANGUAGES)
    finally:
        languages.find.cache_clear()


@pytest.mark.parametrize(
    "change, error",
    [
        ({"code": b"pass"}, "code is of type bytes, not str.*decode it"),
        ({"code": None}, "code is of type NoneType"),
        ({"seconds": None}, "seconds is of type NoneType, not a number"),
        ({"seconds": "5"}, "seconds is of type str"),
        ({"memory_mb": None}, "memory_mb is of type NoneType"),
        ({"files": ["a.py"]}, "files are of type list"),
        ({"files": {"a.py": b"x"}}, "files.'a.py'. is of type bytes"),
        ({"files": {1: "x"}}, "the name of a file is of type int"),
    ],
)
def test_arguments_of_another_type_are_named(change, error):
    settings = {"code": "pass", "seconds": 5, "memory_mb": 256} | change
    code = settings.pop("code")
    calls = [lambda: sandbox.run(code, **settings)]
    calls += [lambda: sandbox.call(code, "f", [], **settings)]
    calls += [lambda: sandbox.check(code, "", **settings)]
    for call in calls:
        with pytest.raises(ConfigError, match=f"(?s){error.replace('code', '(code|program)')}"):
            call()


def test_run_refuses_where_nothing_is_isolated(monkeypatch):
    layers = isolation.Layers(landlock=0, seccomp=True, network=True)
    supervisor = Supervisor()
    monkeypatch.setattr(Supervisor, "layers", layers)
    monkeypatch.setattr(programs, "_supervisor", lambda toolchains=(): supervisor)
    with pytest.raises(isolation.SandboxError, match="machine's files") as caught:
        run("print(1)")
    assert "--unsafe" in caught.value.fix
    assert run("print(1)", unsafe=True).stdout == "1\n"
    supervisor.close()


@pytest.fixture(params=[True, False], ids=["namespaces", "no namespaces"])
def supervisor(request):
    made = Supervisor(namespaces=request.param)
    yield made
    made.close()


def start(supervisor, code, seconds=20.0):
    return supervisor.run({"files": {}, "code": code}, Limits(seconds, 256 << 20, seconds))


def test_supervisor_runs_at_the_same_time(supervisor):
    found = {}

    def one(number):
        code = f"import time; time.sleep(0.3); print({number})"
        found[number] = start(supervisor, code).stdout

    start(supervisor, "pass")
    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: f"{number}\n" for number in range(8)}
    assert time.monotonic() - began < 8 * 0.3 + 20


def descendants():
    descriptor = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    try:
        return len(Tree(descriptor).below(os.getpid()))
    finally:
        os.close(descriptor)


def test_close_leaves_no_process_no_file_and_no_descriptor(supervisor):
    before = set(os.listdir("/proc/self/fd")), descendants(), set(os.listdir(tempfile.gettempdir()))
    start(supervisor, "open('x', 'w').write('x')")
    assert descendants() > before[1]
    supervisor.close()
    after = set(os.listdir("/proc/self/fd")), descendants(), set(os.listdir(tempfile.gettempdir()))
    assert (after[0], after[1]) == before[:2]
    assert not [name for name in after[2] - before[2] if f"-{os.getpid()}-" in name]


def test_a_killed_caller_leaves_no_process(tmp_path):
    code = (
        "from qwen_jax.sandbox.supervisor import Limits, Supervisor\n"
        "s = Supervisor(); s.layers; print('ready', flush=True)\n"
        "s.run({'files': {}, 'code': 'import time; time.sleep(600)'}, Limits(600, 1 << 28, 600))"
    )
    caller = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert caller.stdout is not None and caller.stdout.readline() == b"ready\n"
    descriptor = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    while len(found := Tree(descriptor).below(caller.pid)) < 4:
        time.sleep(0.05)
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    end = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{process}/exe") for process in found):
        assert time.monotonic() < end
        time.sleep(0.05)
    os.close(descriptor)


def test_supervisor_starts_another_zygote(supervisor):
    start(supervisor, "pass")
    supervisor._process.kill()
    supervisor._process.wait()
    assert start(supervisor, "print(1)").stdout == "1\n"


def test_run_limits_the_disk(supervisor):
    code = "for i in range(10000): open(str(i), 'w').close()"
    result = start(supervisor, code)
    assert not result.ok and ("No space left" in result.stderr or "disk" in result.reason)


@pytest.mark.slow
def test_2000_runs_take_no_more_memory(supervisor):
    def resident():
        descriptor = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        tree = Tree(descriptor)
        found = tree.memory(tree.below(os.getpid())), len(os.listdir("/proc/self/fd"))
        os.close(descriptor)
        return *found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    for _ in range(100):
        start(supervisor, "print(1)")
    before = resident()
    for _ in range(2000):
        assert start(supervisor, "print(1)").ok
    time.sleep(0.5)
    after = resident()
    # The kernel counts pages in batches of 64 for each of a process's mappings: 2 MB are noise.
    assert after[0] - before[0] < 2 << 20 and after[1] == before[1]
    assert after[2] - before[2] < 2 << 20


def test_remove_clears_folders_of_any_depth_and_mode(tmp_path):
    box = tmp_path / "box"
    box.mkdir()
    code = "import os\nfor i in range(1500): os.mkdir('d'); os.chdir('d')\nos.mkdir('c', 0)"
    subprocess.run([sys.executable, "-c", code], cwd=box, check=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (box / "link").symlink_to(outside)
    (box / "closed").mkdir(mode=0)
    assert workdir.usage(str(box), files=100)[1] > 100
    workdir.remove(str(box))
    assert not box.exists() and (outside / "kept").exists()


PROGRAMS = {
    "js": ("console.log(1 + 1)", "let x = []; while (true) x.push(new Array(1e6).fill(1))"),
    "cpp": (
        '#include <cstdio>\nint main() { std::puts("2"); }',
        "#include <cstdlib>\n#include <cstring>\n"
        "int main() { for (;;) std::memset(std::malloc(1 << 24), 1, 1 << 24); }",
    ),
    "java": (
        'public class Main { public static void main(String[] a) { System.out.println("2"); } }',
        "public class Main { public static void main(String[] a) { long[][] x = new long[99999][]; "
        "for (int i = 0;; i++) x[i] = new long[1 << 20]; } }",
    ),
    "rust": (
        'fn main() { println!("2"); }',
        "fn main() { let mut x = vec![]; loop { x.push(vec![1u8; 1 << 24]); } }",
    ),
    "go": (
        'package main\nimport "fmt"\nfunc main() { fmt.Println(2) }',
        "package main\nfunc main() { x := [][]byte{}\nfor { y := make([]byte, 1<<24)\n"
        "for i := range y { y[i] = 1 }\nx = append(x, y) } }",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("language", sorted(languages.LANGUAGES))
def test_run_compiles_and_limits_memory(language):
    if language in sandbox.missing():
        pytest.skip(f"no {sandbox.missing()[language]}")
    good, greedy = PROGRAMS[language]
    result = run(good, 60, 512, language=language)
    assert result.stdout == "2\n", result.stderr
    result = run(greedy, 60, 512, language=language)
    assert not result.ok and "time" not in result.reason


def test_run_compiles_cpp():
    if "cpp" in sandbox.missing():
        pytest.skip("no g++")
    assert run(PROGRAMS["cpp"][0], 60, 512, language="cpp").stdout == "2\n"
    result = run("int main() { return x; }", 60, 512, language="cpp")
    assert result.reason == "compiling: exit status 1" and "was not declared" in result.stderr


TESTS = {
    "js": ("function f(x) { return x + 1 }", "console.assert(f(1) === {})", "process.exit(0)"),
    "cpp": (
        "#include <cassert>\n#include <cstdlib>\nint f(int x) {{ return x + 1; }}",
        "int main() {{ assert(f(1) == {}); }}",
        "int x = (std::exit(0), 1);",
    ),
    "java": (
        "class S {{ static int f(int x) {{ return x + 1; }} }}",
        "public class Main {{ public static void main(String[] a) {{ "
        "if (S.f(1) != {}) throw new AssertionError(); }} }}",
        "",
    ),
    "rust": (
        "fn f(x: i32) -> i32 {{ x + 1 }}",
        "#[cfg(test)] mod tests {{ #[test] fn t() {{ assert_eq!(super::f(1), {}); }} }}",
        "#[cfg(test)] mod a {{ #[test] fn a() {{ std::process::exit(0); }} }}",
    ),
    "go": (
        'package main\nimport "testing"\nfunc f(x int) int {{ return x + 1 }}',
        'func TestF(t *testing.T) {{ if f(1) != {} {{ t.Fatal("no") }} }}',
        "",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("language", sorted(languages.LANGUAGES))
def test_check_wants_the_nonce_in_every_language(language):
    if language in sandbox.missing():
        pytest.skip(f"no {sandbox.missing()[language]}")
    program, tests, leave = (text.replace("{{", "{").replace("}}", "}") for text in TESTS[language])
    options = {"seconds": 60, "memory_mb": 512, "language": language}
    verdict = sandbox.check(program, tests.replace("{}", "2"), **options)
    assert verdict.passed, verdict.result.stderr
    assert not sandbox.check(program, tests.replace("{}", "3"), **options).passed
    if leave:
        left = sandbox.check(f"{program}\n{leave}", tests.replace("{}", "2"), **options)
        assert left.reason == "it ended before its tests"


def test_workspace_is_not_in_reach():
    path = pathlib.Path(sandbox.__file__ or "")
    assert not run(f"print(open({str(path)!r}).read())").ok
