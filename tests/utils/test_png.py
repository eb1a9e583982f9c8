"""Plots of names in any language."""

import warnings

import pytest
from matplotlib.figure import Figure

from qwen_jax.utils import png as module
from qwen_jax.utils.png import png


def draw(title: str) -> bytes:
    figure = Figure(figsize=(2, 1))
    figure.add_subplot().set_title(title)
    return png(figure, dpi=50)


def test_png_of_chinese_names_warns_of_nothing_and_is_the_same_twice():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = draw("手册 x")
    assert first.startswith(b"\x89PNG") and first == draw("手册 x") != draw("x")


def test_png_draws_chinese_characters_with_an_installed_font():
    if not module._installed():
        pytest.skip("no font with Chinese characters is installed")
    figure = Figure(figsize=(2, 1))
    figure.add_subplot().set_yticks([0, 1], ["手册", "手册"])
    other = Figure(figsize=(2, 1))
    other.add_subplot().set_yticks([0, 1], ["日本", "日本"])
    assert png(figure, dpi=50) != png(other, dpi=50)  # boxes would be equal
