"""The page's chat, in headless Chromium."""

import json

from tests.helpers.page import page_server


def test_chat_streams_an_answer_that_a_reload_keeps(page, server):
    page.requests()
    assert "sft answers 'Hi'" in page.ask("Hi")
    page.driver.refresh()
    page.until(lambda: "sft answers 'Hi'" in page.text("article.assistant"), "the history")
    assert page.text("#conversations .title").startswith("Hi")
    own = (f"http://127.0.0.1:{server.port}/", "data:", "blob:", "chrome")
    assert [url for url in page.requests() if not url.startswith(own)] == []


def test_chat_stops_and_frees_the_decode_slot(page, server):
    page.send("count")
    page.until(lambda: "1 2 3" in page.text("article.assistant"), "text")
    page.one("#composer-text").send_keys("\ue00c")  # Escape
    page.idle()
    assert "stopped by you" in page.text("article.assistant .actions")
    workers = [one.worker for one in server.models.loaded.values()]
    page.until(lambda: not any(one.in_flight for one in workers), "a free slot")
    assert "sft answers 'next'" in page.ask("next")


def test_chat_regenerates_and_edits_into_branches(page):
    first = page.ask("Hi")
    page.click("Regenerate")
    page.idle()
    assert page.text("article.assistant .body") != first  # another seed
    assert "2 of 2" in page.text("article.assistant .actions")
    page.click("Previous branch")
    page.until(lambda: page.text("article.assistant .body") == first, "the first branch")
    page.click("Edit")
    area = page.one("article.user textarea")
    area.clear()
    area.send_keys("Bye\ue007")
    page.until(lambda: "answers 'Bye'" in page.text("article.assistant"), "the edited answer")
    page.idle()
    assert len(page.all("article.assistant")) == 1
    page.driver.refresh()
    page.until(lambda: "answers 'Bye'" in page.text("article.assistant"), "the branch")
    page.click("Previous branch", "article.user")
    page.until(lambda: page.text("article.assistant .body") == first, "the first branch")


def test_chat_sends_the_system_prompt_and_sampling_settings(page, server):
    page.click("Settings", "#chat")
    page.until(lambda: page.one("[name=temperature]").get_attribute("placeholder") == "0.7")
    page.one("#system").send_keys("Be kind")
    page.one("[name=temperature]").send_keys("0")
    page.one("[name=max_tokens]").send_keys("40")
    page.click("Close", "#settings")
    assert page.ask("system") == "My system prompt is: Be kind"
    engine = server.models.loaded["sft"].worker._engine
    assert (engine.last.temperature, engine.last.max_new_tokens, engine.last.top_p) == (0, 40, 0.8)


def test_chat_runs_a_tool_and_folds_its_figure_and_thoughts(page):
    assert page.ask("figure") == "Here is the figure."
    assert "Called figure · done" in page.text("summary")
    assert "drew a blue figure" not in page.text("#messages")  # folded
    page.click("Called figure · done")
    page.until(lambda: "drew a blue figure" in page.text("#messages"), "the result")
    page.click("Figure 1 of figure")
    assert page.js("return document.querySelector('article img').naturalWidth") == 40
    assert page.ask("think") == "I thought."
    page.click("Thoughts")
    page.until(lambda: "It is a test." in page.text("#messages"), "the thoughts")


def test_chat_shows_markdown_code_and_formulas(page):
    page.ask("demo")
    for selector in ("h1", "strong", "table td", "pre .hljs-keyword", "math mfrac", "a[rel]"):
        assert page.all(f"article.assistant {selector}"), selector
    assert "annotation" not in page.js("return document.querySelector('math').innerHTML")


def test_conversations_are_exported_imported_and_deleted(page, folder):
    page.ask("Keep me 中文")
    export = page.js(
        """const made = []; const old = URL.createObjectURL;
        URL.createObjectURL = (blob) => { made.push(blob); return old(blob); };
        HTMLAnchorElement.prototype.click = () => {}; window.made = made;"""
    )
    assert export is None
    page.all("#conversations button[aria-label^=Export]")[0].click()
    page.until(lambda: page.js("return window.made.length"), "the file")
    content = page.driver.execute_async_script("window.made[0].text().then(arguments[0])")
    assert [m["content"] for m in json.loads(content)["conversations"][0]["messages"]][0]
    for left in range(len(page.all("#conversations li")), 0, -1):
        page.all("#conversations button[aria-label^=Delete]")[0].click()
        page.until(lambda: page.js("return document.getElementById('ask').open"), "the question")
        page.one("#ask-yes").click()
        page.until(lambda n=left: len(page.all("#conversations li")) == n - 1, "the deletion")
    path = folder / "conversation.json"
    path.write_text(content)
    page.one("#import-file").send_keys(str(path))
    page.until(lambda: "answers 'Keep me 中文'" in page.text("article.assistant"), "the import")
    assert "1 conversation was imported" in page.text("#status")


def test_the_page_asks_for_a_key(chrome, folder):
    with page_server(folder / "key", api_key="a secret") as server:
        chrome.driver.get(f"http://127.0.0.1:{server.port}/")
        chrome.until(lambda: chrome.js("return document.getElementById('key-dialog').open"))
        chrome.one("#key").send_keys("a secret\ue007")
        chrome.until(lambda: chrome.js("return document.body.dataset.ready"), "the page")
        assert "sft answers 'Hi'" in chrome.ask("Hi")
    chrome.errors()  # the refused request
