"""The page's chat, in headless Chromium."""

import pytest

from tests.helpers.browser import browser
from tests.helpers.page import page_server


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def chrome(folder):
    with browser(folder) as found:
        yield found


@pytest.fixture(scope="module")
def server(folder):
    with page_server(folder, seconds=0.002) as running:
        yield running


@pytest.fixture
def page(chrome, server):
    chrome.open(server)
    chrome.click("New chat")
    yield chrome
    assert not chrome.errors()


def test_chat_streams_an_answer_that_a_reload_keeps(page, server):
    assert "sft answers 'Hi'" in page.ask("Hi")
    page.driver.refresh()
    page.until(lambda: "sft answers 'Hi'" in page.text("article.assistant"), "the history")
    assert page.text("#conversations .title").startswith("Hi")
    assert all(
        url.startswith((f"http://127.0.0.1:{server.port}/", "data:", "chrome:"))
        for url in page.requests()
    )
