"""Ten folders as released, without PyTorch: logits, ids, and the same bytes after a run."""

import dataclasses

import jax
import numpy as np
import pytest

import qwen_jax
from benchmarks.released import checks, folders, inputs
from benchmarks.released.cells import Cell
from benchmarks.released.families import FAMILIES
from qwen_jax.model import transformer
from tests.helpers import numpy_qwen

CELLS = [
    Cell("Qwen-1", "untied"),
    Cell("Qwen-1", "FP16"),
    Cell("Qwen1.5", "BF16"),
    Cell("Qwen1.5", "vocab.json"),
    Cell("Qwen2", "tied"),
    Cell("Qwen2.5", "yarn"),
    Cell("Qwen2.5", "sharded"),
    Cell("Qwen3", "head size"),
    Cell("Qwen3", "yarn"),
    Cell("Qwen3", "tokenizer.json"),
]
SMALL = {"hidden_size": 32, "intermediate_size": 48}
forward = jax.jit(transformer.forward, static_argnames="config")
each_cell = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)


@pytest.fixture(scope="module")
def places(shared, tmp_path_factory):
    """Cell -> its folder, with 600 tokens of text."""
    pytest.importorskip("jinja2", reason="jinja2 is not installed")
    root, ranks = tmp_path_factory.mktemp("released"), folders.read_ranks(shared, 600)
    made = {}
    for cell in CELLS:
        made[cell] = place = checks.Place(cell, root, shared)
        given = {} if place.of_qwen1 else {"ranks": ranks, "changes": SMALL}
        folders.write(place.model, cell.family, cell.kind, shared, form=cell.form, **given)
    return made


@each_cell
def test_load_pretrained_gives_the_logits(places, cell):
    place = places[cell]
    if place.of_qwen1:
        checks.logits(place, forward)
        return
    config, params, tokenizer = checks.load(place)
    tokens = np.random.default_rng(1).integers(0, tokenizer.vocab_size, 24, np.int32)
    expected = numpy_qwen.logits(place.model, tokens)
    assert np.std(expected) > 0.3, "the logits must be far from constant"
    ours = forward(params, tokens[None], config=config)[0]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=checks.TOLERANCE)


@each_cell
def test_load_tokenizer_gives_the_ids(places, cell):
    place = places[cell]
    if place.of_qwen1:
        checks.ids(place)
        return
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    ours, about = qwen_jax.load_tokenizer(place.model), FAMILIES[cell.family]
    theirs = tokenizers.Tokenizer.from_str(_fast(place, about))
    texts = inputs.texts(place.shared)[::5]
    for text, right in zip(texts, theirs.encode_batch(texts), strict=True):
        assert ours.encode(text, allow_special=True) == right.ids, text


def _fast(place, about) -> str:
    """The same tokenizer as tokenizer.json, also where the folder has none."""
    folder = place.output("fast")
    folder.mkdir(parents=True)
    ranks = folders.read_ranks(place.shared, 600)
    folders.write_tokenizer(folder, about, ranks, place.shared, "tokenizer.json")
    return (folder / "tokenizer.json").read_text(encoding="utf-8")


@each_cell
def test_convert_keeps_the_folder_through_a_run(places, cell):
    checks.round_trip(places[cell])


def test_compare_files_names_what_differs(places, tmp_path):
    place = places[CELLS[-1]]
    for name, content in checks.files_of(place.model).items():
        (tmp_path / name).write_bytes(content)
    assert checks.compare_files(place.model, tmp_path) == []
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"vocab_size": ', '"vocab_size": 1'))
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "new.json").write_text("{}")
    assert checks.compare_files(place.model, tmp_path) == [
        "config.json: ['vocab_size']", "generation_config.json is missing", "new.json is new",
    ]  # fmt: skip
    found = checks.compare_files(place.model, tmp_path, ("vocab_size",))
    assert found == ["generation_config.json is missing", "new.json is new"]


def test_tensors_of_is_what_the_config_says(places):
    shapes = {
        name: array.shape for name, array in checks.tensors_of(places[CELLS[7]].model).items()
    }
    heads = {**folders.KINDS["head size"], **SMALL}["head_dim"]
    assert shapes["model.layers.1.self_attn.q_proj.weight"] == (4 * heads, 32)
    assert shapes["model.layers.1.self_attn.k_norm.weight"] == (heads,)
    config = dataclasses.asdict(qwen_jax.load_pretrained(places[CELLS[7]].model)[0])
    assert config["num_kv_heads"] == 2 and config["head_size"] == heads
