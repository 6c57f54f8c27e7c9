"""The long runs only when somebody asks for them."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "fuzz" in str(config.getoption("markexpr")):
        return
    reason = pytest.mark.skip(reason="minutes of hostile input: pytest -m fuzz tests/fuzz")
    for item in items:
        if item.get_closest_marker("fuzz") is not None:
            item.add_marker(reason)
