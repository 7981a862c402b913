"""A Chromium that the system has, for tests of pages; none is downloaded."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
INSTALL = "no Chromium or Chrome here (apt-get install chromium, or its path in PDIFF_BROWSER)"


def find_browser() -> str | None:
    """Path of the system's browser, `None` where there is none."""
    names = [os.environ["PDIFF_BROWSER"]] if os.environ.get("PDIFF_BROWSER") else NAMES
    return next(filter(None, map(shutil.which, names)), None)


def require_browser() -> None:
    """Skip the tests of a module where there is no browser, or nothing that drives it."""
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    if find_browser() is None:
        pytest.skip(INSTALL, allow_module_level=True)


@contextmanager
def open_chromium():
    """A browser without a window.

    It runs an event loop in this thread: a fixture that opens it has the scope of a module, no more.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser())
        yield browser
        browser.close()


def serious_violations(page) -> list[str]:
    """What axe-core finds that is serious or critical, a line each with the first element that it is about."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response
    assert found["passes"], "nothing was checked"
    return [
        f"{rule['impact']} {rule['id']}: {rule['nodes'][0]['html'][:200]} ({len(rule['nodes'])} elements)"
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
    ]


def open_file(context, path: Path):
    """The page of a file, and a list of all that it asks for and all that its console says, which grows."""
    page, seen = context.new_page(), []
    page.on("request", lambda request: seen.append(request.url))
    page.on("console", lambda message: seen.append(message.text))
    page.on("pageerror", lambda error: seen.append(str(error)))
    page.goto(path.resolve().as_uri())
    return page, seen
