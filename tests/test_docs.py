"""README.md and docs/ against the code: links, paths, commands with their flags, data formats.

`make docs` builds the site; these tests do not.
"""

import ast
import importlib
import importlib.util
import inspect
import pathlib
import re
import shlex

import pytest

from qwen_jax.cli import flags
from qwen_jax.data.chat import conversations, pairs, prompts, react
from qwen_jax.inference import jsonl
from qwen_jax.tokenizer.bpe import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parent.parent
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [*GUIDES, *(ROOT / name for name in ("WORKSPACE.md", "launch/README.md"))]
PAGES += sorted((ROOT / "benchmarks/results").glob("*.md"))
REMOVED = ("experiments.prepare_text",)  # of measurements that older versions made
BYTES = Tokenizer({bytes([byte]): byte for byte in range(256)})
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _build_script():
    """docs/build.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs/build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = _build_script()


def _id(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def _anchors(page: pathlib.Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_links_lead_to_files_and_headings(page):
    broken = []
    for _, _, link in build.LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        if "://" not in link:
            found = target.exists() and (not anchor or anchor in _anchors(target))
            broken += [] if found else [link]
    assert broken == []


def test_report_map_shows_each_path_that_it_links_to():
    text = (ROOT / "docs/report_map.md").read_text(encoding="utf-8")
    rows = re.findall(r"\[`([^`]+)`\]\(\.\./([^)]+)\)", text)
    assert len(rows) > 80
    assert [path for shown, path in rows if path not in (shown, f"qwen_jax/{shown}")] == []
    assert [path for _, path in rows if not (ROOT / path).exists()] == []


def _commands(page: pathlib.Path) -> list[list[str]]:
    """The words after `python -m` of each command of a page."""
    text = page.read_text(encoding="utf-8")
    code = [body for language, body in FENCE.findall(text) if not language]
    code += re.findall(r"(?<!`)`(python -m [^`]+)`(?!`)", FENCE.sub("", text))
    lines = "\n".join(code).replace("\\\n", "").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines if "python -m" in line]
    return [words[words.index("python") + 2 :] for words in commands]


def _parse(module: str, arguments: list[str]) -> None:
    """Parses the flags of an experiment or benchmark with the recipes that its main has.

    The flags of one that uses argparse are looked up in its source.

    Raises:
      ConfigError: an unknown flag or value.
    """
    assert importlib.util.find_spec(module) is not None, f"there is no {module}"
    source = inspect.getsource(importlib.import_module(module))
    tree = ast.parse(source)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if ast.unparse(call.func) == "flags.run":
            recipes = eval(ast.unparse(call.args[2]), vars(importlib.import_module(module)))
            flags.parse("", recipes, [module, *arguments])
            return
    assert [flag for flag in arguments if flag.partition("=")[0] not in source] == []


def _check(command: list[str]) -> None:
    """Parses a command; of a launcher, also the experiment after `--`."""
    module, *arguments = command
    if "..." in arguments or module.endswith(".NAME") or module in REMOVED:
        return
    arguments = [argument.strip("[]") for argument in arguments]  # optional ones
    if "--" in arguments:
        end = arguments.index("--")
        arguments, (name, *following) = arguments[:end], arguments[end + 1 :]
        _parse(f"experiments.{name}", following)
    _parse(module, arguments)


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_commands_have_modules_and_flags_that_exist(page, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for language, body in FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "yaml":  # for --config
            (tmp_path / "mine.yaml").write_text(body, encoding="utf-8")
    for command in _commands(page):
        _check(command)
    assert "former name" not in capsys.readouterr().err


SCRIPTS = sorted([*(ROOT / "experiments").glob("*.py"), *(ROOT / "launch").glob("*.py")])


@pytest.mark.parametrize("script", SCRIPTS, ids=_id)
def test_commands_of_help_have_modules_and_flags_that_exist(script, capsys):
    """Those of a page's docstring, which --help shows; `...` is the page's command."""
    text = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    own = f"{script.parent.name}.{script.stem}"
    for line in text.replace("\\\n", "").splitlines():
        if re.match(r" *(python -m \w+\.|\.\.\. --)", line):
            words = shlex.split(line, comments=True)
            command = words[2:] if words[0] == "python" else [own, *words[1:]]
            _check([word for word in command if word != "..."])
    assert "former name" not in capsys.readouterr().err


def test_commands_of_the_readme_are_found():
    modules = [command[0].partition(".")[2] for command in _commands(ROOT / "README.md")]
    assert modules == ["prepare_data", "pretrain", "sft", "chat", "serve", "convert", "report"]
    with pytest.raises(AssertionError, match="there is no"):
        _check(["experiments.nothing"])
    with pytest.raises(flags.ConfigError, match="did you mean 'train.num_steps'"):
        _check(["experiments.sft", "--train.num_step=3"])
    with pytest.raises(AssertionError):
        _check(["launch.local", "--proceses=2"])


def _examples(page: str, heading: str) -> list[str]:
    """The lines of the JSON blocks under a heading."""
    text = (ROOT / page).read_text(encoding="utf-8")
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [line for language, body in FENCE.findall(section) for line in body.splitlines()
            if language == "json"]  # fmt: skip


@pytest.mark.parametrize(
    "heading, read",
    [
        ("Conversations", conversations.read_conversations),
        ("Preference pairs", pairs.read_pairs),
        (
            "Prompts",
            lambda files, counts: prompts.read_prompts(files, BYTES, max_tokens=99, counts=counts),
        ),
        ("Tools", lambda files, counts: react.read_tools(files[0])),
    ],
)
def test_chat_data_examples_are_read(heading, read, tmp_path):
    lines = _examples("docs/guides/chat_data.md", heading)
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    counts = conversations.Counts()
    assert len(lines) >= 2 and len(list(read([path], counts))) == len(lines)
    assert not counts.skipped and not counts.changed


def test_inference_prompts_are_read(tmp_path):
    lines = [line for line in _examples("docs/guides/inference.md", "A file of prompts")]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(lines[:2]), encoding="utf-8")
    source = jsonl.Source(path, BYTES, jsonl.DEFAULTS, context=500)
    assert source.check()[0] == 2


def test_build_public_names_are_those_without_an_underscore(tmp_path):
    package = tmp_path / "qwen_jax"
    (package / "_hidden").mkdir(parents=True)
    for name in ("__init__.py", "_private.py", "_hidden/module.py"):
        (package / name).write_text("def function(): ...\n" if "_p" in name else "")
    (package / "module.py").write_text(
        "A, _B = 1, 2\nC: int = 3\nclass D:\n    field: int\n    def method(self): ...\n"
        "    def _own(self): ...\ndef f(): ...\ndef _g(): ...\nimport os\n"
    )
    expected = ["qwen_jax", *(f"qwen_jax.module{name}" for name in ("", ".C", ".D", ".D.field"))]
    expected += ["qwen_jax.module.D.method", "qwen_jax.module.f"]
    assert list(build.public_names(tmp_path)) == expected


def test_build_missing_names_and_foreign_resources_are_reported(tmp_path):
    (tmp_path / "api").mkdir()
    (tmp_path / "api/page.html").write_text('<h2 id="qwen_jax.config.option">')
    names = ["qwen_jax.config.option", "qwen_jax.config.renamed"]
    (missing,) = build.missing_names(names, tmp_path)
    assert missing.startswith("qwen_jax.config.renamed is on no page")
    assert build.foreign_resources(tmp_path) == []
    (tmp_path / "index.html").write_text(
        '<a href="https://arxiv.org">paper</a><link rel="stylesheet" href="//cdn.net/a.css">'
        '<script src="https://cdn.net/a.js"></script><img src="figure.png">'
    )
    assert build.foreign_resources(tmp_path) == [
        "index.html fetches //cdn.net/a.css.",
        "index.html fetches https://cdn.net/a.js.",
    ]


def test_build_staged_text_links_to_api_pages():
    page = pathlib.Path("docs/guides/alignment.md")
    text = (
        "[ppo](../../qwen_jax/align/ppo.py) [folder](../../qwen_jax/serve/) [x](chat_data.md#tools)"
        " [launch](../../launch/README.md) [a test](../../tests/test_docs.py) [gone](gone.py)\n"
        "```\n[ppo](../../qwen_jax/align/ppo.py)\n```\n"
    )
    assert build.staged_text(text, page, ROOT) == (
        "[ppo](../../api/qwen_jax/align/ppo.md) [folder](../../api/qwen_jax/serve/index.md)"
        " [x](chat_data.md#tools) [launch](../../launch/launchers.md) a test [gone](gone.py)\n"
        "```\n[ppo](../../qwen_jax/align/ppo.py)\n```\n"
    )
