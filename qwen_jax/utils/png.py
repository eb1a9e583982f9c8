"""Draws a Matplotlib figure as PNG, with fonts for the names of users' data."""

import functools
import io
import warnings

# Matplotlib's own font has no Chinese, Japanese or Korean; the first of these that is installed is
# used for what it lacks.
_FALLBACKS = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "SimHei",
    "Noto Sans CJK JP",
    "Noto Serif CJK SC",
    "Noto Serif CJK JP",
)


def png(figure, *, dpi: int, **settings) -> bytes:
    """Returns the figure as PNG; the same figure gives the same bytes.

    Args:
      figure: matplotlib.figure.Figure.
      dpi: pixels per inch.
      settings: further settings of Figure.savefig.
    """
    from matplotlib.text import Text  # an extra, slow to import

    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        if _installed():
            figure.draw_without_rendering()  # makes the labels of ticks
            # A list of families falls back from one to the next; "sans-serif" is only one of them.
            for text in figure.findobj(Text):
                text.set_fontfamily(["DejaVu Sans", *_installed()])
        metadata = {"Software": None}
        figure.savefig(file, format="png", dpi=dpi, metadata=metadata, **settings)
    return file.getvalue()


@functools.cache
def _installed() -> tuple[str, ...]:
    from matplotlib.font_manager import fontManager

    names = set(fontManager.get_font_names())
    return tuple(name for name in _FALLBACKS if name in names)[:1]
