"""NFC as `tokenizers` has it, for all versions of Python. Report: 2.2.

Ids must not depend on Python, whose tables of Unicode grow, nor differ from those of `tokenizers`,
whose tables are those of Unicode 9. Normal forms are stable: a later version only adds characters.
So a character that is newer neither moves nor composes, and text is normalized between them.
"""

import re
import unicodedata

# Up to Unicode 17, the characters after Unicode 9 that move, compose or decompose in NFC.
_NEWER = re.compile(
    "(["
    "\u05c8-\u05c9\u07fd\u0897-\u089f\u08ca-\u08d3\u09fe\u0c3c\u0d3b-\u0d3c\u0eba"
    "\u1715\u1abf-\u1af0\u1df6-\u1dfa\ua82c\U000105c9\U000105e4"
    "\U00010d24-\U00010d27\U00010d69-\U00010d6d\U00010eab-\U00010eac"
    "\U00010ecb-\U00010ecf\U00010ef0-\U00010efb\U00010efd-\U00010eff"
    "\U00010f46-\U00010f50\U00010f82-\U00010f85\U00011070\U0001133b\U00011383"
    "\U00011385\U0001138e\U00011391\U000113b8\U000113bb\U000113c2\U000113c5"
    "\U000113c7-\U000113c9\U000113ce-\U000113d0\U0001145e\U00011839-\U0001183a"
    "\U00011930\U00011938\U0001193d-\U0001193e\U00011943\U000119e0\U00011a34"
    "\U00011a47\U00011a99\U00011d42\U00011d44-\U00011d45\U00011d97"
    "\U00011f41-\U00011f42\U0001611e-\U00016129\U0001612f\U00016d67-\U00016d6a"
    "\U00016ff0-\U00016ff1\U0001d127-\U0001d128\U0001d250-\U0001d252"
    "\U0001d25b-\U0001d25c\U0001d25f\U0001d280-\U0001d281\U0001e08f"
    "\U0001e130-\U0001e136\U0001e2ae\U0001e2ec-\U0001e2ef\U0001e4ec-\U0001e4ef"
    "\U0001e5ee-\U0001e5ef\U0001e6e3\U0001e6e6\U0001e6ee-\U0001e6ef\U0001e6f5"
    "]+)"
)


def normalize(text: str) -> str:
    """Returns `text` as it is encoded: in NFC, with U+FFFD for lone surrogates."""
    if text.isascii():
        return text
    text = well_formed(text)
    # Nearly all text. Its parts are in NFC too, so no table, old or new, changes it.
    if unicodedata.is_normalized("NFC", text):
        return text
    return "".join(
        part if index % 2 else unicodedata.normalize("NFC", part)
        for index, part in enumerate(_NEWER.split(text))  # text, newer characters, text, ...
    )


def well_formed(text: str) -> str:
    """Joins surrogate pairs and replaces lone halves."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
