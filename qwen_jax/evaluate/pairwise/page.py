"""Self-contained HTML pages: the blind comparison, and the editor of conversations.

A page works offline and fetches nothing. Texts are data: they become text nodes, never HTML. What
the browser stores has a name that depends on the page's content.
"""

import hashlib
import html
import json
from collections.abc import Iterable
from importlib import resources
from typing import Any

from qwen_jax.data.chat.conversations import Conversation
from qwen_jax.errors import DataError
from qwen_jax.evaluate.pairwise.sheet import Sheet

MAX_ANSWERS = 9  # keys 1 to 9

_COMPARE = """
<div class="bar"><h1>@@TITLE@@</h1>
<input id="rater" placeholder="your name" size="12">
<select id="category"><option value="">all categories</option></select>
<progress id="progress" max="1" value="0"></progress><span id="count"></span>
<span class="buttons"><button id="previous">previous</button><button id="next">next</button>
<button id="tie">tie</button></span>
<span class="buttons"><button id="save" class="main">save votes</button>
<label class="file">load votes<input id="load" type="file" accept=".jsonl" hidden></label></span>
<span class="help">keys: <b>1</b> to <b>@@ANSWERS@@</b> the best (then the next best),
<b>Shift</b> and a number tie with the one before, <b>0</b> or <b>t</b> all others tie,
<b>Backspace</b> begins again, <b>←</b> <b>→</b> another question</span>
<span id="note" class="note"></span></div>
<main><div id="question"></div><div id="answers" class="answers"></div></main>
"""
_EDIT = """
<div class="bar"><h1>@@TITLE@@</h1>
<input id="rater" placeholder="your name" size="12">
<progress id="progress" max="1" value="0"></progress><span id="count"></span>
<button id="previous">previous</button><button id="next">next</button>
<button id="keep">keep</button><button id="drop">drop</button>
<button id="new">new conversation</button><button id="save" class="main">save conversations</button>
<span class="help">keys outside of a text: <b>k</b> keep, <b>d</b> drop, <b>a</b> add a turn,
<b>n</b> new, <b>←</b> <b>→</b></span><span id="note" class="note"></span></div>
<main><p id="position" class="help"></p><div id="turns"></div>
<div class="row"><button id="turn">add a turn</button></div></main>
"""


def compare_page(sheet: Sheet, *, title: str, seed: int) -> str:
    """Returns the blind page of a sheet as HTML; it has no names of models.

    Args:
      title: the page's heading.
      seed: of the orders in which each rater sees the answers.

    Raises:
      DataError: a question has more answers than there are number keys.
    """
    most = max(len(entry.answers) for entry in sheet.entries)
    if most > MAX_ANSWERS:
        raise DataError(
            f"a question has {most} answers, and the page's keys are 1 to {MAX_ANSWERS}.",
            "compare_page(sheet)",
            "use fewer models, sampling settings or samples.",
        )
    data = {
        "page": sheet.page,
        "seed": seed,
        "questions": [
            {
                "id": entry.question.id,
                "category": entry.question.category,
                "turns": [list(turn) for turn in entry.question.turns],
                "reference": entry.question.reference,
                "answers": [[answer.code, answer.text] for answer in entry.answers],
            }
            for entry in sheet.entries
        ],
    }
    body = _COMPARE.replace("@@ANSWERS@@", str(most))
    return _page(title, body, data, "compare.js", "startCompare")


def edit_page(conversations: Iterable[Conversation], *, title: str) -> str:
    """Returns the page on which conversations are written, corrected, kept and dropped.

    Args:
      conversations: those to review; may be empty.
      title: the page's heading.
    """
    rows = []
    for number, one in enumerate(conversations, 1):
        marks = one.trained or (None,) * len(one.turns)
        messages = [
            {"role": role, "content": text}
            | ({"weight": 0} if mark is False and role == "assistant" else {})
            for (role, text), mark in zip(one.turns, marks, strict=True)
        ]
        rows.append({"id": f"{number}", "messages": messages, "where": one.where})
    digest = hashlib.blake2b(json.dumps(rows).encode(), digest_size=8).hexdigest()
    data = {"page": digest, "conversations": rows}
    return _page(title, _EDIT, data, "edit.js", "startEdit")


def _page(title: str, body: str, data: dict[str, Any], script: str, start: str) -> str:
    """Returns the page. Only our own files are searched for placeholders."""
    code = f"{scripts('common.js', script)}\n{start}({_READ});"
    parts = script_text("page.html").replace("@@BODY@@", body).split("@@")
    values = {"TITLE": html.escape(title), "SCRIPT": code, "DATA": _as_json(data)}
    return "".join(values.get(part, part) for part in parts)


_READ = 'JSON.parse(document.getElementById("data").textContent)'


def _as_json(data: Any) -> str:
    """Returns JSON that cannot end its script element."""
    text = json.dumps(data, ensure_ascii=True)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def script_text(name: str) -> str:
    """Returns a file of the folder `web`."""
    folder = resources.files("qwen_jax.evaluate.pairwise").joinpath("web")
    return folder.joinpath(name).read_text(encoding="utf-8")


def scripts(*names: str) -> str:
    """Returns files of the folder `web`, one after the other."""
    return "\n".join(map(script_text, names))
