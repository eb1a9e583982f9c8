"""Extracts text from HTML. Report: 2.1.

`article` and `article_fast` find the main text of a web page. `page` keeps all text, for pages such
as reference documentation laid out in tables.
"""

import re

from qwen_jax.errors import DataError

_DROPPED = {"head", "script", "style", "noscript", "template", "svg"}
_BLOCKS = {
    "address",
    "article",
    "aside",
    "blockquote",
    "body",
    "dd",
    "div",
    "dl",
    "dt",
    "figure",
    "footer",
    "form",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "header",
    "hr",
    "li",
    "main",
    "nav",
    "ol",
    "p",
    "pre",
    "section",
    "table",
    "tr",
    "ul",
}
_INDENTED = {"blockquote": 4, "dd": 4, "ul": 2, "ol": 2}


def article(html: str) -> str:
    """Returns the main text of a web page without menus, banners and footers; "" if it has none.

    Raises:
      DataError: trafilatura is not installed.
    """
    try:
        import trafilatura
    except ImportError as error:
        raise DataError(
            "trafilatura is not installed.", "HTML source", "pip install 'qwen_jax[data]'."
        ) from error
    return trafilatura.extract(html, include_comments=False) or ""


def article_fast(html: str) -> str:
    """Returns the main text like `article`, ten times as fast.

    Lists directly below the <body> element are mistaken for menus and dropped.

    Raises:
      DataError: resiliparse is not installed.
    """
    try:
        from resiliparse.extract.html2text import extract_plain_text
    except ImportError as error:
        raise DataError(
            "resiliparse is not installed.", "HTML source", "pip install 'qwen_jax[data]'."
        ) from error
    return extract_plain_text(
        html,
        main_content=True,
        alt_texts=False,
        links=False,
        form_fields=False,
        noscript=False,
        comments=False,
    )


def page(html: str) -> str:
    """Returns all text of a page, with line breaks as in a browser and indented definitions.

    Raises:
      DataError: lxml is not installed, or elements are nested more than 2,048 levels deep.
    """
    try:
        import lxml.etree
        import lxml.html
    except ImportError as error:
        raise DataError(
            "lxml is not installed.", "HTML source", "pip install 'qwen_jax[data]'."
        ) from error
    try:
        parser = lxml.html.HTMLParser(huge_tree=True)
        root = lxml.html.document_fromstring(html, parser=parser)
    except lxml.etree.ParserError:  # an empty page
        return ""
    if any("depth" in entry.message.lower() for entry in parser.error_log):
        raise DataError(
            "elements are nested deeper than the parser's limit of 2,048.",
            "HTML source",
            "exclude this page: it is malformed or malicious.",
        )
    lines = _Lines()
    # Events instead of recursion: a page may be nested deeper than Python's stack allows.
    skipped = None
    for event, element in lxml.etree.iterwalk(root, events=("start", "end", "comment", "pi")):
        tag = element.tag if isinstance(element.tag, str) else ""  # comments have no tag
        if skipped is None and event == "start":
            if tag in _DROPPED or (tag in ("td", "th") and not element.text_content().strip()):
                skipped = element
            else:
                lines.start(tag)
                lines.add(element.text)
        elif event != "start":
            if skipped is element:
                skipped = None
            elif skipped is None and event == "end":
                lines.end(tag)
            if skipped is None:
                lines.add(element.tail)
    return lines.text()


class _Lines:
    def __init__(self):
        self._lines, self._line, self._indent, self._preformatted = [], "", 0, 0

    def start(self, tag: str) -> None:
        if tag in _BLOCKS or tag == "br":
            self._break(blank=tag == "br")
        elif tag in ("td", "th") and self._line:
            self._line += " "
        self._indent += _INDENTED.get(tag, 0)
        self._preformatted += tag == "pre"

    def end(self, tag: str) -> None:
        if tag in _BLOCKS:
            self._break()
        self._indent -= _INDENTED.get(tag, 0)
        self._preformatted -= tag == "pre"
        if tag in ("p", "dl", "table", "pre", "hr"):
            self._lines.append("")

    def add(self, text: str | None) -> None:
        if not text:
            return
        if self._preformatted:
            first, *rest = text.split("\n")
            self._line += first
            for line in rest:
                self._break(blank=True)
                self._line += line
            return
        text = re.sub(
            r"[ \t\r\n\f]+", " ", text
        )  # keeps the no-break space, which pages use for layout
        self._line += text if self._line else text.lstrip(" ")

    def _break(self, blank: bool = False) -> None:
        line = self._line.replace("\xa0", " ").rstrip()
        if line or blank:
            self._lines.append(" " * self._indent + line if line else "")
        self._line = ""

    def text(self) -> str:
        self._break()
        return re.sub(r"\n{3,}", "\n\n", "\n".join(self._lines)).strip("\n") + "\n"
