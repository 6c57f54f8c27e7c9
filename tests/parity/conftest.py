"""Fixtures of the parity tests."""

from __future__ import annotations

from tests.parity.demo_bundle import demo_bundle
from tests.parity.keyframe_bundle import keyframe_bundle

__all__ = ["demo_bundle", "keyframe_bundle"]
