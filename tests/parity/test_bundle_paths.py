"""A manifest names files of its own folder; other places are not even opened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ltx2rt.bundle.bundle import open_bundle
from ltx2rt.errors import BundleError
from tests.parity.command_line import edited_bundle


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/dev/zero", "'/dev/zero' is not a file of the bundle"),
        ("graphs/../../secret", "is not a file of the bundle"),
        ("pipe", "is not a file"),
        ("graphs", "is not a file"),
        ("a\0b", "cannot be read"),
        ("x" * 5000, "cannot be read"),
        ("absent.onnx", "cannot be read (No such file or directory)"),
    ],
)
def test_path_tricks_are_refused(
    demo_bundle: Path, tmp_path: Path, name: str, message: str
) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["components"]["vocoder"]["graph"] = name
        manifest["tokenizer"] = name

    bundle = edited_bundle(demo_bundle, tmp_path / "b", edit)
    os.mkfifo(bundle / "pipe")
    with pytest.raises(BundleError) as error:
        open_bundle(bundle)
    text = str(error.value)
    assert "2 problems" in text
    assert text.count(message) == 2
    assert len(text) < 2000
