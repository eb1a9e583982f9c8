"""The linear filter: accuracy, deterministic training, threshold, stage and command."""

import dataclasses
import json
import random
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from experiments import train_filter
from qwen_jax.corpus.filters.linear import (
    FilterSettings,
    LinearFilter,
    LinearFilterStage,
    features,
    threshold_for,
    train,
)
from qwen_jax.errors import ConfigError, DataError

SETTINGS = FilterSettings(bits=14, epochs=5)


def labeled(number, seed=0):
    """Sentences about the sea or about money, in English and Chinese, with stop words."""
    rng = random.Random(seed)
    sea = "ship wave tide harbour 海浪 灯塔 渔船".split()
    money = "bank rate loan share 银行 利率 股票".split()
    other = "the of and a 的 了 是".split()
    rows = []
    for i in range(number):
        words = [
            rng.choice(other if rng.random() < 0.4 else sea if i % 2 else money)
            for _ in range(rng.randrange(4, 20))
        ]
        rows.append((" ".join(words), bool(i % 2)))
    return rows


def fit(rows, settings=SETTINGS):
    texts, labels = zip(*rows, strict=True)
    return train(
        texts[100:],
        labels[100:],
        label="sea",
        held_out=(texts[:100], labels[:100]),
        settings=settings,
    )


def test_train_is_accurate_and_deterministic_and_saved(tmp_path):
    rows = labeled(400)
    model = fit(rows)
    fresh = labeled(200, seed=1)
    marked = [model.score(text) >= model.threshold for text, _ in fresh]
    assert np.mean([m == label for m, (_, label) in zip(marked, fresh, strict=True)]) > 0.95
    model.save(tmp_path / "m.npz")
    again = LinearFilter.load(tmp_path / "m.npz")
    assert again.settings == model.settings and again.threshold == model.threshold
    assert [again.score(text) for text, _ in fresh] == [model.score(text) for text, _ in fresh]
    assert np.array_equal(fit(rows).weights, model.weights)


def test_features_do_not_depend_on_the_process():
    text = "The harbour, 灯塔在海边。 42!"
    code = (
        f"from qwen_jax.corpus.filters.linear import features; print(features({text!r}).tolist())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path)},
    )
    assert json.loads(run.stdout) == features(text).tolist()
    assert len(features("")) == 0
    assert set(features("海边")) < set(features("在海边。"))


def test_threshold_for_is_the_lowest_with_the_precision():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores = rng.integers(0, 20, 60) / 20
        labels = rng.random(60) < scores
        threshold = threshold_for(scores, labels, precision=0.75)
        assert labels[scores >= threshold].mean() >= 0.75
        lower = [t for t in np.unique(scores) if t < threshold]
        assert all(labels[scores >= t].mean() < 0.75 for t in lower)
    with pytest.raises(ConfigError, match="lower the precision"):
        threshold_for(np.asarray([0.9, 0.1]), np.asarray([False, True]), precision=0.9)


def test_train_needs_both_labels():
    with pytest.raises(DataError, match="all held-out labels are the same"):
        train(["a", "b"], [True, False], label="x", held_out=(["c"], [True]), settings=SETTINGS)


def test_linear_filter_stage_rejects_and_writes_scores(tmp_path):
    fit(labeled(400)).save(tmp_path / "m.npz")
    table = pa.table(
        {
            "text": ["ship wave tide 海浪", "bank loan 银行", "bank = loan()"],
            "kind": ["web", "web", "code"],
        }
    )
    keep = LinearFilterStage(str(tmp_path / "m.npz"), "sea", keep_marked=True)
    marked = keep(table)
    assert marked["rejected_by"].to_pylist() == [None, "sea", None]
    scores = marked["score_sea"].to_pylist()
    assert scores[0] > 0.5 > scores[1] and scores[2] is None
    drop = dataclasses.replace(keep, keep_marked=False)
    assert drop(table)["rejected_by"].to_pylist() == ["sea", None, None]


def test_train_filter_command(tmp_path, capsys):
    file = tmp_path / "labels.jsonl"
    file.write_text(
        "".join(
            json.dumps({"text": text, "label": "sea" if label else "money"}) + "\n"
            for text, label in labeled(400)
        )
    )
    config = dataclasses.replace(
        train_filter.SMOKE,
        labeled=(str(file),),
        positive="sea",
        output=str(tmp_path / "out" / "m.npz"),
    )
    train_filter.main(config)
    assert "precision 0.9" in (out := capsys.readouterr().out) or "precision 1.0" in out
    assert LinearFilter.load(config.output).label == "sea"
    with pytest.raises(DataError, match="--positive to one of: money, sea"):
        train_filter.main(dataclasses.replace(config, positive="moon"))
    file.write_text('{"text": "a", "label": "sea"}\n{"text": "a", "label": "money"}\n')
    with pytest.raises(DataError, match="two labels"):
        train_filter.main(config)
