"""Samples kept and rejected documents for manual review. Report: 2.1.

`sample` picks the same documents regardless of the input's order. `page` renders one self-contained
HTML file with a button that saves the reviewer's marks as JSON. `summarize` computes the precision
of each rule from these marks, with a confidence interval.
"""

import dataclasses
import hashlib
import html
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources

from qwen_jax.errors import DataError

KEPT = "kept"  # used in place of a rule for documents that were not rejected
_SHOWN = 3000  # characters shown of a longer text: its start, an ellipsis and its end
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Sample:
    """One document to review."""

    id: str
    source: str
    rule: str  # the rule that rejected it, or KEPT
    value: str  # the measured value that broke the rule
    text: str
    location: str = ""  # path or URL
    language: str = ""


def sample(rows: Iterable[Mapping], *, each: int = 10, seed: int = 0) -> list[Sample]:
    """Returns at most `each` documents per source and rule, those with the smallest ID hashes.

    Args:
      rows: documents with the columns of stage.schema; rejected ones also have rejected_by and
        rejected_value.

    Raises:
      DataError: there are no rows.
    """
    strata: dict[tuple[str, str], dict[str, tuple[bytes, Sample]]] = {}
    for row in rows:
        rule = row.get("rejected_by") or KEPT
        key = hashlib.blake2b(
            row["id"].encode(), digest_size=8, key=seed.to_bytes(8, "little")
        ).digest()
        stratum = strata.setdefault((row["source"], rule), {})
        if len(stratum) >= each and row["id"] not in stratum:
            largest = max(stratum, key=lambda name: stratum[name][0])
            if stratum[largest][0] <= key:
                continue
            del stratum[largest]
        stratum[row["id"]] = (
            key,
            Sample(
                id=row["id"],
                source=row["source"],
                rule=rule,
                value=row.get("rejected_value") or "",
                text=row["text"],
                location=row.get("url") or row.get("path") or "",
                language=row.get("language") or "",
            ),
        )
    if not strata:
        raise DataError("no documents to review.", "review.sample(rows)", "run the pipeline first.")
    return [
        found
        for _, stratum in sorted(strata.items())
        for _, found in sorted(stratum.values(), key=lambda pair: pair[0])
    ]


def page(samples: Sequence[Sample], *, title: str = "Review") -> str:
    """Returns the review page as HTML.

    The browser stores marks locally, under a name derived from the samples' IDs.
    """
    name = hashlib.blake2b("\n".join(s.id for s in samples).encode(), digest_size=8).hexdigest()
    strata: dict[tuple[str, str], list[Sample]] = {}
    for one in samples:
        strata.setdefault((one.rule, one.source), []).append(one)
    order = sorted(strata, key=lambda key: (key[0] == KEPT, key))
    sections = "\n".join(_section(rule, source, strata[rule, source]) for rule, source in order)
    options = {
        kind: "".join(f"<option>{html.escape(value)}</option>" for value in sorted(values))
        for kind, values in (
            ("rule", {key[0] for key in order}),
            ("source", {key[1] for key in order}),
        )
    }
    template = (
        resources.files("qwen_jax.corpus.output")
        .joinpath("review.html")
        .read_text(encoding="utf-8")
    )
    for location, value in (
        ("TITLE", html.escape(title)),
        ("NAME", name),
        ("RULES", options["rule"]),
        ("SOURCES", options["source"]),
        ("SECTIONS", sections),
    ):  # sections last: a placeholder inside a text must not be replaced
        template = template.replace(f"@@{location}@@", value)
    return template


def _section(rule: str, source: str, samples: Sequence[Sample]) -> str:
    judged = "kept" if rule == KEPT else f"rejected by <b>{html.escape(rule)}</b>"
    cards = "\n".join(_card(one) for one in samples)
    return (
        f'<section data-rule="{html.escape(rule)}" data-source="{html.escape(source)}">\n'
        f"<h2>{html.escape(source)} <small>{judged}, {len(samples)} shown</small></h2>\n"
        f"{cards}\n</section>"
    )


def _card(one: Sample) -> str:
    text = (
        one.text
        if len(one.text) <= _SHOWN
        else (
            f"{one.text[: _SHOWN * 2 // 3]}\n[… {len(one.text) - _SHOWN:,} characters …]\n"
            f"{one.text[-_SHOWN // 3 :]}"
        )
    )
    facts = " · ".join(
        html.escape(fact)
        for fact in (
            one.value and f"value {one.value}",
            one.language,
            f"{len(one.text):,} characters",
            one.location,
        )
        if fact
    )
    return (
        f'<article tabindex="0" data-id="{html.escape(one.id)}" '
        f'data-rule="{html.escape(one.rule)}" data-source="{html.escape(one.source)}">'
        f'<header><span>{facts}</span><nav><button data-mark="keep">keep</button>'
        f'<button data-mark="drop">drop</button></nav></header>'
        f"<pre>{html.escape(text)}</pre></article>"
    )


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How often reviewers agreed with one rule in one source."""

    source: str
    rule: str
    right: int  # rejected and marked drop, or kept and marked keep
    marked: int

    @property
    def precision(self) -> float:
        return self.right / self.marked

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Returns Wilson's confidence interval; z = 1.96 gives 95%."""
        p, n = self.precision, self.marked
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)


def read_marks(path: str | os.PathLike) -> list[dict[str, str]]:
    """Reads the marks that the review page saved: id, source, rule, mark.

    Raises:
      DataError: the file is missing, corrupted or not a file of review marks.
    """
    path = pathlib.Path(path)
    if path.suffix != ".json":
        raise DataError(
            f"unsupported file extension {path.suffix or '(none)'}.",
            str(path),
            "pass the .json file that the review page saved.",
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        marks = record["marks"]
        if record["format"] != _FORMAT or any(
            set(mark) != {"id", "source", "rule", "mark"} or mark["mark"] not in ("keep", "drop")
            for mark in marks
        ):
            raise ValueError("unknown marks")
    except FileNotFoundError as error:
        raise DataError("file not found.", str(path), "check the path.") from error
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise DataError(
            f"not a file of review marks: {error}.",
            str(path),
            "click `save marks` on the review page and pass the file it saves.",
        ) from error
    return marks


def summarize(marks: Iterable[Mapping[str, str]]) -> list[Verdict]:
    """Returns the agreement with each rule, overall ("all") and by source, lowest first."""
    counts: dict[tuple[str, str], list[int]] = {}
    for mark in marks:
        right = mark["mark"] == ("keep" if mark["rule"] == KEPT else "drop")
        for source in (mark["source"], "all"):
            both = counts.setdefault((source, mark["rule"]), [0, 0])
            both[0] += right
            both[1] += 1
    found = [Verdict(source, rule, *both) for (source, rule), both in counts.items()]
    return sorted(found, key=lambda v: (v.source != "all", v.precision, v.source, v.rule))


def table(verdicts: Sequence[Verdict]) -> str:
    """Returns a Markdown table of each rule's precision with its 95% confidence interval."""
    lines = [
        "| source | rule | marked | correct | precision | 95% interval |",
        "|---|---|---:|---:|---:|---|",
    ]
    for v in verdicts:
        low, high = v.interval()
        lines.append(
            f"| {v.source} | {v.rule} | {v.marked} | {v.right} | {v.precision:.0%} | "
            f"{low:.0%} to {high:.0%} |"
        )
    return "\n".join(lines)
