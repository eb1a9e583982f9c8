"""Data of fine-tuning: held-out conversations, and their evaluation."""

import dataclasses
import json
import math
import random
import types

import pytest

from experiments import sft
from qwen_jax.align import train_sft
from qwen_jax.align.train_sft import SFTData, read_conversation_data, with_eval_fraction
from qwen_jax.errors import ConfigError
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.train.supervised_examples import train_on_examples
from tests.helpers.tiny_checkpoint import TOKENIZER


def test_held_out_counts_only_the_bytes_of_the_answers_text(tmp_path):
    row = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "Yes."}]}
    path = tmp_path / "held.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    config = types.SimpleNamespace(
        model=types.SimpleNamespace(context_length=128),
        data=types.SimpleNamespace(mask="assistant", packed=True, variables={}),
        train=types.SimpleNamespace(eval_batches=None),
    )
    # "Yes" and "." are tokens, so an answer has three with <|im_end|>.
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"Ye": 256, b"Yes": 257}
    tokenizer = Tokenizer(ranks)
    examples, _ = train_sft._read((str(path),), config, tokenizer, lambda line: None)  # type: ignore[arg-type]
    text = train_sft._held_out("held", examples, config, tokenizer, lambda line: None)  # type: ignore[arg-type]
    assert text.bytes_per_token == 4 / 3
    # A loss that gave 2.44 bits per byte when <|im_end|> counted as ten bytes of text.
    loss = 2.435 * math.log(2) * 14 / 3
    assert loss / math.log(2) / text.bytes_per_token == pytest.approx(8.52, abs=0.01)


def config_of(paths, **data):
    config = types.SimpleNamespace(
        model=types.SimpleNamespace(context_length=128),
        data=SFTData(conversations=tuple(map(str, paths)), **data),
        train=types.SimpleNamespace(eval_batches=None),
        run_dir="none",
        restart_from_scratch=False,
    )
    return config


def write(path, questions):
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": f"{q}!"}]}
        for q in questions
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def texts(examples):
    return {bytes(int(token) for token in e.tokens if token < 256) for e in examples}


def read(config, tokenizer=TOKENIZER):
    lines = []
    return read_conversation_data(config, tokenizer, lines.append), lines  # type: ignore[arg-type]


def test_held_out_conversations_depend_only_on_their_content(tmp_path):
    questions = [f"question {i}" for i in range(300)]
    first, lines = read(config_of([write(tmp_path / "a.jsonl", questions)], eval_fraction=0.1))
    assert 15 < len(first.held_out) < 45 and len(first.held_out) + len(first.examples) == 300
    assert any(f"held out: {len(first.held_out)} of 300" in line for line in lines)
    train_sft._held_out("held_out", first.held_out, config_of([]), TOKENIZER, lines.append)  # type: ignore[arg-type]
    packed = [line.partition(" of 128 tokens")[0] for line in lines if "% full" in line]
    assert [line.rpartition(": ")[0] for line in packed] == ["training rows", "held_out rows"]
    random.Random(0).shuffle(questions)
    files = [
        write(tmp_path / "b.jsonl", questions[:100]),
        write(tmp_path / "c.jsonl", questions[100:] * 2),
    ]
    other, _ = read(config_of(files, eval_fraction=0.1))
    assert texts(other.held_out) == texts(first.held_out)
    assert not texts(other.held_out) & texts(other.examples)


@pytest.mark.parametrize("number, held_out", [(1, 0), (2, 1), (20, 1)])
def test_held_out_part_of_a_small_file_has_a_conversation_if_there_are_two(
    tmp_path, number, held_out
):
    config = config_of([write(tmp_path / "a.jsonl", [f"q {i}" for i in range(number)])])
    data, _ = read(with_eval_fraction_of(config))
    assert len(data.held_out) == held_out and len(data.examples) == number - held_out


def with_eval_fraction_of(config, **changes):
    """with_eval_fraction on a config that is a dataclass, as experiments.sft has."""
    found = with_eval_fraction(
        dataclasses.replace(sft.SMOKE, data=config.data, run_dir=str(config.run_dir), **changes)
    )
    config.data = found.data
    return config


def test_eval_fraction_is_off_with_zero_and_with_files(tmp_path):
    path = write(tmp_path / "a.jsonl", [f"q {i}" for i in range(50)])
    data, lines = read(with_eval_fraction_of(config_of([path], eval_fraction=0.0)))
    assert len(data.examples) == 50 and not any("held out" in line for line in lines)
    config = with_eval_fraction_of(config_of([path], eval_conversations=(str(path),)))
    assert config.data.eval_fraction == 0.0
    with pytest.raises(ConfigError, match="remove --data.eval_fraction"):
        SFTData(eval_fraction=0.1, eval_conversations=("b",))


def test_eval_fraction_of_a_run_that_an_earlier_version_began_is_zero(tmp_path):
    (tmp_path / "checkpoints/5").mkdir(parents=True)
    record = tmp_path / "config.json"
    for data, expected in (({}, 0.0), ({"eval_fraction": 0.01}, 0.01)):
        record.write_text(json.dumps({"data": data}))
        config = config_of(["a"])
        config.run_dir = tmp_path
        assert with_eval_fraction_of(config).data.eval_fraction == expected
    record.write_text("{}")
    config = config_of(["a"])
    config.run_dir = tmp_path
    assert with_eval_fraction_of(config, restart_from_scratch=True).data.eval_fraction == 0.01


@pytest.mark.parametrize("rows, warns", [(31, True), (32, False)])
def test_train_on_examples_warns_of_many_epochs(rows, warns):
    """40 steps of 8 examples."""

    class Stop(Exception):
        pass

    lines = []

    def log(line):
        lines.append(line)
        raise Stop

    class Rows:
        def __len__(self):
            return rows

        @property
        def padding(self):
            raise Stop

    with pytest.raises(Stop):
        train_on_examples(Rows(), sft.SMOKE, log=log)
    assert [line.startswith("warning: 10.3 epochs.") for line in lines] == [True] * warns
