"""One browser and one server for all tests of the page; each test starts with an empty chat."""

import pytest

from tests.helpers.browser import browser
from tests.helpers.page import page_server


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="session")
def chrome(folder):
    with browser(folder) as found:
        yield found


@pytest.fixture(scope="session")
def server(folder, chrome):
    with page_server(folder, seconds=0.002) as running:
        yield running


@pytest.fixture
def page(chrome, server):
    """The page with a new conversation; the test fails if the browser reports an error."""
    chrome.size(1280, 900)
    chrome.errors()
    chrome.open(server)
    chrome.click("New chat")
    yield chrome
    assert not chrome.errors()
