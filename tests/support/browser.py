"""Pages opened in a real browser."""

import dataclasses
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, sync_playwright

_NAMES = ("chromium", "google-chrome", "chromium-browser")  # of Debian, the runners of GitHub, older Ubuntu
CHROMIUM = Path(next(filter(None, map(shutil.which, _NAMES)), "chromium"))


@dataclasses.dataclass
class Opened:
    """A page in the browser, with its requests and its console messages."""

    page: Page
    requests: list[str]
    complaints: list[str]

    def head(self, text: str) -> Locator:
        return self.page.get_by_role("columnheader").filter(has_text=re.compile(f"^{re.escape(text)}"))

    def rows(self) -> list[list[str]]:
        return [row.locator("td").all_inner_texts() for row in self.page.locator("section > .scroll tbody tr").all()]

    def gates(self) -> list[str]:
        return [row[0] for row in self.rows()]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


def open_file(browser: Browser, file: Path) -> Opened:
    page = browser.new_context(offline=True, viewport={"width": 1200, "height": 900}).new_page()
    opened = Opened(page, [], [])
    page.on("request", lambda request: opened.requests.append(request.url))
    page.on("console", lambda message: opened.complaints.append(message.text))
    page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    page.goto(file.as_uri())
    return opened
