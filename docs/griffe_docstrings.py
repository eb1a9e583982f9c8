"""Prepares docstrings for the API pages: they are written for a terminal, not as Markdown."""

import ast
import re
import textwrap

import griffe

_SECTION = re.compile(r"^(Args|Attributes|Example|Examples|Raises|Returns|Yields):$")
_NAMES = re.compile(r"^( {2,4})(\*{0,2}\w+(?:, \*{0,2}\w+)+):(.*)$")  # "  k, v: [B, S, K, H]."


class TerminalDocstrings(griffe.Extension):
    """Turns indented commands into code blocks and the help texts of options into docstrings."""

    def on_package(self, *, pkg: griffe.Module, **kwargs) -> None:
        """The package itself: griffe calls on_object only for what is inside it."""
        if pkg.docstring is not None:
            pkg.docstring.value = as_markdown(pkg.docstring.value)

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
        if isinstance(obj, griffe.Attribute) and (found := option_of(str(obj.value or ""))):
            obj.value, text = found
            obj.docstring = obj.docstring or griffe.Docstring(_without_links(text), parent=obj)


def as_markdown(text: str) -> str:
    """A docstring as Markdown, in Google's style.

    Indented lines and doctests become code blocks. "k, v: text" in a list of arguments becomes an
    entry for each name. Brackets outside of code are text and not links: shapes are written [B, T].
    """
    lines: list[str] = []
    section = ""
    for line in text.splitlines():
        previous = lines[-1] if lines else ""
        if match := _SECTION.match(line):
            section = match[1]
            line = "Examples:" if section == "Example" else line  # what griffe calls it
        elif line and not line.startswith(" "):
            section = ""
        if not section and line.startswith((">>> ", "... ")):
            line = f"    {line}"
        is_code = line.startswith("    ") and not section or section.startswith("Example")
        starts_code = line.startswith("    ") and not previous.startswith("  ")
        starts_list = line.startswith("- ") and not re.match("- |  ", previous)
        if not section and previous and (starts_code or starts_list):
            lines.append("")
        shown = line if is_code else _without_links(line)
        if section in ("Args", "Attributes") and (match := _NAMES.match(shown)):
            indent, names, rest = match.groups()
            *first, last = names.split(", ")
            lines += [f"{indent}{name}: See `{last.lstrip('*')}`." for name in first]
            shown = f"{indent}{last}:{rest}"
        lines.append(shown)
    return "\n".join(lines)


def command_docstring(text: str) -> str:
    """The docstring of an experiment as Markdown.

    A paragraph that has commands next to its text, in columns, stays as it is.
    """
    paragraphs = []
    for paragraph in re.split(r"\n\n+", text.strip()):
        in_columns = re.search(r"^(\S.*(python -m|  \S)|curl )", paragraph, re.MULTILINE)
        shown = f"```text\n{paragraph}\n```" if in_columns else as_markdown(paragraph)
        paragraphs.append(shown)
    return "\n\n".join(paragraphs)


def option_of(value: str) -> tuple[str | None, str] | None:
    """(default, help text) of `option(default, "help")` or `field(metadata={"help": ...})`."""
    try:
        call = ast.parse(textwrap.dedent(value), mode="eval").body
    except SyntaxError:
        return None
    if not isinstance(call, ast.Call):
        return None
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    default = keywords.get("default", next(iter(call.args), None))
    shown = None if default is None else ast.unparse(default)
    if ast.unparse(call.func).endswith("option"):
        help_text = keywords.get("help", next(iter(call.args[1:2]), None))
    elif isinstance(metadata := keywords.get("metadata"), ast.Dict):
        found = zip(metadata.keys, metadata.values, strict=True)
        help_text = next((v for k, v in found if k and ast.unparse(k) == "'help'"), None)
    else:
        return None
    return (shown, str(help_text.value)) if isinstance(help_text, ast.Constant) else None


def _without_links(line: str) -> str:
    parts = re.split(r"(`[^`]*`)", line)
    return "".join(
        part if part.startswith("`") else re.sub(r"([\[\]])", r"\\\1", part.replace("<", "&lt;"))
        for part in parts
    )
