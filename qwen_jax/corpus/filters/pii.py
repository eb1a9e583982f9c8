"""Masks personal data and secrets by pattern, and counts them. Report: 2.1.

A match needs evidence beyond its form: a checksum, a date, an address range or the preceding words.
Values that identify no one are kept: example.com, private and loopback addresses, version and
section numbers.
"""

import collections
import dataclasses
import ipaddress
import math
import re
from collections.abc import Callable
from typing import ClassVar

from qwen_jax.corpus import stage

_NOT_AN_ADDRESS = re.compile(  # text before four numbers that are not an IP address
    r"(?:\b(?:v|ver|versions?|releases?|build|firmware|driver|sections?|chapter|sec|clause|figure|"
    r"table|article|oid)\.?|[§=~^]|\w-|版本|版|第|章|节|節|图|圖|表|固件)"
    r"\s*[\"'“:：(（]?\s*$",
    re.I,
)
_DOCUMENTATION = re.compile(
    r"@(?:[\w-]+\.)*example\.|@(?:your[\w-]*\.|localhost|test|invalid|domain\.com|email\.com|"
    r"company\.com)\b|\.(?:png|jpe?g|gif|svg|webp)$",
    re.I,
)
_ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)  # GB 11643
_ID_CHECKS = "10X98765432"


def _is_email(match: re.Match) -> bool:
    return not _DOCUMENTATION.search(match[0])


def _is_ipv4(match: re.Match) -> bool:
    before = match.string[max(0, match.start() - 24) : match.start()]
    return not _NOT_AN_ADDRESS.search(before) and _is_public(match[0])


def _is_ipv6(match: re.Match) -> bool:
    return match[0].count(":") >= 3 and _is_public(match[0])


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _is_international(match: re.Match) -> bool:
    decimal = re.fullmatch(r"\+\d+\.\d+", match[0])
    return not decimal and 8 <= sum(map(str.isdigit, match[0])) <= 15  # E.164


def _is_id_number(match: re.Match) -> bool:
    total = sum(w * int(digit) for w, digit in zip(_ID_WEIGHTS, match[0], strict=False))
    return _ID_CHECKS[total % 11] == match[0][-1].upper()


def _is_secret(match: re.Match) -> bool:
    """Returns whether a value looks random: not a word, a placeholder or a variable name."""
    value = match["secret"]
    counts = collections.Counter(value)
    entropy = -sum(n / len(value) * math.log2(n / len(value)) for n in counts.values())
    digits = sum(map(str.isdigit, value))
    return entropy >= 3.0 and digits >= 2 and bool(re.search("[A-Za-z]", value))


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A kind of value to mask."""

    name: str
    hints: tuple[str, ...]  # lowercase; a text with none of them is skipped; (): never skipped
    expression: re.Pattern  # masks the group "secret" if there is one, else the full match
    is_valid: Callable[[re.Match], bool] = lambda match: True
    mask: str = ""  # "" means <name>


# Each expression starts with a character, followed by its lookbehind: the engine can then skip
# quickly to candidates.
PATTERNS = (
    Pattern(
        "private_key",
        ("-----begin",),
        re.compile(
            r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----.*?"
            r"(?:-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|\Z)",
            re.S,
        ),
    ),
    Pattern("jwt", ("eyj",), re.compile(r"e(?<![\w-]e)yJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}", re.A)),
    Pattern(
        "aws_key",
        ("akia", "asia"),
        re.compile(r"A(?<![A-Za-z0-9]A)(?:KIA|SIA)[0-9A-Z]{16}(?![A-Za-z0-9])"),
    ),
    Pattern(
        "github_token",
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
        re.compile(r"g(?<![A-Za-z0-9]g)(?:h[pousr]_[A-Za-z0-9]{36,}|ithub_pat_\w{40,})", re.A),
    ),
    Pattern(
        "service_key",
        ("xox", "sk-", "k_live_", "glpat-", "aiza"),
        re.compile(
            r"[xsrgA](?<![\w-][xsrgA])(?:ox[abprs]-[\w-]{20,}|k-(?=[\w-]*\d)[\w-]{20,}|k_live_\w{16,}|"
            r"lpat-[\w-]{20}|Iza[\w-]{35})",
            re.A,
        ),
    ),  # Slack, OpenAI, Stripe, GitLab, Google
    Pattern(
        "password_in_url", ("://",), re.compile(r"://[^\s/:@]{1,64}:(?P<secret>[^\s/@<]{3,64})@")
    ),
    Pattern(
        "assigned_secret",
        ("key", "secret", "token", "passw", "auth", "密码", "密钥"),
        re.compile(
            r"(?:api[_-]?key|secret|token|passw(?:or)?d|access[_-]?key|auth|密码|密钥)[\w-]{0,20}"
            r"[\"']?\s{0,3}[:=：]{1,2}\s{0,3}[\"']?(?P<secret>[\w+/=.~!@#$%^&*-]{8,128}+)(?![(\[])",
            re.I | re.A,
        ),
        _is_secret,
    ),
    Pattern(
        "email",
        ("@",),
        re.compile(
            r"[A-Za-z0-9](?<![A-Za-z0-9._%+-].)[A-Za-z0-9._%+-]{0,63}@"
            r"(?:[A-Za-z0-9-]{1,63}\.){1,5}[A-Za-z]{2,24}(?![A-Za-z0-9_])"
        ),
        _is_email,
    ),
    Pattern(
        "ipv6",
        (":",),
        re.compile(  # global unicast starts with 2 or 3
            r"[23](?<![\w:.].)[0-9A-Fa-f]{3}:[0-9A-Fa-f:]{2,34}(?![\w:])"
        ),
        _is_ipv6,
        "<ip>",
    ),
    Pattern(
        "ipv4",
        (".",),
        re.compile(r"\d(?<![\w.].)\d{0,2}(?:\.\d{1,3}){3}(?![\w/]|\.\w|-\w)", re.A),
        _is_ipv4,
        "<ip>",
    ),
    Pattern(
        "id_number",
        (),
        re.compile(  # Chinese: region, date of birth, sequence number, check digit
            r"[1-8](?<!\d.)\d{5}(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx]"
            r"(?!\d)",
            re.A,
        ),
        _is_id_number,
    ),
    Pattern(
        "phone",
        ("+",),
        re.compile(r"\+(?<![\w+].)[1-9][\d ().-]{7,18}\d(?!\w)", re.A),
        _is_international,
    ),
    Pattern(
        "phone",
        ("1",),
        re.compile(  # Chinese mobile numbers
            r"1(?<![\d.].)[3-9]\d(?:\d{8}|[- ]\d{4}[- ]\d{4})(?![\d-]|\.\d)", re.A
        ),
    ),
    Pattern(
        "phone",
        ("-",),
        re.compile(  # Chinese landline numbers
            r"0(?<![\d.-].)\d{2,3}-[2-8]\d{6,7}(?![\d-]|\.\d)", re.A
        ),
    ),
    Pattern(
        "phone",
        ("-",),
        re.compile(  # North American numbers
            r"[2-9](?<![\d.].)(?<![02-9]-.)\d\d-[2-9]\d\d-\d{4}(?![\d-]|\.\d)", re.A
        ),
    ),
    Pattern(
        "phone",
        ("(",),
        re.compile(r"\((?:0\d{2,3}\) ?[2-8]\d{6,7}|[2-9]\d\d\) ?[2-9]\d\d[-. ]\d{4})(?!\d)", re.A),
    ),
)
NAMES = tuple(dict.fromkeys(pattern.name for pattern in PATTERNS))


def mask(text: str) -> tuple[str, dict[str, int]]:
    """Returns the text with personal data and secrets masked, and the count of each pattern.

    Example:
      >>> mask("Write to li.lei@qq.com or call 13912345678.")
      ('Write to <email> or call <phone>.', {'email': 1, 'phone': 1})
    """
    counts: collections.Counter[str] = collections.Counter()
    lower = text.lower()
    for pattern in PATTERNS:
        if not pattern.hints or any(hint in lower for hint in pattern.hints):
            text = pattern.expression.sub(
                lambda match, pattern=pattern: _replace(match, pattern, counts), text
            )
    return text, dict(counts)


def _replace(match: re.Match, pattern: Pattern, counts: collections.Counter) -> str:
    if not pattern.is_valid(match):
        return match[0]
    counts[pattern.name] += 1
    masked = pattern.mask or f"<{pattern.name}>"
    if "secret" not in pattern.expression.groupindex:
        return masked
    start, end = (index - match.start() for index in match.span("secret"))
    return match[0][:start] + masked + match[0][end:]


@dataclasses.dataclass(frozen=True)
class PersonalStage:
    """A corpus stage that masks texts; the column `masked_NAME` counts matches of a pattern."""

    name: ClassVar[str] = "personal"
    counted: ClassVar[tuple[str, ...]] = tuple(f"masked_{name}" for name in NAMES)

    def __call__(self, table):
        masked = [mask(text) for text in table["text"].to_pylist()]
        table = stage.set_column(
            table, "text", [text for text, _ in masked], table.schema.field("text").type
        )
        for name in NAMES:
            table = stage.set_column(
                table, f"masked_{name}", [c.get(name, 0) for _, c in masked], stage.pa.int32()
            )
        return table
