"""Every flag of every program with hostile values: accepted as it is, or refused by name."""

import functools
import math

import pytest

from qwen_jax.cli import flags
from qwen_jax.errors import ConfigError
from qwen_jax.train.run_folder import flatten
from tests.helpers.flag_values import HARD_VALUES, flags_of, meaning
from tests.helpers.programs import PROGRAMS, recipes_of

REFUSED = [
    ("pretrain", "train.seed=-1"),
    ("pretrain", "train.seed=4294967296"),
    ("pretrain", "train.z_loss=-1"),
    ("pretrain", "train.z_loss=nan"),
    ("pretrain", "train.num_steps=1000000000000"),
    ("pretrain", "train.device_memory_gib=0"),
    ("pretrain", "train.trace_steps=0,5"),
    ("pretrain", "init_from="),
    ("pretrain", "run_dir="),
    ("pretrain", "model.num_layers=1000000000"),
    ("pretrain", "model.extension.windows="),
    ("pretrain", "model.norm_epsilon=1e-300"),
    ("pretrain", "model.rope_base=1e300"),  # infinite in float32
    ("pretrain", "optimizer.peak_learning_rate=inf"),
    ("pretrain", "optimizer.peak_learning_rate=-3e-4"),
    ("pretrain", "optimizer.beta1=1"),
    ("pretrain", "optimizer.beta2=0.99999999999"),  # 1 in float32
    ("pretrain", "optimizer.clip_norm=0"),
    ("pretrain", "optimizer.weight_decay=nan"),
    ("pretrain", "data.sources=a,,b"),
    ("pretrain", "data.tokenizer="),
    ("sft", "data.conversations=a.jsonl,"),
    ("sft", "preview=-1"),
    ("sft", "lora.alpha=inf"),
    ("dpo", "beta=0"),
    ("dpo", "data.epochs=nan"),
    ("ppo", "value_optimizer.beta1=-1"),
    ("ppo", "ppo.kl_coefficient=-0.1"),
    ("ppo", "ppo.top_p=0"),
    ("ppo", "ppo.value_warmup_steps=-1"),
    ("ppo", "ppo.pretrain_ratio=1e30"),
    ("ppo", "data.pretrain.tokenizer="),
    ("grpo", "grpo.num_generations=1"),
    ("grpo", "grpo.beta=nan"),
    ("grpo", "grpo.epsilon=0"),
    ("grpo", "reward_functions=a:b,"),
    ("chat", "temperature=nan"),
    ("chat", "top_k=0"),
    ("chat", "tensor=0"),
    ("generate", "settings.seed=-1"),
    ("generate", "max_num_seqs=0"),
    ("serve", "port=65536"),
    ("serve", "grace=inf"),
    ("serve", "memory_gib=-1"),
    ("long_context", "multiples=0"),
    ("plan", "micro_batches=0"),
    ("prepare_data", "seed=-1"),
    ("prepare_data", "eval_fraction=1"),
    ("prepare_data", "shard_tokens=0"),
    ("prepare_data", "workers=-1"),
    ("prepare_data", "read.page_seconds=0"),
    ("prepare_data", "language.threshold=nan"),
    ("prepare_data", "minhash.rows=0"),
    ("prepare_data", "filters.checkpoint_max_bpb=nan"),
    ("prepare_data", "vocabulary.num_new=-5"),
    ("tag_prompts", "balance=2"),
    ("train_filter", "held_out=0"),
    ("train_filter", "train.bits=64"),
    ("self_instruct", "rules.novelty=0"),
    ("quickstart", "align.sft_rate=nan"),
]
ACCEPTED = [  # (program, flag, value): zero and none where they have a meaning
    ("pretrain", "train.z_loss=0", 0.0),
    ("pretrain", "train.z_loss=none", None),
    ("pretrain", "train.eval_every=None", None),
    ("pretrain", "train.trace_steps=", ()),
    ("pretrain", "optimizer.weight_decay=0", 0.0),
    ("pretrain", "optimizer.beta1=0", 0.0),
    ("pretrain", "init_from=none", None),
    ("chat", "temperature=0", 0.0),
    ("chat", "system=", ""),
    ("generate", "prompt=", ""),
    ("ppo", "ppo.kl_coefficient=0", 0.0),
    ("grpo", "grpo.beta=0", 0.0),
    ("prepare_data", "workers=0", 0),
    ("prepare_data", "exact_dedup=", ()),
    ("prepare_data", "filters.checkpoint_max_bpb=inf", math.inf),
    ("serve", "port=0", 0),
]


def parse(program, *arguments):
    return flags.parse("Doc.", recipes_of(f"experiments.{program}"), ["prog", *arguments])[1]


@pytest.mark.parametrize("program, argument", REFUSED)
def test_parse_refuses_a_value_out_of_range_by_its_flag(program, argument):
    name = argument.partition("=")[0]
    with pytest.raises(ConfigError) as caught:
        parse(program, f"--{argument}")
    assert caught.value.where in (f"--{name}", name), caught.value


@pytest.mark.parametrize("program, argument, value", ACCEPTED)
def test_parse_accepts_values_with_a_meaning(program, argument, value):
    found = flatten(parse(program, f"--{argument}"))[argument.partition("=")[0]]
    assert found == (list(value) if isinstance(value, tuple) else value)


@pytest.fixture
def compilations():
    """A list that receives an entry for each program that JAX compiles."""
    from jax import monitoring

    found: list[str] = []

    def listen(event: str, *rest, **more) -> None:
        if "compile" in event:
            found.append(event)

    monitoring.register_event_duration_secs_listener(listen)
    yield found
    monitoring.unregister_event_duration_listener(listen)


@functools.cache
def programs_of_fields() -> dict[tuple[type, str], str]:
    """Returns the first program that has a field of a section: most sections are in several."""
    found: dict[tuple[type, str], str] = {}
    for program in PROGRAMS:
        for flag in flags_of(next(iter(recipes_of(program).values()))):
            found.setdefault((flag.owner, flag.field), program)
    return found


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_parse_takes_any_value_of_any_flag_or_names_it(program, every, compilations):
    recipes = recipes_of(program)
    recipe = next(iter(recipes.values()))
    old, first = flatten(recipe), programs_of_fields()
    for flag in flags_of(recipe):
        for text in HARD_VALUES if every or first[flag.owner, flag.field] == program else ("-1",):
            argument = f"--{flag.name}={text}"
            try:
                config = flags.parse("Doc.", recipes, ["prog", argument])[1]
            except ConfigError as error:
                assert flag.name in str(error), (argument, error)
                assert len(str(error)) < 1500, argument
                continue
            wanted = meaning(text, flag.annotation)
            assert flatten(config) == old | {flag.name: wanted}, argument
            numbers = wanted if isinstance(wanted, list) else [wanted]
            assert not any(isinstance(x, float) and math.isnan(x) for x in numbers), argument
    assert not compilations


def test_help_shows_ranges(capsys):
    with pytest.raises(SystemExit):
        parse("pretrain", "--help")
    text = capsys.readouterr().out
    assert "residual branch; at least 0 and below 1" in text
    assert "fraction of the peak; from 0 to 1" in text


def test_programs_check_every_section():
    for program in PROGRAMS:
        if not program.startswith("experiments."):
            continue
        for recipe in recipes_of(program).values():
            if not isinstance(recipe, str):
                for flag in flags_of(recipe):
                    assert hasattr(flag.owner, "_where"), (program, flag)
