"""The archive of exported graphs fills a cache and leaves what lies there alone."""

from __future__ import annotations

from pathlib import Path

from tests.kept_graphs import ARCHIVE, folder_of, graph_names, pack, unpack


def fill(cache: Path, **files: str) -> Path:
    folder_of(cache).mkdir(parents=True)
    for name, text in files.items():
        (folder_of(cache) / f"{name}.onnx").write_text(text)
        (folder_of(cache) / f"{name}.onnx.json").write_text(f"about {text}")
    return cache


def test_a_cache_is_packed_and_unpacked(tmp_path: Path) -> None:
    cache = fill(tmp_path / "a", one="1", two="22")
    (folder_of(cache) / "half.onnx.part").write_text("of another process")
    archives = [tmp_path / "a.tar.xz", tmp_path / "again.tar.xz"]
    assert [pack(cache, archive) for archive in archives] == [2, 2]
    assert archives[0].read_bytes() == archives[1].read_bytes()
    other = fill(tmp_path / "b", one="mine", three="3")
    unpack(other, archives[0])
    assert graph_names(other) == {"one.onnx", "two.onnx", "three.onnx"}
    assert (folder_of(other) / "one.onnx").read_text() == "mine"
    assert (folder_of(other) / "two.onnx.json").read_text() == "about 22"
    assert len(list(folder_of(other).iterdir())) == 6


def test_every_kept_graph_says_what_it_is(tmp_path: Path) -> None:
    unpack(tmp_path, ARCHIVE)
    names = graph_names(tmp_path)
    assert names
    assert {path.name for path in folder_of(tmp_path).iterdir()} == names | {
        f"{name}.json" for name in names
    }
