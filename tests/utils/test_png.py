"""Plots of names in any language."""

import warnings

from matplotlib.figure import Figure

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
