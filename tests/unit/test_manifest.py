"""The manifest is read strictly, and every problem is reported at once."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltx2rt import plain_data
from ltx2rt.bundle.load_weights import weight_problems
from ltx2rt.bundle.manifest import (
    BuildInputs,
    Place,
    Tensor,
    WeightEncoding,
    WeightRef,
    bundle_id,
    content_id,
    read_manifest,
    write_manifest,
)
from ltx2rt.errors import BundleError
from tests.unit.manifests import ENTRY, MANIFEST

#: the same with a quantised weight: 4-bit codes, two scales
ENCODED = WeightRef(
    source=0,
    dtype="uint8",
    shape=(2, 16),
    offset=100,
    length=16,
    encoding=WeightEncoding(
        format="nvfp4",
        shape=(2, 8),
        group=16,
        parts={
            "scale": Place(source=0, dtype="float8_e4m3fn", shape=(128, 4), offset=116, length=512),
            "tensor_scale": Place(source=0, dtype="float32", shape=(), offset=628, length=4),
        },
    ),
)
ENCODED_MANIFEST = dataclasses.replace(
    MANIFEST,
    sources=(dataclasses.replace(MANIFEST.sources[0], bytes=640),),
    components={"x": dataclasses.replace(ENTRY, layers=({"w": ENCODED},))},
)
ENCODED_MANIFEST = dataclasses.replace(ENCODED_MANIFEST, bundle_id=bundle_id(ENCODED_MANIFEST))


def changed(tmp_path: Path, change: Any) -> Path:
    write_manifest(MANIFEST, tmp_path)
    path = tmp_path / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return tmp_path


def test_plain_weights_say_nothing_of_encodings(tmp_path: Path) -> None:
    """Bundles of plain weights are written, and named, as before quantised ones existed."""
    write_manifest(MANIFEST, tmp_path)
    assert "encoding" not in (tmp_path / "manifest.json").read_text()
    write_manifest(ENCODED_MANIFEST, tmp_path)
    assert read_manifest(tmp_path) == ENCODED_MANIFEST
    assert weight_problems(ENCODED_MANIFEST) == []


def test_round_trip(tmp_path: Path) -> None:
    write_manifest(MANIFEST, tmp_path)
    assert read_manifest(tmp_path) == MANIFEST
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_all_problems_are_listed(tmp_path: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["surprise"] = 1
        data["model"]["audio_bins"] = "many"
        del data["components"]["x"]["graph"]
        data["components"]["x"]["layers"][1]["w"]["offset"] = None

    with pytest.raises(BundleError) as error:
        read_manifest(changed(tmp_path, change))
    text = str(error.value)
    for part in ("'surprise'", "audio_bins is 'many'", "lacks 'graph'", "layers[1].w.offset"):
        assert part in text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Where every value of a JSON document lies."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = [path] if path else []
    if isinstance(value, dict | list):
        for key, item in inner:
            found += places(item, (*path, key)) if isinstance(item, dict | list) else [(*path, key)]
    return found


DOCUMENT = json.loads(json.dumps(dataclasses.asdict(ENCODED_MANIFEST)))


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(places(DOCUMENT)), JSON, st.sampled_from(["set", "drop", "add"]))
def test_no_edit_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, place: tuple, value: Any, way: str
) -> None:
    """One value of the manifest is another, is missing, or has company: it is refused, or what is
    read writes and reads alike.
    """
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    folder.mkdir(exist_ok=True)
    data = json.loads(json.dumps(DOCUMENT))
    parent = data
    for key in place[:-1]:
        parent = parent[key]
    if way == "set":
        parent[place[-1]] = value
    elif way == "drop":
        del parent[place[-1]]
    elif isinstance(parent, dict):
        parent["surprise"] = value
    with contextlib.suppress(AttributeError, KeyError, TypeError):
        data["bundle_id"] = content_id(data)
    (folder / "manifest.json").write_text(json.dumps(data))
    try:
        manifest = read_manifest(folder)
    except BundleError:
        return
    weight_problems(manifest)
    write_manifest(manifest, folder)  # what was left out is written, and so named
    written = dataclasses.replace(manifest, bundle_id=bundle_id(manifest))
    assert read_manifest(folder) == written


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 3000), st.integers(0, 255))
def test_no_damage_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    content = bytearray(json.dumps(DOCUMENT).encode())
    content[position % len(content)] = value
    for data in (content, content[: position % len(content)]):
        (folder / "manifest.json").write_bytes(data)
        try:
            read_manifest(folder)
        except BundleError:
            pass


def test_a_manifest_that_was_changed_is_refused(tmp_path: Path) -> None:
    """Its id names its content; a file that moved is none of it."""

    def change(data: dict[str, Any]) -> None:
        data["model"]["time_scale"] = 9

    with pytest.raises(BundleError, match="changed since the build"):
        read_manifest(changed(tmp_path, change))

    def move(data: dict[str, Any]) -> None:
        data["sources"][0]["path"] = "/elsewhere"

    assert read_manifest(changed(tmp_path, move)).sources[0].path == "/elsewhere"


@pytest.mark.parametrize("schema", [None, 0, 2, "1"])
def test_another_schema_is_refused(tmp_path: Path, schema: Any) -> None:
    with pytest.raises(BundleError, match="schema"):
        read_manifest(changed(tmp_path, lambda data: data.update(schema=schema)))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100000])
def test_broken_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        read_manifest(tmp_path)


def test_no_bundle_says_how_to_make_one(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(BundleError, match="ltx2rt build"):
            read_manifest(folder)


def test_id_names_content_not_places() -> None:
    moved = dataclasses.replace(
        MANIFEST,
        sources=(dataclasses.replace(MANIFEST.sources[0], path="/elsewhere.safetensors"),),
        build=BuildInputs(checkpoint="/elsewhere.safetensors"),
    )
    other = dataclasses.replace(
        MANIFEST, components={"x": dataclasses.replace(ENTRY, graph_sha256="3" * 64)}
    )
    assert bundle_id(moved) == bundle_id(MANIFEST) != bundle_id(other)


def test_rebuild_command_names_every_file() -> None:
    command = MANIFEST.build.command()
    assert command == (
        "ltx2rt build --checkpoint /weights/a.safetensors --spatial-upsampler /u.safetensors "
        "--lora /l.safetensors:0.5"
    )


def test_type_hints_are_resolved_once_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real manifest has thousands of entries: resolving them anew was most of opening it."""
    plain_data._HINTS.clear()
    asked: list[type[Any]] = []
    resolve = typing.get_type_hints

    def counting(kind: type[Any]) -> dict[str, Any]:
        asked.append(kind)
        return resolve(kind)

    monkeypatch.setattr(plain_data.typing, "get_type_hints", counting)
    entries = [{"name": f"t{i}", "dtype": "float32", "shape": [1]} for i in range(50)]
    for entry in entries:
        assert plain_data.from_plain(Tensor, entry, "a tensor").shape == (1,)
    assert asked == [Tensor]
