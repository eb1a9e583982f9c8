"""Which tests `make check` runs."""

import subprocess

import pytest

from tests.helpers import changed, house
from tests.helpers.changed import changed_files, mirrors_of, sources_of


@pytest.fixture
def tree(tmp_path):
    """A repository with modules with a mirror, with importing tests, and without either."""
    for name, text in {
        "qwen_jax/room/mirrored.py": "from qwen_jax.room import inner\n",
        "qwen_jax/room/inner.py": "",
        "qwen_jax/room/alone.py": "",
        "qwen_jax/far.py": "",
        "qwen_jax/room/used.py": "",
        "tests/helpers/shared_code.py": "",
        "tests/room/test_mirrored.py": "from tests.helpers.shared_code import x\n",
        "tests/room/test_other.py": "import qwen_jax.room.used\n",
        "tests/elsewhere/test_third.py": "from qwen_jax.room import used\nimport qwen_jax.far\n",
        "experiments/page.py": "",
        "tests/experiments/test_page.py": "",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    "changed, expected",
    [
        ("qwen_jax/room/mirrored.py", ["tests/room/test_mirrored.py"]),
        ("qwen_jax/room/used.py", ["tests/room/test_other.py"]),
        ("qwen_jax/far.py", ["tests/elsewhere/test_third.py"]),
        ("qwen_jax/room/inner.py", ["tests/room/test_mirrored.py"]),
        ("qwen_jax/room/alone.py", ["tests/room/test_mirrored.py", "tests/room/test_other.py"]),
        ("experiments/page.py", ["tests/experiments/test_page.py"]),
        ("tests/room/test_other.py", ["tests/room/test_other.py"]),
        ("tests/helpers/shared_code.py", ["tests/room/test_mirrored.py"]),
        ("README.md", []),
        ("setup.py", []),
    ],
)
def test_mirrors_of_finds_mirrors_and_importers(tree, changed, expected):
    assert mirrors_of([changed], tree) == expected
    (tree / changed).unlink(missing_ok=True)  # a deleted module breaks its tests
    assert mirrors_of([changed], tree) == [name for name in expected if name != changed]


def test_mirrors_of_every_module_of_this_repository_exist():
    root = changed.ROOT
    modules = [path for path in house.files(root) if path.name != "__init__.py"]
    names = [path.relative_to(root).as_posix() for path in modules]
    assert len(names) > 200
    assert [name for name in names if not mirrors_of([name])] == []


def test_sources_of_a_deleted_module_are_the_files_that_import_it(tree):
    assert sources_of(["qwen_jax/room/used.py", "README.md"], tree) == ["qwen_jax/room/used.py"]
    (tree / "qwen_jax/room/inner.py").unlink()
    assert sources_of(["qwen_jax/room/inner.py"], tree) == ["qwen_jax/room/mirrored.py"]


def test_changed_files_are_edited_untracked_and_deleted_ones(tree):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *identity, *arguments], cwd=tree, check=True, capture_output=True)

    git("init", "-b", "main")
    git("add", ".")
    git("commit", "-m", "all")
    assert changed_files(root=tree) == []
    (tree / "experiments/page.py").write_text("x = 1\n")
    (tree / "new.py").write_text("")
    (tree / "qwen_jax/room/used.py").unlink()
    changes = ["experiments/page.py", "new.py", "qwen_jax/room/used.py"]
    assert changed_files(root=tree) == changes
    git("switch", "-c", "topic")
    git("add", ".")
    git("commit", "-m", "edited")
    assert changed_files(root=tree) == []
    assert changed_files("main", root=tree) == changes
