"""The safetensors reader and writer, against the official package and against broken files."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltx2rt.errors import CheckpointError, InternalError
from ltx2rt.weights import safetensors_writer
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile, convert, float32_to_bfloat16
from ltx2rt.weights.safetensors_writer import bfloat16, write_safetensors

official = pytest.importorskip("safetensors.numpy")


def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "half": rng.standard_normal((3, 5)).astype(np.float16),
        "single": rng.standard_normal((2, 3, 4)).astype(np.float32),
        "long": rng.integers(-5, 5, (7,)),
        "bytes": rng.integers(0, 255, (9,), dtype=np.uint8),
        "flags": np.array([True, False, True]),
        "scalar": np.array(2.5, dtype=np.float32),
        "empty": np.zeros((0, 4), dtype=np.float32),
    }


def raw_file(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def test_official_package_reads_what_we_write(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", tensors(), {"note": "ü"})
    read = official.load_file(tmp_path / "a.safetensors")
    assert read.keys() == tensors().keys()
    for name, want in tensors().items():
        assert read[name].dtype == want.dtype
        np.testing.assert_array_equal(read[name], want)
    assert SafetensorsFile(tmp_path / "a.safetensors").metadata == {"note": "ü"}


def test_layout_is_the_official_one(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "ours", tensors())
    official.save_file(tensors(), tmp_path / "theirs")
    ours, theirs = SafetensorsFile(tmp_path / "ours"), SafetensorsFile(tmp_path / "theirs")
    assert ours.file_bytes == theirs.file_bytes
    assert ours.data_offset == theirs.data_offset
    maps = MappedFiles()
    assert all(maps.raw(entry).flags.aligned for entry in ours.values())


def test_we_read_what_the_official_package_writes(tmp_path: Path) -> None:
    official.save_file(tensors(), tmp_path / "b.safetensors", {"k": "v"})
    file, maps = SafetensorsFile(tmp_path / "b.safetensors"), MappedFiles()
    for name, want in tensors().items():
        got = maps.raw(file[name])
        assert got.shape == want.shape
        np.testing.assert_array_equal(got, want)
        assert got.size == 0 or not got.flags.writeable


def test_bfloat16_rounds_to_nearest_even_and_keeps_shape(tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.random.default_rng(1).standard_normal(4096).astype(np.float32)
    special = np.array([np.inf, -np.inf, 0.0, -0.0, 3.4e38, 1e-40], dtype=np.float32)
    values = np.concatenate([values, special])
    want = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    np.testing.assert_array_equal(float32_to_bfloat16(values), want)
    assert np.isnan(convert(float32_to_bfloat16(np.array(np.nan)), "bfloat16", "float32", "x"))
    assert float32_to_bfloat16(np.array(1.0, np.float32)).shape == ()
    path = tmp_path / "c.safetensors"
    write_safetensors(path, {"w": bfloat16(values.reshape(2, -1)), "s": bfloat16(np.array(0.5))})
    file, maps = SafetensorsFile(path), MappedFiles()
    np.testing.assert_array_equal(maps.raw(file["w"]).ravel(), want)
    assert file["w"].dtype == "bfloat16"
    assert maps.load(file["s"], "float32") == np.float32(0.5)


def test_streamed_chunks_equal_one_array(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    chunks = (values[i : i + 1] for i in range(4))
    write_safetensors(
        tmp_path / "s",
        {"a": ("float32", (4, 6), chunks), "b": ("uint8", (3,), [b"ab", memoryview(b"c")])},
    )
    read = official.load_file(tmp_path / "s")
    np.testing.assert_array_equal(read["a"], values)
    assert read["b"].tobytes() == b"abc"


@pytest.mark.parametrize("chunks", [[b"12"], [b"123456"], [np.zeros(2, np.int16)]])
def test_wrong_data_leaves_nothing_behind(tmp_path: Path, chunks: list) -> None:
    with pytest.raises(InternalError):
        write_safetensors(tmp_path / "x", {"a": ("int32", (1,), chunks)})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "full.safetensors"
    path.write_bytes(b"old")

    def chunks():
        yield np.zeros(4, np.float32)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(CheckpointError, match="No space left on device"):
        write_safetensors(path, {"a": ("float32", (8,), chunks())})
    usage = type("usage", (), {"free": 10})
    monkeypatch.setattr(safetensors_writer.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match=r"needs \d+ bytes: No space left"):
        write_safetensors(path, {"a": np.zeros(100, np.float32)})
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file or directory"):
        write_safetensors(tmp_path / "no" / "x", {"a": np.zeros(1, np.float32)})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"abc", "is a text file"),
        (b"\xff\x01\x02", "only 3 bytes"),
        (b"\xff" * 16, "header length reads"),
        ((10**12).to_bytes(8, "little"), "header length reads"),
        ((50_000_000).to_bytes(8, "little") + b"{}", "truncated"),
        ((4).to_bytes(8, "little") + b"nope", "not JSON"),
        ((2).to_bytes(8, "little") + b"[]", "not JSON"),
        ((3).to_bytes(8, "little") + b'"\xff"', "not JSON"),
        ((200_000).to_bytes(8, "little") + b"[" * 200_000, "not JSON"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        SafetensorsFile(path)


@pytest.mark.parametrize(
    "entry",
    [
        None, 3, [], {}, {"dtype": "F32"},
        {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [10**30], "data_offsets": [0, 4 * 10**30]},
        {"dtype": "F32", "shape": [float("inf")], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2**70, 0], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [0] * 100, "data_offsets": [0, 0]},
    ],
)  # fmt: skip
def test_bad_entries_are_refused(tmp_path: Path, entry: object) -> None:
    header = json.dumps({"weight": entry}).encode()
    with pytest.raises(CheckpointError):
        SafetensorsFile(raw_file(tmp_path / "bad", header, bytes(4)))


def test_names_must_be_unique(tmp_path: Path) -> None:
    entry = b'"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    with pytest.raises(CheckpointError, match="a name occurs twice"):
        SafetensorsFile(raw_file(tmp_path / "bad", b"{" + entry + b", " + entry + b"}", bytes(4)))


def test_pipes_are_refused_before_they_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="not a file but a pipe or device"):
        SafetensorsFile(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="not a file but a pipe or device"):
        SafetensorsFile("/dev/zero")


@pytest.mark.parametrize("metadata", [[1], {"a": 1}, "text", {"a": None}])
def test_bad_metadata_is_refused(tmp_path: Path, metadata: object) -> None:
    header = json.dumps({"__metadata__": metadata}).encode()
    with pytest.raises(CheckpointError, match="metadata"):
        SafetensorsFile(raw_file(tmp_path / "bad", header))


@pytest.mark.parametrize("path", ["missing", "nul\0byte"])
def test_unreadable_paths_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(CheckpointError, match="cannot read"):
        SafetensorsFile(tmp_path / path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=12), children, max_size=4)
    ),
    max_leaves=12,
)
entries = st.dictionaries(
    st.sampled_from(["dtype", "shape", "data_offsets"]),
    st.sampled_from(["F32", "BF16", "Q4"])
    | st.lists(st.integers(-2, 2**70), max_size=4)
    | json_values,
)


@given(
    st.binary(max_size=200)
    | st.dictionaries(st.text(max_size=12) | st.just("__metadata__"), entries | json_values).map(
        lambda header: json.dumps(header).encode()
    )
)
def test_no_header_raises_anything_else(tmp_path_factory: pytest.TempPathFactory, header) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    try:
        file = SafetensorsFile(raw_file(path, header, bytes(64)))
    except CheckpointError:
        return
    maps = MappedFiles()
    for entry in file.values():
        assert maps.raw(entry).shape == entry.shape
    maps.close()
