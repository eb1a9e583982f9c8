"""The languages of the `build` profile: their toolchains on this machine, and their steps."""

import dataclasses
import functools
import os
import shutil
import subprocess
from collections.abc import Callable

from qwen_jax.errors import unknown_name
from qwen_jax.sandbox import go_cache
from qwen_jax.sandbox.isolation import SandboxError

_COMPILE_MB = 2048


@dataclasses.dataclass(frozen=True)
class Language:
    """A language other than Python.

    `steps` gets the paths of the programs and the memory in MB; each step is a command.
    """

    name: str
    file: str  # of the program
    programs: tuple[str, ...]
    package: str  # of Debian, which has them
    steps: Callable[[list[str], int], list[list[str]]]
    environment: tuple[tuple[str, str], ...] = ()


def _js(paths: list[str], memory: int) -> list[list[str]]:
    return [[paths[0], f"--max-old-space-size={memory}", "main.js"]]


def _java(paths: list[str], memory: int) -> list[list[str]]:
    small = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"]
    heap = f"-Xmx{max(16, memory * 3 // 4)}m"
    flags = [f"-J{flag}" for flag in (*small, "-Xmx512m")]
    return [
        [paths[0], *flags, "-proc:none", "-nowarn", "-d", "{box}", "@sources"],
        [paths[1], *small, heap, "-cp", "{box}", "{main}"],
    ]


def _cpp(paths: list[str], memory: int) -> list[list[str]]:
    # Headers next to the program come after the system's.
    flags = ["-std=c++17", "-idirafter", "."]
    return [[paths[0], *flags, "-o", "main", "main.cpp", "@libraries"], ["{box}/main"]]


def _rust(paths: list[str], memory: int) -> list[list[str]]:
    # Its own linker asks /proc where it is.
    flags = [
        "--edition=2021",
        "--cap-lints=allow",
        "-Clink-arg=-fuse-ld=bfd",
        "-o",
        "main",
        "main.rs",
        "@crates",
        "@test",
    ]
    return [_rustc(paths) + flags, ["{box}/main", "@test_threads"]]


def _rustc(paths: list[str]) -> list[str]:
    return [paths[0], "--sysroot", os.path.dirname(os.path.dirname(paths[0]))]


def _crate(paths: list[str], name: str) -> list[str]:
    flags = ["--edition=2018", "--cap-lints=allow", "--crate-type=rlib", f"--crate-name={name}"]
    return [*_rustc(paths), *flags, "-o", f"lib{name}.rlib", f"crates/{name}.rs"]


def _go(paths: list[str], memory: int) -> list[list[str]]:
    return [[paths[0], "@go", "-o", "main", "."], ["{box}/main"]]


LANGUAGES = {
    language.name: language
    for language in (
        Language("js", "main.js", ("node",), "nodejs", _js),
        Language("java", "Main.java", ("javac", "java"), "openjdk-17-jdk-headless", _java),
        Language("cpp", "main.cpp", ("g++",), "g++", _cpp),
        Language("rust", "main.rs", ("rustc",), "rustc", _rust),
        Language(
            "go",
            "main.go",
            ("go",),
            "golang-go",
            _go,
            (
                *(("GOCACHE", "{box}/.cache"), ("GOPATH", "{box}/.go"), ("TMPDIR", "{box}/tmp")),
                *go_cache.SETTINGS.items(),
            ),
        ),
    )
}


@functools.cache
def find(name: str) -> tuple[str, ...]:
    """Returns the paths of a language's programs, or nothing if one is missing."""
    found = [path for program in LANGUAGES[name].programs if (path := shutil.which(program))]
    if len(found) < len(LANGUAGES[name].programs):
        return ()
    paths = [os.path.realpath(path) for path in found]
    if name == "rust":  # rustup's rustc starts another one, of a toolchain that it looks up
        done = subprocess.run([found[0], "--print=sysroot"], capture_output=True, text=True)
        paths = [os.path.join(done.stdout.strip(), "bin", "rustc")]
    return tuple(paths) if all(map(os.path.exists, paths)) else ()


def missing() -> dict[str, str]:
    """Returns language -> what to install, for those that cannot be run here."""
    return {
        name: f"{' and '.join(language.programs)} (Debian: {language.package})"
        for name, language in LANGUAGES.items()
        if not find(name)
    }


def toolchains() -> tuple[str, ...]:
    """Returns the folders that the toolchains found here are in, in addition to the system's."""
    found = set()
    for name in LANGUAGES:
        for path in find(name):
            folder = os.path.dirname(os.path.dirname(path))
            if folder not in ("/", "/usr"):
                found.add(folder)
    found |= set(_go_cache().values())
    return tuple(sorted(found))


def language(name: str) -> Language:
    """Returns a language whose toolchain is here.

    Raises:
      SandboxError: its toolchain is missing.
      ConfigError: there is no such language.
    """
    if name not in LANGUAGES:
        raise unknown_name("language", name, ["python", *LANGUAGES], "language")
    if not find(name):
        raise SandboxError(
            f"{name} cannot be run here: {missing()[name]} not found.",
            "PATH",
            "install it, or leave this language out.",
        )
    if name == "go":
        go_cache.prepare(find(name)[0])
    return LANGUAGES[name]


def _go_cache() -> dict[str, str]:
    """Returns the variable that names Go's cache, if there is one."""
    paths = find("go")
    found = go_cache.folder(paths[0]) if paths else None
    return {} if found is None or not found.is_dir() else {"GOCACHE": str(found)}


def more_files(name: str) -> dict[str, str]:
    """Returns files that a language needs in addition to the program."""
    return {"go.mod": "module program\n", "tmp/empty": ""} if name == "go" else {}


def _places(paths: tuple[str, ...]) -> dict[str, str]:
    # Programs look for what is next to them with /proc, which a run does not have.
    folders = {os.path.dirname(os.path.dirname(path)) for path in paths} - {"/", "/usr"}
    if not folders:
        return {}
    libraries = ":".join(f"{folder}/lib" for folder in sorted(folders))
    return {"LD_LIBRARY_PATH": libraries, "GOROOT": min(folders)}


def steps(
    name: str, files: dict[str, str], *, memory_mb: int, main: str = "Main", tests: bool = False
) -> list[dict]:
    """Returns the steps of a program: how to compile, then how to run it.

    Args:
      files: the run's files, by name. In Rust, crates/NAME.rs is a crate that it may use.
      main: the class to run, in Java.
      tests: whether the test harness of Rust or Go runs it.
    """
    made = LANGUAGES[name]
    text = "".join(files.values())
    crates = sorted(
        file.removeprefix("crates/").removesuffix(".rs")
        for file in files
        if name == "rust" and file.startswith("crates/")
    )
    replaced = {
        "@crates": [part for crate in crates for part in ("--extern", f"{crate}=lib{crate}.rlib")],
        "@sources": sorted(file for file in files if file.endswith(".java")),
        "@libraries": ["-lcrypto"] if "openssl/" in text else [],
        "@test": ["--test"] if tests else [],
        "@test_threads": ["--test-threads=1", "--nocapture"] if tests else [],
        "@go": ["test", "-c"] if tests else ["build"],
        "{main}": [main],
    }
    paths = list(find(name))
    commands = [_crate(paths, crate) for crate in crates] + made.steps(paths, memory_mb)
    return [
        {
            "command": [part for each in command for part in replaced.get(each, [each])],
            "memory_mb": memory_mb if index == len(commands) - 1 else max(memory_mb, _COMPILE_MB),
            "compile": index < len(commands) - 1,
            "environment": dict(made.environment)
            | _places(find(name))
            | (_go_cache() if name == "go" else {}),
        }
        for index, command in enumerate(commands)
    ]
