"""Marks the tests in a browser."""

import pytest


def pytest_collection_modifyitems(items):
    """Marks them as slow: a browser takes seconds for what a function does in milliseconds."""
    for item in items:
        if item.path.match("watch/dashboard/test_page.py"):
            item.add_marker(pytest.mark.slow)
