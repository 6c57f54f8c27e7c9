"""What is missing is installed from where ltx2rt itself came."""

from __future__ import annotations

import importlib.metadata
import json
from typing import Any

import pytest

from ltx2rt.install import install_hint


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, "pip install 'ltx2rt[exr]'"),
        (
            {"url": "file:///a%20b/c", "dir_info": {"editable": True}},
            "pip install -e '/a b/c[exr]'",
        ),
        ({"url": "file:///a/c", "dir_info": {}}, "pip install '/a/c[exr]'"),
        (
            {"url": "https://e.org/l.git", "vcs_info": {"vcs": "git", "commit_id": "12"}},
            "pip install 'ltx2rt[exr] @ git+https://e.org/l.git@12'",
        ),
        (
            {"url": "https://e.org/l.whl", "archive_info": {}},
            "pip install 'ltx2rt[exr] @ https://e.org/l.whl'",
        ),
    ],
)
def test_hints(
    origin: dict[str, Any] | None, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Installed:
        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return origin and json.dumps(origin)

    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: Installed())
    assert install_hint("exr") == command


def test_sources_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert install_hint("exr").endswith("[exr]'")
