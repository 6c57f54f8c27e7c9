"""The JSON beside an engine, the kernels in it, and the cache."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from ltx2rt.bundle.engine_file import kernels_in, read_info, sidecar_of
from ltx2rt.cli.inspect import engine_text, inspect_engine
from ltx2rt.errors import BundleError, OptionError
from ltx2rt_export.engines.cache import EngineCache, cache_key
from tests.unit.fake_tensorrt import VERSION, write_engine

HASH = "0x" + "ab" * 16
SOURCE = "".join(
    f'extern "C" __global__ void {name}_{HASH}_com(\n  float* x) {{ }}\n'
    for name in (
        "_gemm_mha_v2",
        "_gemm_mha_v2",
        "__myl_Tran",
        "__myl_TranMulAdd",
        "__myl_MaxrSubExpSum",
        "__myl_ReshAdd",
    )
).encode()


def test_kernels_are_counted_by_what_they_do(tmp_path: Path) -> None:
    path = tmp_path / "x.engine"
    path.write_bytes(b"\0binary" + SOURCE + b"_gemm_mha_v2 in a table\0")
    report = kernels_in(path, "tensorrt-rtx", VERSION)
    assert (report.kernels, report.fused_attentions) == (6, 2)
    assert (report.stray_transposes, report.unfused_softmax) == (1, 1)
    assert report.names["_gemm_mha_v2"] == 2


def test_kernels_of_other_versions_are_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "x.engine"
    path.write_bytes(SOURCE)
    assert not kernels_in(path, "tensorrt-rtx", "1.8.0.1").known
    assert not kernels_in(path, "tensorrt", VERSION).known


def test_inspection_flags_what_is_not_fused(tmp_path: Path) -> None:
    digest = hashlib.sha256(SOURCE).hexdigest()
    path = write_engine(tmp_path, precision="bf16", attentions=2, engine_sha256=digest)
    path.write_bytes(SOURCE)
    report = inspect_engine(path)
    assert report["attentions"] == 4  # two for each of two buckets
    assert report["findings"] == [
        "2 of 4 attentions are not fused",
        "1 softmax kernels write attention logits out",
        "1 kernels only transpose",
    ]
    text = engine_text(report)
    for part in ("sm89, sm120", "bucket small: B 1..4 (2)", "fused: 2 of 4", "input x float32"):
        assert part in text


def test_an_engine_without_its_json_is_refused(tmp_path: Path) -> None:
    path = write_engine(tmp_path)
    assert read_info(path).component == "toy"
    path.write_bytes(b"enginf")  # as long, but for one byte the same
    with pytest.raises(BundleError, match="is not the engine"):
        inspect_engine(path)
    data = json.loads(sidecar_of(path).read_text())
    sidecar_of(path).write_text(json.dumps({**data, "speed": 1, "targets": 3}))
    with pytest.raises(BundleError, match="2 problems") as error:
        read_info(path)
    assert "'speed'" in str(error.value)
    sidecar_of(path).write_text("{")
    with pytest.raises(BundleError, match="cannot be read"):
        read_info(path)
    sidecar_of(path).unlink()
    with pytest.raises(BundleError, match=r"has no toy\.engine\.json beside it"):
        read_info(path)


def test_cache_keeps_whole_engines_only(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "cache")
    key = cache_key({"graph": "a", "targets": ("sm89",)})
    assert key != cache_key({"graph": "a", "targets": ("sm120",)})
    assert cache.find(key) is None
    digest = hashlib.sha256(b"engine").hexdigest()
    with cache.work() as work:
        engine = write_engine(work, cache_key=key, engine_sha256=digest)
        cache.put(engine, read_info(engine))
    found = cache.find(key)
    assert found is not None
    assert found.component == "toy"
    assert not list((tmp_path / "cache/engines").glob(".build-*"))
    cache.path(key).write_bytes(b"engin")  # cut short by a full disk
    assert cache.find(key) is None


def test_cache_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match="--cache-dir"):
        EngineCache(tmp_path / "file")
