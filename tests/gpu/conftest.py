"""Fixtures of the tests that need a GPU."""

from tests.parity.demo_bundle import demo_bundle

__all__ = ["demo_bundle"]
