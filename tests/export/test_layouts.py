"""The tables of the released layouts: complete, reversible, and of the released sizes."""

import math

import jax
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.export.layouts import LAYOUTS, QWEN, QWEN2, Weight
from qwen_jax.model.spec import param_specs


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_weight_of_the_model_is_in_the_table_exactly_once(layout):
    paths = [jax.tree_util.keystr(path).lstrip(".")
             for path, _ in jax.tree_util.tree_leaves_with_path(param_specs(sizes.TINY))]
    assert sorted(weight.path for weight in layout.weights) == sorted(paths)


@pytest.mark.parametrize("pattern, shape, released", [
    ("D N H -> (N H) D", (5, 2, 3), (6, 5)),
    ("N H D -> D (N H)", (2, 3, 5), (5, 6)),
    ("N H -> (N H)", (2, 3), (6,)),
    ("D F -> F D", (5, 7), (7, 5)),
    ("V D -> V D", (7, 5), (7, 5)),
])
def test_a_pattern_is_the_same_map_in_both_directions(pattern, shape, released):
    weight = Weight("", "", pattern)
    array = np.arange(math.prod(shape)).reshape(shape)
    assert weight.to_released(array).shape == weight.released_shape(shape) == released
    assert np.array_equal(weight.from_released(weight.to_released(array), shape), array)


def test_a_released_matrix_maps_inputs_to_outputs_as_our_einsum_does():
    rng = np.random.default_rng(0)
    x, ours = rng.normal(size=5), rng.normal(size=(5, 2, 3))
    released = Weight("", "", "D N H -> (N H) D").to_released(ours)
    np.testing.assert_allclose((released @ x).reshape(2, 3), np.einsum("D,DNH->NH", x, ours))


@pytest.mark.parametrize("config, total", [
    (sizes.QWEN_1_8B, 1_836_828_672), (sizes.QWEN_7B, 7_721_324_544),
    (sizes.QWEN_14B, 14_167_290_880)], ids=["1.8b", "7b", "14b"])
def test_the_tensors_of_a_released_size_add_up_to_its_parameters(config, total):
    for layout in (QWEN, QWEN2):
        groups = list(layout.groups(param_specs(config)))
        assert sum(math.prod(group.shape()) * len(group.names()) for group in groups) == total


def test_the_7b_names_and_shapes_are_those_of_the_released_files():
    shapes = {name: group.shape() for group in QWEN.groups(param_specs(sizes.QWEN_7B))
              for name in group.names()}
    assert len(shapes) == 32 * 8 + 3
    assert shapes["transformer.wte.weight"] == shapes["lm_head.weight"] == (151936, 4096)
    assert shapes["transformer.h.31.attn.c_attn.weight"] == (12288, 4096)
    assert shapes["transformer.h.0.attn.c_attn.bias"] == (12288,)
    assert shapes["transformer.h.0.mlp.w1.weight"] == (11008, 4096)
    assert shapes["transformer.h.0.mlp.c_proj.weight"] == (4096, 11008)
    assert shapes["transformer.ln_f.weight"] == (4096,)
