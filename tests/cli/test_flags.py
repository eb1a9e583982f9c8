"""Flags from dataclasses."""

import dataclasses
import errno
import itertools
import os
import sys
from typing import Literal

import pytest

from experiments import chat, dpo, grpo, ppo, pretrain, reward_model, sft
from qwen_jax import errors
from qwen_jax.cli import flags
from qwen_jax.config import option, with_current_names
from qwen_jax.errors import ConfigError
from qwen_jax.utils.best_effort import keep_going
from tests.helpers.failing_output import no_reader
from tests.helpers.paths import ALL_CHARACTERS, EACH_CHARACTER, MORE
from tests.helpers.programs import PROGRAMS, recipes_of

RECIPES = pretrain.RECIPES | {"smoke": pretrain.SMOKE}


def parse(*arguments):
    return flags.parse("Doc.", RECIPES, ["prog", *arguments])


def test_parse_makes_a_typed_flag_of_every_field():
    name, config = parse(
        "--recipe=smoke",
        "--train.num_steps=7",
        "--model.rope_base=1e6",
        "--data.sources=a=0.5,b",
        "--optimizer.clip_norm=none",
        "--train.z_loss=1e-4",
        "--model.tie_embeddings",
        "--mesh.fsdp",
        "4",
    )
    assert name == "smoke"
    assert config.train.num_steps == 7 and config.model.rope_base == 1e6
    assert config.data.sources == ("a=0.5", "b") and config.optimizer.clip_norm is None
    assert config.train.z_loss == 1e-4 and config.model.tie_embeddings and config.mesh.fsdp == 4
    changed = flags.differences(config, pretrain.SMOKE)
    assert "train.num_steps: 60 -> 7" in changed and len(changed) == 7


def test_parse_without_flags_returns_the_recipe():
    assert parse("--recipe", "7b")[1] == pretrain.RECIPES["7b"]
    assert parse()[1] == pretrain.RECIPES["1.8b"]


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--train.num_step=3", "did you mean 'train.num_steps'"),
        ("--model.max_seq_len=3", "did you mean 'model.context_length'"),
        ("--max_seq_len=3", "did you mean 'model.context_length'"),
        ("--context_length=3", "did you mean 'model.context_length'"),
        ("--batch_size=3", "did you mean 'train.batch_size'"),
        ("--evaluate.batch=3", "did you mean 'evaluate.batch_size'"),
        ("--optimizer.lr=3", "did you mean 'optimizer.peak_learning_rate'"),
        ("--trian.num_steps=3", "did you mean 'train.num_steps'"),
        ("--model.n_layers=3", "did you mean 'model.num_layers'"),
        ("--recipe=7c", "did you mean '7b'"),
        ("--train.num_step=3", r"'train.num_steps'\? --help lists all\.\Z"),
        ("--zzz=3", "Known: allow_changes, config, data"),
        ("--train.num_steps=many", "train.num_steps=many: 'many' is not an integer"),
        ("--train.num_steps=1e3", "'1e3' is not an integer"),
        ("--optimizer.peak_learning_rate=fast", "'fast' is not a number"),
        ("--train.batch_size=0", "batch_size=0 is not an integer of at least 1"),
        ("--model.remat=some", "remat"),
        ("stray", "positional arguments are not supported: stray"),
    ],
)
def test_parse_error_names_the_fix(argument, message):
    with pytest.raises(ConfigError, match=message):
        parse(argument)


def test_parse_suggests_the_flag_of_a_model_folder():
    with pytest.raises(ConfigError, match="as a flag: --checkpoint=runs/chat"):
        flags.parse(chat.__doc__, {"default": chat.Config()}, ["prog", "runs/chat"])


@pytest.mark.parametrize("stage", [sft, reward_model, dpo, ppo, grpo])
def test_parse_refuses_architecture_flags_of_later_stages(stage):
    def parse(*arguments):
        return flags.parse(stage.__doc__, stage.RECIPES, ["prog", *arguments])

    for argument in (
        "--model.hidden_size=64",
        "--model.extension.logn=false",
        "--nomodel.tie_embeddings",
    ):
        with pytest.raises(ConfigError, match="--init_from determines the architecture"):
            parse(argument)
    _, config = parse("--model.context_length=64")  # which rows are not part of
    assert config.model.context_length == 64
    with pytest.raises(ConfigError, match="did you mean 'model.dropout'"):
        parse("--model.dropuot=0.1")
    with pytest.raises(ConfigError, match="dropout=2.0 is not a finite number of at least 0"):
        parse("--model.dropout=2")
    name, config = parse("--model.remat=block", "--model.compute_dtype=float32")
    assert name == "default" and config.model.compute_dtype == "float32"
    assert config.model.remat == "block" and config.optimizer == stage.RECIPE.optimizer


def test_parse_accepts_a_former_recipe_name_and_warns(capsys):
    assert flags.parse("Doc.", sft.RECIPES, ["prog", "--recipe=7b"]) == ("default", sft.RECIPE)
    assert "the former name --recipe=7b; it is now --recipe=default" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        flags.parse("Doc.", sft.RECIPES, ["prog", "--recipe=7b", "--help"])
    assert "(--recipe=): default, smoke. The flags below" in capsys.readouterr().out


def test_help_shows_docstring_recipes_and_flags(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "Doc." in text and "smoke" in text
    assert "--train.micro_batches=1  # gradient accumulation" in text


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_describes_every_flag_of_every_program(name, capsys):
    with pytest.raises(SystemExit):
        flags.parse("Doc.", recipes_of(name), [name, "--help"])
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  --")]
    bare = [line for line in shown if "  # " not in line or "no help" in line]
    assert shown and not bare, bare


def test_help_lists_choices(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    assert "--optimizer.schedule=cosine  # one of cosine, constant; " in capsys.readouterr().out


def test_run_prints_errors_without_a_traceback(capsys):
    with pytest.raises(SystemExit) as stop:
        flags.run(lambda config: None, "Doc.", RECIPES, ["prog", "--nonsense=1"])
    assert stop.value.code == 1
    text = capsys.readouterr().err
    assert "what:" in text and "fix:" in text and "Traceback" not in text


def failing(error: BaseException):
    def main(config):
        raise error

    return main


@pytest.mark.parametrize(
    "error, code, shown",
    [
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), 73, "where: /data/x"),
        (errors.FolderInUseError("held.", "runs/a", "wait."), 78, "what:  held."),
        (OSError(errno.EIO, "Input/output error"), 74, "Traceback"),
        (OSError(errno.EIO, "Input/output error", "/data/x"), 74, "where: /data/x"),
        (OSError(errno.EROFS, "Read-only file system", "/data/x"), 1, "(EROFS)"),
        (PermissionError(errno.EACCES, "Permission denied", "/data/x"), 1, "where: /data/x"),
        (RuntimeError("a bug"), 70, "RuntimeError: a bug"),
        (BrokenPipeError("of a subprocess"), 70, "BrokenPipeError"),
    ],
)
def test_run_exits_with_the_code_of_the_table(capsys, error, code, shown):
    with pytest.raises(SystemExit) as stop:
        flags.run(failing(error), "Doc.", RECIPES, ["prog"])
    text = capsys.readouterr().err
    assert stop.value.code == code and shown in text
    assert ("Traceback" in text) != ("where: " in text or "held." in text)


def test_run_ends_without_a_traceback_at_ctrl_c(capsys):
    with pytest.raises(SystemExit) as stop:
        flags.run(failing(KeyboardInterrupt()), "Doc.", RECIPES, ["prog"])
    assert stop.value.code == 130
    assert capsys.readouterr().err.strip() == (
        "stopped by Ctrl-C; run the same command to start or resume it"
    )


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_run_ends_quietly_if_nobody_reads_its_results(capsys, arguments):
    with no_reader(), pytest.raises(SystemExit) as stop:
        flags.run(lambda config: print("result"), "Doc.", RECIPES, ["prog", *arguments])
    assert stop.value.code == 141 and capsys.readouterr().err == ""


def test_run_goes_on_if_nobody_reads_its_logs(capsys):
    done = []

    @keep_going()
    def main(config):
        print("a line", flush=True)
        done.append(config)

    with no_reader():
        flags.run(main, "Doc.", RECIPES, ["prog"])
    assert done and "1 lines of standard output could not be written" in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_run_fails_if_its_results_do_not_fit(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", open("/dev/full", "w"))
    with pytest.raises(SystemExit) as stop:
        flags.run(lambda config: print("result"), "Doc.", RECIPES, ["prog"])
    assert stop.value.code == 73 and "No space left" in capsys.readouterr().err


def test_run_of_one_process_does_not_start_jax(monkeypatch):
    """A program such as prepare_data forks, which a process with JAX's threads must not."""

    def started():
        raise AssertionError("JAX was started")

    monkeypatch.setattr(flags.jax, "process_index", started)
    flags.run(lambda config: None, "Doc.", RECIPES, ["prog"])


@dataclasses.dataclass(frozen=True)
class _Steps:
    num_updates: int = option(5, "updates of the weights", alias="num_steps")
    shuffle: bool = option(True, "a new order each epoch", alias="--mix")
    on_spike: Literal["warn", "skip"] = option("skip", "", former_values={"tell": "warn"})


@dataclasses.dataclass(frozen=True)
class _Renamed:
    train: _Steps = _Steps()
    run_dir: str = option("runs/x", "output folder")


@pytest.mark.parametrize(
    "arguments, former, now",
    [
        (["--train.num_steps=7"], "--train.num_steps", "--train.num_updates"),
        (["--train.num_steps", "7"], "--train.num_steps", "--train.num_updates"),
        (["--nomix", "--train.num_updates=7"], "--mix", "--train.shuffle"),
    ],
)
def test_parse_accepts_a_former_flag_and_warns(arguments, former, now, capsys):
    _, config = flags.parse("Doc.", {"one": _Renamed()}, ["prog", *arguments])
    assert config.train.num_updates == 7 and config.train.shuffle == ("--nomix" not in arguments)
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 1 and former in warnings[0] and now in warnings[0]


@pytest.mark.parametrize("arguments", [["--train.on_spike=tell"], ["--train.on_spike", "tell"]])
def test_parse_accepts_a_former_value_and_warns(arguments, capsys):
    _, config = flags.parse("Doc.", {"one": _Renamed()}, ["prog", *arguments, "--run_dir=tell"])
    assert config.train.on_spike == "warn" and config.run_dir == "tell"
    (warning,) = capsys.readouterr().err.splitlines()
    assert "--train.on_spike=tell" in warning and "now --train.on_spike=warn" in warning


@pytest.mark.parametrize("value", ["-5", "-x=3", "--mix", "--train.num_steps=3", "-mix"])
def test_parse_leaves_the_value_of_a_flag_as_it_is(value, capsys):
    _, config = flags.parse("Doc.", {"one": _Renamed()}, ["prog", "--run_dir", value, "--nomix"])
    assert config.run_dir == value and not config.train.shuffle
    assert len(capsys.readouterr().err.splitlines()) == 1  # of --nomix


TWO = {"one": _Renamed(), "two": _Renamed(run_dir="runs/two")}


@pytest.mark.parametrize(
    "arguments, recipe, run_dir",
    [
        (["--recipe", "one", "--recipe=two"], "two", "runs/two"),
        (["--recipe=two", "--recipe", "one"], "one", "runs/x"),
        (["--run_dir", "--recipe=two"], "one", "--recipe=two"),
        (["--run_dir", "--recipe", "--recipe=two"], "two", "--recipe"),
        (["--mix", "--recipe=two"], "two", "runs/two"),
        (["--flagfile=FILE"], "two", "runs/of_file"),
    ],
)
def test_parse_takes_the_last_recipe(arguments, recipe, run_dir, tmp_path):
    path = tmp_path / "flags.txt"
    path.write_text("# a comment\n--run_dir=runs/of_file\n--recipe=two\n--nomix\n")
    arguments = [argument.replace("FILE", str(path)) for argument in arguments]
    name, config = flags.parse("Doc.", TWO, ["prog", *arguments])
    assert (name, config.run_dir) == (recipe, run_dir)


def test_parse_names_a_missing_flagfile(tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)none.txt.*where: --flagfile"):
        flags.parse("Doc.", TWO, ["prog", f"--flagfile={tmp_path / 'none.txt'}"])
    with pytest.raises(ConfigError, match=r"(?s)path is empty.*where: --flagfile"):
        flags.parse("Doc.", TWO, ["prog", "--flagfile="])


def test_parse_warns_once_of_a_repeated_former_flag(capsys):
    arguments = ["--train.num_steps=3", "--train.num_steps=4", "--nomix", "--mix"]
    _, config = flags.parse("Doc.", TWO, ["prog", *arguments])
    assert config.train == _Steps(num_updates=4) and capsys.readouterr().err.count("warning") == 2


def test_parse_says_what_a_boolean_may_be():
    with pytest.raises(ConfigError, match="--train.shuffle=5: '5' is not true or false"):
        flags.parse("Doc.", TWO, ["prog", "--train.shuffle=5"])


@pytest.mark.parametrize("order", [1, -1])
def test_with_current_names_prefers_the_current_name(order):
    settings = {"train.num_steps": 3, "train.num_updates": 4}
    found = with_current_names(dict(list(settings.items())[::order]), _Renamed(), "config.json")
    assert found == {"train.num_updates": 4}


def test_parse_accepts_former_training_flags_and_values(capsys):
    _, config = parse(
        "--train.device_memory_gb=4",
        "--train.recheck_every=9",
        "--train.on_spike=tell",
        "--data.packing=run_on",
    )
    assert config.train.device_memory_gib == 4 and config.train.sdc_check_every == 9
    assert config.train.on_spike == "warn" and config.data.packing == "concat"
    assert len(capsys.readouterr().err.splitlines()) == 4


@pytest.mark.parametrize(
    "text, values",
    [
        ("", ()),
        ("a", ("a",)),
        ("a,b", ("a", "b")),
        (" a , b ", ("a", "b")),
        (r"a\,b,c", ("a,b", "c")),
        (r"a\b,c\d", (r"a\b", r"c\d")),
        (r"a\\,b", ("a\\", "b")),
        ("a\\", ("a\\",)),
        ("runs/lr=0.5/=2,b c", ("runs/lr=0.5/=2", "b c")),
        ("[a],{b},*", ("[a]", "{b}", "*")),
    ],
)
def test_parse_splits_a_list_at_commas_without_a_backslash(text, values):
    _, config = parse(f"--data.sources={text}")
    assert config.data.sources == values


def test_parse_keeps_the_spaces_of_a_name_that_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / " a ").touch()
    _, config = parse("--data.sources= a , b ")
    assert config.data.sources == (" a ", "b")


@pytest.mark.parametrize(
    "given, read",
    [
        ("~/x", "/home/me/x"),
        ("~", "/home/me"),
        ("name=~/x", "name=/home/me/x"),
        ("web:~/x", "web:/home/me/x"),
        ("a~/x", "a~/x"),
        ("./~/x", "./~/x"),
        ("~other", "~other"),
        ("x:y=0.5", "x:y=0.5"),
    ],
)
def test_parse_expands_the_home_folder_as_a_shell_does(monkeypatch, given, read):
    monkeypatch.setenv("HOME", "/home/me")
    _, config = parse(f"--run_dir={given}", f"--data.sources=b,{given}")
    assert (config.run_dir, config.data.sources) == (read, ("b", read))


@pytest.mark.parametrize(
    "value, message",
    [
        (" ", "consists of spaces"),
        ("\t\n", "consists of spaces"),
        ("file:///data/x", "(?s)is a URL, and.*--(run_dir|data.sources).*the path /data/x"),
        ("FILE://localhost/x", "(?s)is a URL, and.*use the path /x"),
        ("gs://Bucket/x", "not the name of a bucket"),
        ("web=gs://bucket/x", "is a URL, and"),
        ("https://host/x", "is a URL, and"),
        ("foo://x", "is a URL, and"),
    ],
)
def test_parse_refuses_what_is_not_a_path(value, message):
    with pytest.raises(ConfigError, match=message):
        parse(f"--run_dir={value}")
    with pytest.raises(ConfigError, match=message if value.strip() else "non-empty"):
        parse(f"--data.sources={value}")


def test_parse_takes_addresses_in_stores_only_where_they_are_read():
    _, config = parse("--run_dir=gs://bucket/run", "--data.sources=s3://bucket/a,gs://b-c/d=0.5")
    assert config.run_dir == "gs://bucket/run"
    assert config.data.sources == ("s3://bucket/a", "gs://b-c/d=0.5")
    with pytest.raises(ConfigError, match="(?s)is a URL, and.*data.tokenizer.*copy the files"):
        parse("--data.tokenizer=gs://bucket/x")


@dataclasses.dataclass(frozen=True)
class _Kinds:
    text: str = option("", "a text", kind="text")
    model: str = option("", "a model", kind="url")


def test_parse_takes_texts_and_urls_as_they_are():
    def read(*arguments):
        return flags.parse("", {"default": _Kinds()}, ["program", *arguments])[1]

    for text in (" ", "~/x", "file:///x"):
        assert read(f"--text={text}").text == text
    assert read("--model=http://host:1#m").model == "http://host:1#m"
    with pytest.raises(ConfigError, match="use the path /x"):
        read("--model=file:///x")


def test_parse_reads_every_list_that_help_writes():
    parts = ["".join(part) for size in range(4) for part in itertools.product("a,\\", repeat=size)]
    for value in [*parts, *EACH_CHARACTER, ALL_CHARACTERS, *MORE]:
        for values in ([f"x{value}x"], [f"x{value}", "y"], ["y", f"x{value}", f"x{value}/"]):
            if all(value == value.strip() for value in values):
                assert flags._split(flags.join_list(values)) == values


def test_config_is_hashable():
    assert len({_Renamed(), _Renamed(), _Renamed(run_dir="runs/y")}) == 2


def test_parse_refuses_what_is_not_utf8():
    with pytest.raises(ConfigError, match="not UTF-8"):
        parse("--run_dir=a\udcff")
