"""`ltx2rt verify` on engines as TensorRT makes them: 16-bit boundaries, sizes within buckets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltx2rt.bundle.buckets import Bucket
from ltx2rt.bundle.bundle import Bundle, open_bundle
from ltx2rt.bundle.loader import Loader
from ltx2rt.bundle.manifest import ComponentEntry, EngineEntry
from ltx2rt.config import RuntimeConfig
from ltx2rt.engine import Array, Engine, EngineBase, EngineSpec
from ltx2rt.weights.floats import as_dtype
from ltx2rt.weights.safetensors import convert
from ltx2rt_export.checkpoint import open_model
from ltx2rt_export.modules.transformer import transformer_tail
from ltx2rt_export.verify import allowed_sizes, verify_bundle

BUCKET = Bucket(name="64x64x9", sizes={"B": (1, 1, 1), "Tv": (40, 48, 64), "Ta": (1, 4, 9)})


class HalfEngine(EngineBase):
    """An engine whose floats are bfloat16 on both sides."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}

    @property
    def spec(self) -> EngineSpec:
        inner = self._engine.spec

        def halved(specs: Any) -> Any:
            return tuple(
                dataclasses.replace(s, dtype="bfloat16") if s.dtype == "float32" else s
                for s in specs
            )

        return EngineSpec(inner.component, halved(inner.inputs), halved(inner.outputs))

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        dtypes = {s.name: s.dtype for s in self.spec.inputs}
        given = {}
        for name, array in tensors.items():
            if dtypes[name] == "bfloat16":
                assert array.dtype == np.uint16, name
                array = convert(array, "bfloat16", "float32", name)
            given[name] = array
            self.shapes[name] = array.shape
        return {n: as_dtype(a, "bfloat16") for n, a in self._engine(given).items()}


def test_engines_get_their_dtypes_and_sizes(
    demo_bundle: Path, demo_model: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = open_model(**demo_model)
    component = transformer_tail(files.config("transformer"), files.tensors("transformer"))
    opened = open_bundle(demo_bundle)
    entry = with_engine(opened.component("transformer_tail"))
    assert allowed_sizes(component, entry)["Tv"] == max(40, min(component.trace["Tv"], 64))
    manifest = dataclasses.replace(opened.manifest, components={"transformer_tail": entry})
    bundle = Bundle(demo_bundle, manifest, ())
    made: list[HalfEngine] = []
    in_float32 = Loader(opened).engine

    def half(self: Loader, name: str, runtime: RuntimeConfig) -> HalfEngine:
        made.append(HalfEngine(in_float32(name, runtime)))
        return made[-1]

    monkeypatch.setattr(Loader, "engine", half)
    other = dataclasses.replace(component, name="vocoder")  # not in this bundle
    rungs = list(verify_bundle(bundle, [component, other]))
    assert {r.output for r in rungs} == {"video_velocity", "audio_velocity"}
    assert all(1e-4 < r.rel_rms < r.bound == 4e-2 for r in rungs)
    assert made[0].shapes["video_hidden"][1] in range(40, 65)


def with_engine(entry: ComponentEntry) -> ComponentEntry:
    """The entry as of a bundle with engines in bfloat16."""
    engine = EngineEntry(
        file="engines/x", sha256="0" * 64, bytes=1, backend="tensorrt-rtx",
        backend_version="1.7", targets=("sm89",), precision="bf16", weights="input",
        version_compatible=False, buckets=(BUCKET,),
    )  # fmt: skip
    return dataclasses.replace(entry, precision="bf16", engines=(engine,))
