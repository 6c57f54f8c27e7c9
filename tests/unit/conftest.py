"""This tier needs no build-time package: a test that loads one fails, unless it was there before
(a run of all tiers in one process).
"""

from __future__ import annotations

import sys

import pytest

HEAVY = frozenset({"torch", "onnx", "onnxscript", "transformers", "triton", "diffusers"})

_before = pytest.StashKey[frozenset[str]]()


def loaded() -> frozenset[str]:
    return HEAVY & set(sys.modules)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[_before] = loaded()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    new = loaded() - item.stash[_before]
    assert not new, f"{item.nodeid} loaded {', '.join(sorted(new))}: it belongs in tests/parity"
