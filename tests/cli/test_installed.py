"""The wheel, installed outside the checkout, with a user's own package `experiments` next to it."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

pytest.importorskip("setuptools", minversion="77")  # Python 3.11 brings one without wheels

ROOT = pathlib.Path(__file__).resolve().parents[2]
REWARD = "def length(prompts, completions):\n    return [float(len(c)) for c in completions]\n"
MAKE_TEXT = """
import pathlib
pathlib.Path("text").mkdir()
for n in range(40):
    pathlib.Path(f"text/{n}.txt").write_text(f"{pathlib.__doc__} {n}")
"""
TRAIN = "--recipe=smoke --train.num_steps=2 --train.log_every=1 --optimizer.warmup_steps=1".split()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("qwen_jax", "experiments", "launch"):
        shutil.copytree(
            ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / "source")
    pip("wheel", "--no-build-isolation", f"--wheel-dir={folder}", str(folder / "source"))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def call(wheel, tmp_path_factory):
    """Runs a command in the user's folder with the installed package and returns its output."""
    prefix, here = tmp_path_factory.mktemp("prefix"), tmp_path_factory.mktemp("user")
    pip("install", f"--prefix={prefix}", "--no-compile", "--no-warn-script-location", str(wheel))
    (site,) = prefix.glob("lib/python*/site-packages")
    (here / "experiments").mkdir()
    (here / "experiments" / "__init__.py").write_text("WHOSE = 'the user'\n")
    (here / "experiments" / "reward.py").write_text(REWARD)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(site), *other_paths()]),
        "PATH": f"{prefix}/bin{os.pathsep}{os.environ['PATH']}",
        "XLA_FLAGS": "",  # one device
        "JAX_PLATFORMS": "cpu",
    }

    def run(*command: str, code: int = 0) -> str:
        done = subprocess.run(
            command, cwd=here, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + (done.stderr if code else "")

    return run


def pip(command: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", command, "--quiet", "--no-deps", "--no-index", *arguments],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def other_paths() -> list[str]:
    """PYTHONPATH without the checkout, which would hide the installed package."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return [path for path in paths if path and pathlib.Path(path).resolve() != ROOT]


def test_wheel_contains_one_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"qwen_jax"}
    for name in (
        "py.typed",
        "kernels/tiles.json",
        "corpus/output/review.html",
        "experiments/pretrain.py",
        "launch/slurm.sbatch",
        "launch/Dockerfile.gpu",
        "launch/find_python.sh",
    ):
        assert f"qwen_jax/{name}" in names, name


def test_console_help_lists_every_page_without_importing_jax(call):
    shown = call("qwen-jax", "--help")
    assert "  pretrain " in shown and "Pretraining. Report: 2.4, Table 1." in shown
    assert "  launch local " in shown and "quickstart_alignment" not in shown
    code = "import sys; from qwen_jax.cli import console; console.programs(); print(*sys.modules)"
    loaded = call(sys.executable, "-c", code).split()
    assert "qwen_jax.cli.console" in loaded and "jax" not in loaded


def test_editable_install_works_from_the_folder_that_has_the_checkout_in_it(wheel, tmp_path):
    """Python takes a folder `qwen_jax` here for a package before it looks at import hooks."""
    checkout, prefix = tmp_path / "qwen_jax", tmp_path / "prefix"
    shutil.copytree(wheel.parent / "source", checkout)
    pip("install", f"--prefix={prefix}", "--no-build-isolation", "--editable", str(checkout))
    (site,) = prefix.glob("lib/python*/site-packages")
    code = (
        f"import site, sys; site.addsitedir({str(site)!r}); import qwen_jax; "
        "print(qwen_jax.__file__); from qwen_jax.cli.console import main; "
        "sys.argv[1:] = ['--help']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(other_paths())},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(checkout)) and "  launch local " in done.stdout


def test_console_suggests_the_nearest_program(call):
    assert "did you mean 'pretrain'?" in call("qwen-jax", "pretrian", code=1)
    assert "did you mean 'launch local'?" in call("qwen-jax", "launch", "locl", code=1)


def test_wheel_does_not_hide_the_users_experiments(call):
    code = (
        "import experiments, qwen_jax, qwen_jax.experiments; "
        "print(experiments.WHOSE, qwen_jax.__version__, qwen_jax.__file__)"
    )
    whose, version, file = call(sys.executable, "-c", code).rsplit(maxsplit=2)
    assert whose == "the user" and version[0].isdigit() and "/prefix" in file


def test_launchers_start_the_installed_page(call):
    shown = call("qwen-jax", "launch", "local", "--dry_run", "--", "pretrain", "--recipe=smoke")
    assert shown.count(" -m qwen_jax.experiments.pretrain --recipe=smoke") == 2
    shown = call("qwen-jax", "launch.jobset", "--name=r", "--image=i", "--dry_run", "--", "sft")
    spec = json.loads(shown.partition("\n")[2].rpartition("END")[0])["spec"]
    (job,) = spec["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["python", "-m", "qwen_jax.experiments.sft"]


def test_console_runs_a_smoke_pretraining(call, toy_text):
    shown = call("qwen-jax", "pretrain", *TRAIN, f"--data.sources={toy_text}", "--run_dir=run")
    assert "recipe smoke, but" in shown and "step 2/2" in shown
    assert "report: run/report.html" in shown
    assert call("qwen-jax", "report", "run").splitlines()[-1] == "run/report.html"
    assert '"event": "end", "step": 2' in call("tail", "-n1", "run/events.jsonl")


@pytest.mark.slow
def test_console_prepares_data_and_trains_with_the_commands_shown(call):
    shown = call("qwen-jax", "pretrain", "--help")
    assert "qwen-jax prepare_data --sources" in shown and "python -m experiments" not in shown
    call(sys.executable, "-c", MAKE_TEXT)
    made = (
        "--recipe=unfiltered --sources=mine=text --output=data --vocab_size=300 --eval_fraction=0.2"
    )
    shown = call("qwen-jax", "prepare_data", *made.split(), "--workers=2")
    command = shown.splitlines()[-1].split()
    assert command[:3] == ["python", "-m", "qwen_jax.experiments.pretrain"]
    call(sys.executable, *command[1:], *TRAIN, "--run_dir=made")
    missing = ["--data.sources=data/nowhere/mine/train", "--data.tokenizer=data/tokenizer.tiktoken"]
    shown = call("qwen-jax", "pretrain", *TRAIN, *missing, "--run_dir=none", code=1)
    assert "`qwen-jax prepare_data --help`" in shown
