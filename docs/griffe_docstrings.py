"""Prepares docstrings for the API pages: they are written for a terminal, not as Markdown."""

import ast
import re
import textwrap

import griffe

_SECTION = re.compile(r"^(Args|Attributes|Example|Examples|Raises|Returns|Yields):$")
_NAMES = re.compile(r"^( {2,4})(\*{0,2}\w+(?:, \*{0,2}\w+)+):(.*)$")  # "  k, v: [B, S, K, H]."


class TerminalDocstrings(griffe.Extension):
    """Turns indented commands into code blocks and the help texts of options into docstrings."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
        elif isinstance(obj, griffe.Attribute) and (text := option_help(str(obj.value or ""))):
            obj.docstring = griffe.Docstring(text, parent=obj)


def as_markdown(text: str) -> str:
    """A docstring as Markdown, in Google's style.

    Indented lines become code blocks. "k, v: text" in a list of arguments becomes an entry for each
    name. Brackets outside of code are text and not links: shapes are written [B, T].
    """
    lines: list[str] = []
    section = ""
    for line in text.splitlines():
        previous = lines[-1] if lines else ""
        if match := _SECTION.match(line):
            section = match[1]
        elif line and not line.startswith(" "):
            section = ""
        starts_code = line.startswith("    ") and not previous.startswith("  ")
        starts_list = line.startswith("- ") and not re.match("- |  ", previous)
        if not section and previous and (starts_code or starts_list):
            lines.append("")
        is_code = line.startswith("    ") and not section or line.lstrip().startswith(">>>")
        shown = line if is_code else _without_links(line)
        if section in ("Args", "Attributes") and (match := _NAMES.match(shown)):
            indent, names, rest = match.groups()
            *first, last = names.split(", ")
            lines += [f"{indent}{name}: See `{last.lstrip('*')}`." for name in first]
            shown = f"{indent}{last}:{rest}"
        lines.append(shown)
    return "\n".join(lines)


def option_help(value: str) -> str:
    """The help text of `option(default, "help")`; empty for any other value."""
    try:
        call = ast.parse(textwrap.dedent(value), mode="eval").body
    except SyntaxError:
        return ""
    if not isinstance(call, ast.Call) or not ast.unparse(call.func).endswith("option"):
        return ""
    texts = [*call.args[1:2], *(k.value for k in call.keywords if k.arg == "help")]
    help_text = next((t.value for t in texts if isinstance(t, ast.Constant)), "")
    return _without_links(str(help_text))


def _without_links(line: str) -> str:
    parts = re.split(r"(`[^`]*`)", line)
    return "".join(
        part if part.startswith("`") else re.sub(r"([\[\]])", r"\\\1", part.replace("<", "&lt;"))
        for part in parts
    )
