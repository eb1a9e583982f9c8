"""Former flags, values and recipes of every program: they still parse, with one warning each."""

import dataclasses
import functools
import typing

import pytest

from qwen_jax.cli import flags
from qwen_jax.config import renamed, renamed_values
from tests.helpers.programs import PROGRAMS, recipes_of

# (program, former flag or value, the same setting today). An entry is never removed.
FORMER = [
    ("chat", "--plain", "--no_chat_template"),
    ("generate", "--rows=3", "--max_num_seqs=3"),
    ("serve", "--rows=3", "--max_num_seqs=3"),
    ("serve", "--memory_gb=2", "--memory_gib=2"),
    ("serve", "--max_body_mb=2", "--max_body_mib=2"),
    ("quickstart", "--learnt_tokens=900", "--learned_tokens=900"),
    ("quickstart", "--train.device_memory_gb=4", "--train.device_memory_gib=4"),
    ("pretrain", "--train.device_memory_gb=4", "--train.device_memory_gib=4"),
    ("pretrain", "--train.recheck_every=9", "--train.sdc_check_every=9"),
    ("pretrain", "--train.on_spike=tell", "--train.on_spike=warn"),
    ("pretrain", "--data.packing=run_on", "--data.packing=concat"),
    ("sft", "--recipe=7b", "--recipe=default"),
    ("sft", "--train.recheck_every=9", "--train.sdc_check_every=9"),
    ("sft", "--train.on_spike=tell", "--train.on_spike=warn"),
    ("reward_model", "--recipe=1.8b", "--recipe=default"),
    ("reward_model", "--train.device_memory_gb=4", "--train.device_memory_gib=4"),
    ("dpo", "--recipe=14b", "--recipe=default"),
    ("dpo", "--train.recheck_every=9", "--train.sdc_check_every=9"),
    ("ppo", "--recipe=7b", "--recipe=default"),
    ("ppo", "--ppo.discount=0.9", "--ppo.gamma=0.9"),
    ("ppo", "--ppo.no_end_penalty=0.5", "--ppo.missing_eos_penalty=0.5"),
    ("ppo", "--data.pretrain.packing=run_on", "--data.pretrain.packing=concat"),
    ("prepare_data", "--vocab_size=900", "--vocabulary.size=900"),
    ("prepare_data", "--base=a.tiktoken", "--vocabulary.base=a.tiktoken"),
    ("prepare_data", "--num_new=70", "--vocabulary.num_new=70"),
    ("prepare_data", "--vocabulary_mb=3", "--vocabulary.megabytes=3"),
    ("prepare_data", "--filters.checkpoint_least=0.1", "--filters.checkpoint_min_bpb=0.1"),
    ("prepare_data", "--filters.checkpoint_most=2", "--filters.checkpoint_max_bpb=2"),
    ("prepare_data", "--nolanguages", "--noidentify_language"),
    ("prepare_data", "--filters.personal=false", "--filters.mask_pii=false"),
    ("prepare_data", "--mixture.most_epochs=2", "--mixture.max_epochs=2"),
    ("prepare_data", "--recipe=plain", "--recipe=unfiltered"),
    ("self_instruct", "--unjudged", "--keep_unreviewed"),
    ("train_filter", "--labelled=a.jsonl", "--labeled=a.jsonl"),
]


def parse(program, *arguments):
    return flags.parse("Doc.", recipes_of(program), [program, *arguments])


@pytest.mark.parametrize("program, former, now", FORMER)
def test_former_flag_sets_the_current_one_and_warns_once(program, former, now, capsys):
    config = parse(f"experiments.{program}", former)
    (warning,) = capsys.readouterr().err.splitlines()
    for argument in (former, now):  # a flag may be given as --noNAME
        assert argument.partition("=")[0].removeprefix("--no").lstrip("-") in warning
    assert config == parse(f"experiments.{program}", now)
    assert capsys.readouterr().err == ""


def annotation_of(config, flag: str):
    """The type of a flag, which may be in a section."""
    *sections, name = flag.split(".")
    config = functools.reduce(getattr, sections, config)
    return typing.get_type_hints(type(config))[name]


def example(annotation) -> str:
    """A value for a flag of this type that no recipe has."""
    for inner in (annotation, *typing.get_args(annotation)):
        value = {bool: "true", int: "700", float: "0.25", str: "text"}.get(inner)
        if value or typing.get_origin(inner) is typing.Literal:
            return value or typing.get_args(inner)[-1]
    raise AssertionError(f"no example of {annotation}")


def former_arguments(config) -> list[tuple[str, str]]:
    """(former argument, the same one today) for every alias and every former value of a config."""
    found = []
    for former, now in renamed(config).items():
        value = example(annotation_of(config, now))
        found.append((f"--{former}={value}", f"--{now}={value}"))
    for flag, values in renamed_values(config).items():
        found += [(f"--{flag}={former}", f"--{flag}={now}") for former, now in values.items()]
    return found


def check_all_at_once(recipes, arguments, capsys) -> None:
    former = flags.parse("Doc.", recipes, ["program", *(old for old, _ in arguments)])
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == len(arguments), warnings
    for old, new in arguments:
        names = (old.partition("=")[0], new.partition("=")[0])
        assert any(all(name in warning for name in names) for warning in warnings), old
    assert former == flags.parse("Doc.", recipes, ["program", *(new for _, new in arguments)])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("program", PROGRAMS)
def test_former_flags_of_a_program_parse_together(program, capsys):
    recipes = recipes_of(program)
    config = next(iter(recipes.values()))
    check_all_at_once(recipes, former_arguments(config), capsys)
    for former, now in recipes.items():
        if isinstance(now, str):
            assert parse(program, f"--recipe={former}") == parse(program, f"--recipe={now}")
            (warning,) = capsys.readouterr().err.splitlines()
            assert f"--recipe={former}" in warning and f"--recipe={now}" in warning


def test_former_flags_of_all_pages_parse_on_one_command_line(capsys):
    """Makes one config whose sections are the configs of all pages."""
    pages = {
        program.rpartition(".")[2]: next(iter(recipes_of(program).values()))
        for program in PROGRAMS
        if program.startswith("experiments.")
    }
    fields = [(name, type(page), dataclasses.field(default=page)) for name, page in pages.items()]
    everything = dataclasses.make_dataclass("Everything", fields, frozen=True)()
    arguments = former_arguments(everything)
    assert len(arguments) >= 20
    check_all_at_once({"one": everything}, arguments, capsys)
