"""Code-Qwen, its chat model, Math-Qwen-Chat: recipes of sections 4 and 5, runs end to end."""

import contextlib
import dataclasses
import json

import pytest

from experiments import code_chat, code_qwen, math_qwen, plan, sft
from qwen_jax.data import shards
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.pretrained.huggingface import load_pretrained
from qwen_jax.tokenizer.bpe import Tokenizer
from tests.helpers.alignment import config_of, run

# Of HumanEval's form; long enough for a 13-gram.
_TEST = (
    "def has_close(numbers, threshold):\n    for i, first in enumerate(numbers):\n        for j, "
    "second in enumerate(numbers):\n            if i != j and abs(first - second) < threshold:\n"
    "                return True\n    return False\n"
)
_MIT = "Permission is hereby granted, free of charge, to any person\n"


def _function(name: str, number: int) -> str:
    lines = "".join(f"    {name}_{i} = value * {number + i} + {i}\n" for i in range(8))
    return f"def {name}(value):\n{lines}    return {name}_7\n"


@pytest.fixture(scope="module")
def code(folder, tmp_path_factory):
    """Shards of three small repositories, made by the pipeline's recipe for code."""
    for package in ("pyarrow", "py3langid", "matplotlib"):
        pytest.importorskip(package)
    from experiments import prepare_data

    root = tmp_path_factory.mktemp("code")
    words = ["alpha", "beta", "gamma", "delta", "omega", "sigma", "kappa", "theta", "zeta"]
    for number, name in enumerate(("flask", "click", "jinja")):
        repository = root / "repositories" / name
        repository.mkdir(parents=True)
        (repository / "LICENSE").write_text(_MIT)
        for index in range(3):
            word = words[3 * number + index]
            (repository / f"{word}.py").write_text(_function(word, 10 * number + index))
    (root / "repositories/flask/copied.py").write_text(f"import math\n\n\n{_TEST}")
    (root / "repositories/flask/app.js").write_text(
        "".join(f"function part{i}(value) {{ return value + {i}; }}\n" for i in range(9))
    )
    (root / "tests").mkdir()
    (root / "tests/HumanEval.jsonl").write_text(
        json.dumps(
            {
                "task_id": "0",
                "prompt": _TEST[:36],
                "canonical_solution": _TEST[36:],
                "test": "",
                "entry_point": "f",
            }
        )
        + "\n"
    )
    prepare_data.main(
        dataclasses.replace(
            prepare_data.CODE,
            sources=(f"code=code:{root}/repositories",),
            output=str(root / "out"),
            tokenizer=f"{folder}/base",
            near_dedup=False,  # the files are similar on purpose
            filters=prepare_data.Filters(test_sets=f"{root}/tests"),
            mixture=prepare_data.Mixing(weights=("code:javascript=3",)),
            eval_fraction=0.0,
            workers=0,
        )
    )
    return root / "out"


def test_code_of_the_pipeline_has_licenses_and_weights_and_no_benchmark(code):
    import pyarrow.parquet as pq

    kept = [
        row
        for path in sorted(code.glob("*-decontaminat*/kept/*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
    texts = [row for row in kept if row["path"].endswith(".py")]
    assert len(texts) == 9 and {row["license"] for row in texts} == {"MIT"}
    assert {row["group"] for row in texts} == {"code/flask", "code/click", "code/jinja"}
    folder = shards.open_shards(code / "shards/code/train")
    text = Tokenizer.from_file(next(code.glob("shards/code/*.tiktoken"))).decode(
        [int(i) for file in folder.files for i in memoryview(file.read_bytes()).cast("H")]
    )
    assert text.count("function part0") == 3 and text.count("def alpha") == 1
    assert "has_close" not in text
    flask = [text.index(f"def {name}(") for name in ("alpha", "beta", "gamma")]
    assert flask == sorted(flask)
    assert not any(flask[0] < text.index(f"def {name}(") < flask[-1] for name in ("delta", "kappa"))


@pytest.fixture(scope="module")
def continued(folder, code, tmp_path_factory):
    """The run folder of continued pretraining on that code, and what it printed."""
    run_dir = tmp_path_factory.mktemp("continued") / "run"
    config = config_of(code_qwen, folder, run_dir, data={"sources": (f"{code}/shards/code/train",)})
    return run_dir, run(code_qwen, config)


def _losses(text: str) -> list[float]:
    return [
        float(line.split("loss ")[1].split()[0])
        for line in text.splitlines()
        if line.startswith("step") and "held-out" not in line
    ]


def test_code_qwen_learns_in_longer_rows_than_its_base(folder, continued):
    run_dir, shown = continued
    losses = _losses(shown)
    assert losses[-1] < losses[0] - 1
    base, _ = load_pretrained(folder / "base")
    model, _ = load_pretrained(run_dir)
    assert (base.context_length, model.context_length) == (96, 128)
    record = json.loads((run_dir / "config.json").read_text())
    assert record["training_stage"] == "pretrain" and record["init_from"] == f"{folder}/base"


def test_code_qwen_refuses_shards_of_another_vocabulary(folder, tmp_path):
    other = Tokenizer({bytes([byte]): 255 - byte for byte in range(256)})
    from qwen_jax.data.document import Document

    shards.write([Document("a", "def f(): pass\n" * 80)], tmp_path / "other", other)
    config = config_of(
        code_qwen, folder, tmp_path / "run", data={"sources": (f"{tmp_path}/other/train",)}
    )
    with pytest.raises(DataError, match="different tokenizer"):
        run(code_qwen, config)


def test_code_qwen_needs_data_and_a_base():
    with pytest.raises(ConfigError, match="no training data"):
        code_qwen.main(code_qwen.SMOKE)
    data = dataclasses.replace(code_qwen.SMOKE.data, sources=("x",))
    with pytest.raises(ConfigError, match="no model to start from"):
        code_qwen.main(dataclasses.replace(code_qwen.SMOKE, data=data))


@pytest.mark.slow  # two compilations
def test_code_chat_trains_each_stage_from_the_one_before(folder, continued, tmp_path, monkeypatch):
    @contextlib.contextmanager
    def no_page(run_dir, log):
        yield

    monkeypatch.setattr(sft, "report_at_end", no_page)
    train = dataclasses.replace(code_chat.SMOKE.train, num_steps=6)
    first, second = (f"{folder}/{name}.jsonl" for name in ("conversations", "conversations_held"))
    config = dataclasses.replace(
        code_chat.SMOKE,
        init_from=str(continued[0]),
        run_dir=str(tmp_path / "chat"),
        stages=(f"{first}+{second}", second),
        train=train,
    )
    run(code_chat, config)
    records = [json.loads((tmp_path / f"chat/stage-{n}/config.json").read_text()) for n in (1, 2)]
    assert [each["init_from"] for each in records] == [
        str(continued[0]), f"{tmp_path}/chat/stage-1",
    ]  # fmt: skip
    assert records[0]["data"]["conversations"] == [first, second]
    assert records[1]["data"]["conversations"] == [second]
    assert run(code_chat, config).count("nothing to do: 6 of 6 steps are complete") == 2


def test_code_chat_refuses_conversations_outside_of_stages():
    with pytest.raises(ConfigError, match="no stages"):
        code_chat.main(code_chat.SMOKE)
    data = dataclasses.replace(code_chat.SMOKE.data, conversations=("a.jsonl",))
    with pytest.raises(ConfigError, match="set in --stages"):
        code_chat.main(dataclasses.replace(code_chat.SMOKE, stages=("b.jsonl",), data=data))


@pytest.mark.slow  # two compilations
def test_math_qwen_learns(folder, tmp_path):
    config = dataclasses.replace(
        math_qwen.SMOKE,
        init_from=f"{folder}/base",
        run_dir=str(tmp_path / "run"),
        data=sft.SFTData(conversations=(f"{folder}/conversations.jsonl",)),
    )
    losses = _losses(run(sft, config))
    assert losses[-1] < losses[0] - 1


def test_recipes_match_section_4():
    for size, pretraining, tuning in (("7b", 3e-5, 1e-5), ("14b", 6e-5, 2e-6)):
        code, chat = code_qwen.RECIPES[size], code_chat.RECIPES[size]
        assert code.data.context_length == 8192
        tokens = code.train.num_steps * code.train.batch_size * 8192
        assert code.train.num_steps == 21_458 and tokens == pytest.approx(90e9, rel=1e-4)
        for config, rate in ((code, pretraining), (chat, tuning)):
            optimizer = config.optimizer
            assert optimizer.peak_learning_rate == rate and optimizer.schedule == "constant"
            assert optimizer.warmup_steps == round(0.03 * config.train.num_steps)
            assert (optimizer.beta1, optimizer.beta2) == (0.9, 0.95)
            assert (optimizer.epsilon, optimizer.weight_decay) == (1e-8, 0.1)
        assert chat.data.mask == "assistant" and chat.model.dropout == 0.1


def test_recipe_matches_section_5():
    config = math_qwen.RECIPE
    assert (config.data.context_length, config.data.mask) == (1024, "assistant")
    assert (config.train.batch_size, config.train.num_steps) == (128, 50_000)
    assert config.optimizer == dataclasses.replace(sft.RECIPE.optimizer, peak_learning_rate=2e-5)
    assert (config.model.dropout, config.optimizer.clip_norm) == (0.1, 1.0)


@pytest.mark.parametrize(
    ("stage", "model", "length", "batch", "steps", "rate"),
    [
        ("code_qwen", "7b", 8192, 512, 21_458, 3e-5),
        ("code_qwen", "14b", 8192, 512, 21_458, 6e-5),
        ("math_qwen", "14b", 1024, 128, 50_000, 2e-5),
    ],
)
def test_the_planner_plans_the_recipes(stage, model, length, batch, steps, rate):
    found = plan.workload_of(plan.Config(model=model, training_stage=stage))
    assert (found.training_stage, found.model.context_length) == ("pretrain", length)
    assert (found.train.batch_size, found.train.num_steps) == (batch, steps)
    assert found.optimizer.peak_learning_rate == rate
    assert found.model.num_layers == {"7b": 32, "14b": 40}[model]
