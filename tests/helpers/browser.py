"""Headless Chromium on the page, by selenium."""

import contextlib
import pathlib
import time

from tests.helpers.page import chromium

_FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --disable-dev-shm-usage "
    "--force-color-profile=srgb"
)
SECONDS = 60.0  # to wait for what a page does; a shared machine is slow


class Browser:
    """A browser with one tab or several."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, server, view: str = "chat") -> None:
        self.driver.get(f"http://127.0.0.1:{server.port}/#{view}")
        self.until(lambda: self.js("return document.body && document.body.dataset.ready"))

    def js(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def until(self, condition, what: str = "") -> None:
        end = time.monotonic() + SECONDS
        while not (found := condition()):
            assert time.monotonic() < end, f"{what or 'it'} did not happen\n{self.text()[-3000:]}"
            time.sleep(0.03)
        return found

    def text(self, selector: str = "body") -> str:
        script = (
            "return [...document.querySelectorAll(arguments[0])].map(n => n.innerText).join('\\n')"
        )
        return self.js(script, selector)

    def all(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str):
        return self.driver.find_element("css selector", selector)

    def button(self, label: str, within: str = "body"):
        """Returns the last visible button with this text or label."""
        script = """const found = document.querySelectorAll(
            `${arguments[0]} button, ${arguments[0]} summary`);
            const named = (n) => (n.innerText || n.textContent).trim() === arguments[1]
            || n.getAttribute('aria-label') === arguments[1];
            return [...found].filter((n) => n.offsetParent !== null && named(n)).pop()"""
        return self.until(lambda: self.js(script, within, label), f"a button {label!r}")

    def click(self, label: str, within: str = "body") -> None:
        from selenium.common.exceptions import StaleElementReferenceException

        for _ in range(20):  # the page may draw the button again in between
            node = self.button(label, within)
            try:
                self.js("arguments[0].scrollIntoView({block: 'center'})", node)
                node.click()
                return
            except StaleElementReferenceException:
                time.sleep(0.05)
        raise AssertionError(f"the button {label!r} does not stay")

    def send(self, text: str) -> None:
        area = self.one("#composer-text")
        area.clear()
        area.send_keys(text.replace("\n", "\ue008\ue007\ue000"))  # Shift+Enter
        area.send_keys("\ue007")

    def ask(self, text: str) -> str:
        """Sends a message; returns the text of the page after its answer."""
        before = len(self.all("article.user"))
        self.send(text)
        self.until(lambda: len(self.all("article.user")) > before, "the message")
        self.idle()
        return self.text("article:last-of-type .body")

    def idle(self) -> None:
        self.until(
            lambda: self.js(
                "return document.getElementById('stop').hidden"
                " && !document.querySelector('.cursor')"
            ),
            "the end of the answer",
        )

    def errors(self) -> list[str]:
        """Returns the errors of the browser's console since the last call."""
        return [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if entry["level"] == "SEVERE"
        ]

    def requests(self) -> list[str]:
        """Returns the URLs that were requested since the last call."""
        import json

        found = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(message["params"]["request"]["url"])
        return found

    def serious_findings(self) -> list:
        """Returns the serious and critical findings of axe-core on what is shown."""
        from axe_selenium_python import Axe

        self.driver.execute_cdp_cmd("Page.setBypassCSP", {"enabled": True})
        axe = Axe(self.driver)
        axe.inject()
        return [
            (found["id"], [node["target"] for node in found["nodes"]][:5])
            for found in axe.run()["violations"]
            if found["impact"] in ("serious", "critical")
        ]

    def size(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def picture(self, path: pathlib.Path) -> None:
        self.driver.save_screenshot(str(path))


@contextlib.contextmanager
def browser(folder: pathlib.Path):
    """Opens a browser with an empty profile in `folder` within the block."""
    binary, driver_path = chromium()
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in _FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={folder}/profile")
    options.add_argument("--window-size=1280,900")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(executable_path=driver_path)
    )
    try:
        yield Browser(driver)
    finally:
        driver.quit()
