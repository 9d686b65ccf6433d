"""A server over tiny random weights, and a browser that shows its page."""

from pathlib import Path

import pytest
from serving import CARD, serving


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks the tests of this folder as slow: a browser takes seconds for what a function does in milliseconds."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def browser():
    from browsing import CHROMIUM
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def served(ascii_run):
    from browsing import META

    CARD["meta"].update(META)
    with serving(ascii_run) as served:
        yield served


@pytest.fixture
def context(browser):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield context
    context.close()


@pytest.fixture
def page(context, served):
    from browsing import open_page

    faults = []
    yield open_page(context, served.url, faults)
    assert not faults
