"""What a model or a run's files say is text: 200 payloads, and no request leaves the server."""

import itertools
import json

from tests.helpers.page import page_server

SCRIPTS = [
    "<script>window.hacked=1</script>",
    "<img src=x onerror=window.hacked=1>",
    "<img src='https://evil.invalid/x.png'>",
    "<svg onload=window.hacked=1>",
    "<svg><script>window.hacked=1</script></svg>",
    "<svg><animate onbegin=window.hacked=1 attributeName=x dur=1s>",
    "<iframe src='javascript:parent.hacked=1'></iframe>",
    "<iframe srcdoc='<script>parent.hacked=1</script>'></iframe>",
    "<body onload=window.hacked=1>",
    "<details open ontoggle=window.hacked=1>",
    "<input autofocus onfocus=window.hacked=1>",
    "<video src=https://evil.invalid/v onerror=window.hacked=1>",
    "<object data='https://evil.invalid/o'></object>",
    "<embed src='https://evil.invalid/e'>",
    "<link rel=stylesheet href='https://evil.invalid/s.css'>",
    "<style>@import 'https://evil.invalid/s.css';body{display:none}</style>",
    "<meta http-equiv=refresh content='0;url=https://evil.invalid/'>",
    "<base href='https://evil.invalid/'>",
    "<form action='https://evil.invalid/'><button>Send</button></form>",
    "<math><mtext><table><mglyph><style><img src=x onerror=window.hacked=1>",
    "<a href='javascript:window.hacked=1'>x</a>",
    "<div style='position:fixed;inset:0;background:red'>over all</div>",
    "<textarea id=composer-text></textarea><form id=composer>",
    "<template><script>window.hacked=1</script></template>",
    "--><script>window.hacked=1</script><!--",
]
MARKDOWN = [
    "[x](javascript:window.hacked=1)",
    "[x](JaVaScRiPt:window.hacked=1)",
    "[x](data:text/html,<script>opener.hacked=1</script>)",
    "[x](vbscript:x)",
    "[x](//evil.invalid)",
    "![x](https://evil.invalid/i.png)",
    "![x][r]\n\n[r]: https://evil.invalid/i.png",
    "<https://evil.invalid/'onmouseover='window.hacked=1>",
    "[a]: javascript:window.hacked=1\n\n[a]",
    "$\\href{javascript:window.hacked=1}{x}$",
    "$\\url{javascript:window.hacked=1}$",
    "$\\includegraphics{https://evil.invalid/i.png}$",
    "$\\htmlData{x=1}{y}\\htmlStyle{position:fixed}{z}$",
    "$$\\def\\a{\\a\\a}\\a$$",
    "$\\text{<img src=x onerror=window.hacked=1>}$",
    "$$\\rule{99999em}{99999em}$$",
    "```html\n<script>window.hacked=1</script>\n```",
    '```"><img src=x onerror=window.hacked=1>\nx\n```',
    "`<img src=x onerror=window.hacked=1>`",
    "| <script>window.hacked=1</script> |\n|---|\n| <img src=x onerror=window.hacked=1> |",
    "# <svg/onload=window.hacked=1>",
    "&lt;script&gt;window.hacked=1&lt;/script&gt;",
    "\\<script>window.hacked=1\\</script>",
]
TEXTS = [
    "\u202eevil\u202c and \u2066more\u2069",
    "a\u202e.exe" * 20,
    "\u001b[31mred\u001b[0m \u001b]8;;https://evil.invalid\u0007link\u001b]8;;\u0007",
    "\u0000\u0001\u0007\u0008 controls",
    "\ufeff\u200b\u200d zero width",
    "Z\u0351\u036b\u0343" * 100,
    "👩‍👩‍👧‍👦" * 50,
    "\ud7ff\uffff\ufffd",
    "> " * 400 + "deep",
    "- " * 400 + "deep",
    "[" * 3000,
    "*" * 5000,
    "`" * 3000 + "x",
    "$" * 2000,
    "(" * 2000 + ")" * 2000,
    "x" * 20_000,
    "{{constructor.constructor('window.hacked=1')()}} ${window.hacked=1} <%= 1 %>",
    "__proto__ constructor toString",
]
PLACES = ["{}", "text {} text", "- {}", "> {}", "**{}**", "```\n{}\n```", "| a |\n|---|\n| {} |"]


def payloads() -> list[str]:
    """Returns at least 200 different answers."""
    made = [*SCRIPTS, *MARKDOWN, *TEXTS]
    short = [one for one in SCRIPTS + MARKDOWN if "\n" not in one]
    made.append("**x** <b>y</b> " * 20_000)
    made += [place.format(one) for one, place in itertools.product(short, PLACES[1:5])]
    return list(dict.fromkeys(made))


ALLOWED = set(
    "A B BLOCKQUOTE BR BUTTON CODE DEL DIV EM H1 H2 H3 H4 H5 H6 HR LI OL P PRE S SPAN STRONG TABLE "
    "TBODY TD TH THEAD TR UL "
    "math mrow mi mn mo ms mtext mspace mstyle msub msup msubsup munder mover munderover mfrac "
    "msqrt mroot mtable mtr mtd mpadded mphantom merror menclose".split()
)


def show_all(page, count: int) -> None:
    """Draws all messages, unfolded."""

    def shown() -> bool:
        page.js("document.getElementById('earlier')?.click()")
        return len(page.all("article")) == count

    page.until(shown, "all messages")
    page.js("document.querySelectorAll('details').forEach((d) => { d.open = true; })")


def test_hostile_answers_stay_text(chrome, folder):
    made = payloads()
    assert len(made) >= 200
    answers = {str(index): payload for index, payload in enumerate(made)}
    with page_server(folder / "hostile", say=answers.get) as server:
        chrome.open(server)
        chrome.requests()
        # All of them through one conversation's importer and renderer, and some through a stream.
        chrome.ask("0")
        own = {
            "format": "qwen_jax conversations",
            "conversations": [
                {
                    "title": SCRIPTS[1],
                    "messages": [
                        {
                            "id": str(index),
                            "parent": str(index - 1) if index else "",
                            "role": "assistant",
                            "content": payload,
                            "reasoning": payload,
                            "model": payload[:300],
                            "error": payload,
                            "figures": [
                                "https://evil.invalid/f.png",
                                f"data:image/svg+xml,{payload}",
                            ],
                            "calls": [{"id": "1", "name": payload[:200], "arguments": payload}],
                        }
                        for index, payload in enumerate(made)
                    ],
                }
            ],
        }
        path = folder / "hostile.json"
        path.write_text(json.dumps(own), encoding="utf-8")
        chrome.one("#import-file").send_keys(str(path))
        chrome.until(lambda: "was imported" in chrome.text("#status"), "the import")
        show_all(chrome, len(made))
        for index in (1, 30, 50, 52):
            chrome.click("New chat")
            chrome.ask(str(index))
        assert chrome.js("return window.hacked") is None
        imported = "#conversations .title[title^='<img']"
        chrome.one(imported).click()
        show_all(chrome, len(made))
        assert chrome.js("return window.hacked") is None
        names = chrome.js(
            "return [...new Set([...document.querySelectorAll('.body *')].map(n => n.tagName))]"
        )
        assert set(names) <= ALLOWED, set(names) - ALLOWED
        attributes = chrome.js(
            """return [...new Set([...document.querySelectorAll('.body *')].flatMap((n) =>
            n.getAttributeNames()))].filter((a) => a.startsWith('on')
            || a === 'style' || a === 'src')"""
        )
        assert attributes == []
        links = chrome.js("return [...document.querySelectorAll('.body a')].map((a) => a.href)")
        assert all(link.startswith(("https://", "http://", "mailto:")) for link in links), links
        assert chrome.js("return document.querySelectorAll('#composer-text').length") == 1
        assert "\u202e" not in chrome.text("#messages") and "\u001b" not in chrome.text("#messages")
        assert "[U+202E]" in chrome.text("#messages")
        own_urls = (f"http://127.0.0.1:{server.port}/", "data:image/png", "blob:", "chrome")
        assert [url for url in chrome.requests() if not url.startswith(own_urls)] == []
        assert "shown as plain text" in chrome.text("article.assistant .note")  # the huge one
    assert not [line for line in chrome.errors() if "Security Policy" not in line]
