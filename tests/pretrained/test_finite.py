"""Weights with NaN or infinity are refused wherever they are loaded or written."""

import jax
import ml_dtypes
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.config import MeshConfig, ModelConfig
from qwen_jax.errors import CheckpointError
from qwen_jax.model.spec import param_specs
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.pretrained.finite import FiniteCheck, is_finite
from qwen_jax.pretrained.from_run import save_run
from qwen_jax.pretrained.huggingface import (
    convert_pretrained,
    load_pretrained,
    open_pretrained,
    save_pretrained,
)
from qwen_jax.pretrained.load import load_model
from qwen_jax.pretrained.start import scoring_weights_of, weights_of
from tests.helpers.tiny_checkpoint import CONFIG, TOKENIZER

TINY = sizes.TINY


def weights(config: ModelConfig, dtype="float32", **bad: float):
    """Random weights, whose layer 1 of wq and first row of the embedding have `bad` values."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda spec: rng.normal(size=spec.shape, scale=0.1).astype(dtype), param_specs(config)
    )
    if "wq" in bad:
        params.layers.attention.wq[1, 2, 0, 1] = bad["wq"]
    if "embed" in bad:
        params.embed[0, 3] = bad["embed"]
    return jax.tree.map(jax.device_put, params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_is_finite_finds_every_kind_of_value(dtype):
    dtype = np.dtype(dtype)
    array = np.zeros((3, 700, 200), dtype)
    largest = ml_dtypes.finfo(dtype).max
    array[0, 0, :4] = [largest, -largest, ml_dtypes.finfo(dtype).smallest_subnormal, -0.0]
    assert is_finite(array) and is_finite(array[:, ::2, ::3]) and is_finite(array[:0].reshape(0, 7))
    for value in (np.nan, -np.nan, np.inf, -np.inf):
        for index in ((0, 0, 0), (2, 699, 199), (1, 350, 7)):
            bad = array.copy()
            bad[index] = value
            assert not is_finite(bad), (value, index)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A released folder and a run folder with bad weights."""
    root = tmp_path_factory.mktemp("bad")
    bad = weights(CONFIG, wq=np.nan, embed=np.inf)
    save_pretrained(root / "released", CONFIG, bad, tokenizer=TOKENIZER, allow_nonfinite=True)
    save_run(root / "run", CONFIG, bad, tokenizer=TOKENIZER)
    return root


NAMES = r"NaN or infinity: embed, layers.attention.wq\[1\]\."


@pytest.mark.parametrize("name", ["released", "run"])
def test_load_pretrained_refuses_weights_that_are_not_finite(folders, name):
    for dtype in (None, "bfloat16"):
        with pytest.raises(CheckpointError, match=NAMES) as caught:
            load_pretrained(folders / name, param_dtype=dtype)
        assert caught.value.where == str(folders / name)
    with pytest.raises(CheckpointError, match=r"embed, layers.attention.wq\[1\]"):
        load_pretrained(folders / name, mesh=make_mesh(MeshConfig(fsdp=4, data=2)))
    with pytest.raises(CheckpointError, match="--allow_nonfinite"):
        load_model(str(folders / name))
    _, params, _ = load_model(str(folders / name), allow_nonfinite=True)
    assert np.isnan(params.layers.attention.wq[1]).sum() == 1
    assert np.isinf(params.embed[0, 3])


@pytest.mark.parametrize("name", ["released", "run"])
@pytest.mark.parametrize("layout", ["qwen", "qwen2"])
def test_convert_pretrained_refuses_weights_that_are_not_finite(folders, tmp_path, name, layout):
    source = open_pretrained(folders / name)
    with pytest.raises(CheckpointError, match=NAMES):
        convert_pretrained(source, tmp_path / "out", layout=layout)
    assert not list(tmp_path.iterdir())  # no partial output
    convert_pretrained(source, tmp_path / "out", layout=layout, allow_nonfinite=True)
    _, params = load_pretrained(tmp_path / "out", allow_nonfinite=True)
    assert np.isnan(params.layers.attention.wq[1]).sum() == 1


def test_save_pretrained_refuses_weights_that_are_not_finite(tmp_path):
    with pytest.raises(CheckpointError, match=r"wq\[1\]"):
        save_pretrained(tmp_path / "out", TINY, weights(TINY, "bfloat16", wq=-np.inf))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["released", "run"])
def test_weights_of_refuses_to_train_from_them(folders, name):
    from qwen_jax.model.spec import abstract
    from qwen_jax.model.value_head import scoring_specs

    def placed(specs):
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
            abstract(specs(CONFIG), "float32"),
        )

    with pytest.raises(CheckpointError, match=NAMES):
        weights_of(folders / name)(placed(param_specs))
    with pytest.raises(CheckpointError, match=r"trunk.embed, trunk.layers.attention.wq\[1\]"):
        scoring_weights_of(str(folders / name), seed=0)(placed(scoring_specs))


def test_finite_check_shortens_a_long_list():
    finite = FiniteCheck("a folder")
    read = finite.watch(lambda path, index: np.full((40, 2), np.nan, np.float32))
    read("layers.attention.wq", (slice(3, 43), slice(0, 2)))
    with pytest.raises(CheckpointError, match=r"wq\[3\], .*, layers.attention.wq\[7\] and 35 more"):
        finite.check()
