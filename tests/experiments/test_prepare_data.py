"""The data experiment: its smoke, its recipes, and what it refuses."""

import dataclasses
import json

import pytest

pytest.importorskip("daft")
pytest.importorskip("py3langid")

from experiments import flags, prepare_data
from qwen_jax.data import shards
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.tokenizer.bpe import Tokenizer


def test_smoke(tmp_path, capsys):
    prepare_data.main(dataclasses.replace(prepare_data.SMOKE, output=str(tmp_path / "out"),
                                          eval_fraction=0.2))
    made = shards.open_shards(tmp_path / "out/shards/data/train")
    assert made.documents > 20 and made.vocab_size > 600
    counts = json.loads((tmp_path / "out/counts.json").read_text())
    assert list(counts)[0] == "01-read" and counts["02-language"]["counted"]["language"]
    assert (tmp_path / "out/review.html").exists() and (tmp_path / "out/mixture.png").exists()
    assert "experiments.pretrain --data.sources=" in capsys.readouterr().out


def test_plain_keeps_everything(tmp_path):
    (tmp_path / "in").mkdir()
    for name in "abc":
        (tmp_path / f"in/{name}.txt").write_text("the same short text " * 50)
    Tokenizer({bytes([i]): i for i in range(256)}).save(tmp_path / "bytes.tiktoken")
    _, config = flags.parse("", {"plain": prepare_data.PLAIN}, [
        "x", f"--sources=mine={tmp_path}/in", f"--output={tmp_path}/out", "--workers=0",
        f"--tokenizer={tmp_path}/bytes.tiktoken", "--eval_fraction=0"])
    prepare_data.main(config)
    assert shards.open_shards(tmp_path / "out/shards/mine/train").documents == 3


def test_nothing_left_says_so(tmp_path):
    (tmp_path / "a.txt").write_text("too short")
    config = dataclasses.replace(prepare_data.RECIPE, sources=(str(tmp_path / "a.txt"),),
                                 output=str(tmp_path / "out"), workers=0)
    with pytest.raises(DataError, match="nothing is left"):
        prepare_data.main(config)


@pytest.mark.parametrize("changes, message", [
    ({"sources": ()}, "nothing to read"), ({"tokenizer": "a", "base": "b"}, "not grown"),
    ({"filters": prepare_data.Filters(perplexity=("en=m.npz",))}, "vocabulary that is there")])
def test_refuses(changes, message):
    config = dataclasses.replace(prepare_data.SMOKE, **changes)
    with pytest.raises(ConfigError, match=message):
        prepare_data.check(config)
