"""Which tests `make check` runs."""

import subprocess

import pytest

from tests.helpers.changed import changed_files, mirrors_of


@pytest.fixture
def tree(tmp_path):
    """A repository with two modules, one with a mirror test, one that another test imports."""
    for name, text in {
        "qwen_jax/room/mirrored.py": "",
        "qwen_jax/room/used.py": "",
        "tests/helpers/shared_code.py": "",
        "tests/room/test_mirrored.py": "from tests.helpers.shared_code import x\n",
        "tests/room/test_other.py": "import qwen_jax.room.used\n",
        "tests/elsewhere/test_third.py": "from qwen_jax.room import used\n",
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
        ("experiments/page.py", ["tests/experiments/test_page.py"]),
        ("tests/room/test_other.py", ["tests/room/test_other.py"]),
        ("tests/helpers/shared_code.py", ["tests/room/test_mirrored.py"]),
        ("README.md", []),
        ("setup.py", []),
    ],
)
def test_mirrors_of_finds_mirrors_and_importers(tree, changed, expected):
    assert mirrors_of([changed], tree) == expected


def test_changed_files_are_edited_and_untracked_ones(tree):
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
    assert changed_files(root=tree) == ["experiments/page.py", "new.py"]
    git("switch", "-c", "topic")
    git("add", ".")
    git("commit", "-m", "edited")
    assert changed_files(root=tree) == []
    assert changed_files("main", root=tree) == ["experiments/page.py", "new.py"]
