"""The console command in this process; tests/cli/test_installed.py runs the installed one."""

import pytest

from qwen_jax.cli import console

TEXT = "python -m experiments.sft --recipe=7b; python -m launch.local -- sft; experiments.sft"


@pytest.mark.parametrize(
    "package, typed",
    [
        ("experiments", TEXT),
        (None, TEXT),
        (
            "qwen_jax.experiments",
            "qwen-jax sft --recipe=7b; qwen-jax launch local -- sft; experiments.sft",
        ),
    ],
)
def test_as_typed_rewrites_commands_for_the_package_of_the_pages(package, typed):
    assert console.as_typed(TEXT, package) == typed
