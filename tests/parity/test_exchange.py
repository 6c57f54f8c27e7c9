"""A bundle is replaced without its name ever being gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltx2rt_export import bundle as export
from ltx2rt_export.exchange import exchange
from ltx2rt_export.resume import restore_old


def folder(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "manifest.json").write_text(text)
    return path


def test_two_folders_change_places(tmp_path: Path) -> None:
    one, other = folder(tmp_path / "a", "1"), folder(tmp_path / "b", "2")
    assert exchange(one, other)
    assert (one / "manifest.json").read_text() == "2"
    with pytest.raises(FileNotFoundError):
        exchange(one, tmp_path / "absent")


@pytest.mark.parametrize("can", [True, False])
def test_the_new_bundle_takes_the_place_of_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can: bool
) -> None:
    if not can:
        monkeypatch.setattr(export, "exchange", lambda one, other: False)
    target = folder(tmp_path / "b", "old")
    (tmp_path / "link").symlink_to("b")
    export._put_in_place(folder(tmp_path / ".b.01234567.part", "new"), tmp_path / "link")
    assert (target / "manifest.json").read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "link"]


def test_an_old_bundle_without_its_name_gets_it_back(tmp_path: Path) -> None:
    """Killed between two renames, where systems cannot exchange."""
    folder(tmp_path / ".b.01234567.part.old", "old")
    folder(tmp_path / ".bb.01234567.part.old", "another's")
    assert restore_old(tmp_path / "b")
    assert (tmp_path / "b/manifest.json").read_text() == "old"
    folder(tmp_path / ".b.76543210.part.old", "older")
    assert not restore_old(tmp_path / "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".bb.01234567.part.old", "b"]
