"""A real browser for tests: headless Chromium whose pages are watched."""

import os
import random
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Playwright, Route, sync_playwright

_COMMANDS = ("chromium", "chromium-browser", "google-chrome")
# No calls home, so that what a page asks for is the page's own doing.
OPTIONS = (
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@dataclass
class WatchedPage:
    """A page, with what went wrong on it and what it asked of the network.

    Attributes:
        page: Playwright's.
        errors: what the console showed as an error, and exceptions that nothing caught.
        outside: the hosts other than this machine that it asked; each got an empty answer.
    """

    page: Page
    errors: list[str] = field(default_factory=list)
    outside: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.page.on("console", self._note_message)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.route("**/*", self._answer)

    def _note_message(self, message) -> None:
        if message.type == "error":
            self.errors.append(f"{message.text} ({message.location.get('url')})")

    def _answer(self, route: Route) -> None:
        host = urlsplit(route.request.url).hostname
        # A file or inlined data has no host.
        if host in (None, "127.0.0.1", "localhost"):
            route.continue_()
        else:
            self.outside.add(host)
            route.fulfill(status=200, body="")


def chromium_path(playwright: Playwright) -> str | None:
    """Return the path of a Chromium: $CHROMIUM, the system's, or the one Playwright installed."""
    installed = (shutil.which(command) for command in _COMMANDS)
    candidates = (os.environ.get("CHROMIUM"), *installed, playwright.chromium.executable_path)
    return next((path for path in candidates if path and Path(path).is_file()), None)


def free_port() -> int:
    """Return a port that nothing listens on; kedro-viz takes none above 49151."""
    while True:
        port = random.randrange(20_000, 49_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Headless Chromium; the test is skipped, and says what to do, where there is none."""
    with sync_playwright() as playwright:
        path = chromium_path(playwright)
        if path is None:
            pytest.skip("no Chromium for the browser tests: run `make chromium`")
        browser = playwright.chromium.launch(executable_path=path, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Browser) -> Iterator[Callable[..., WatchedPage]]:
    """Return a function that opens a page at an address; options are those of a browser context.

    Once the test is done, no page may have shown an error.
    """
    opened: list[WatchedPage] = []

    def open_at(address: str, **options) -> WatchedPage:
        context = chromium.new_context(**{"viewport": {"width": 1600, "height": 1000}, **options})
        # A busy machine draws slowly.
        context.set_default_timeout(120_000)
        opened.append(WatchedPage(context.new_page()))
        opened[-1].page.goto(address)
        return opened[-1]

    yield open_at
    for watched in opened:
        watched.page.context.close()
        assert watched.errors == []
