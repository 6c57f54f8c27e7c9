"""The transformer over engines that leave tensors on a device gives what it gives over arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np

from ltx2rt.components.transformer import Perturbations, Transformer
from ltx2rt.engine import (
    Array,
    Engine,
    EngineBase,
    EngineSpec,
    KeepingEngine,
    Kept,
    check_inputs,
)
from ltx2rt.weights.safetensors import convert
from ltx2rt_export.component import Component
from ltx2rt_export.modules.transformer import (
    transformer_block,
    transformer_head,
    transformer_tail,
)
from ltx2rt_export.onnx import with_dtype
from ltx2rt_export.reference import TorchEngine, load_weights
from tests.parity.tiny_transformer import METADATA, inputs, tiny_config, write_checkpoint
from tests.tolerances import BF16_BOUNDARY


class Keeping(EngineBase):
    """An engine whose outputs lie in a table, each until its second call after that."""

    addresses = count(1)

    def __init__(self, engine: Engine, table: dict[int, Array], uploads: list[str]) -> None:
        self._engine, self._table, self._uploads = engine, table, uploads
        self._alive: list[list[int]] = []

    @property
    def spec(self) -> EngineSpec:
        return self._engine.spec

    def __call__(self, tensors: Mapping[str, Array | Kept]) -> dict[str, Array]:
        return self._engine(self._arrays(tensors))

    def place(self, tensors: Mapping[str, Array]) -> dict[str, Kept]:
        self._uploads += tensors
        return {name: self._put(array) for name, array in tensors.items()}

    def keep(self, tensors: Mapping[str, Array | Kept]) -> dict[str, Kept]:
        out = {n: self._put(np.array(a)) for n, a in self(tensors).items()}
        self._alive.append([k.address for k in out.values()])
        if len(self._alive) > 2:
            for address in self._alive.pop(0):
                del self._table[address]
        return out

    def _put(self, array: Array) -> Kept:
        kept = Kept(array.shape, array.dtype, next(self.addresses))
        self._table[kept.address] = array
        return kept

    def _arrays(self, tensors: Mapping[str, Array | Kept]) -> dict[str, Array]:
        names = {s.name for s in self.spec.inputs}
        found = {}
        for name, value in tensors.items():
            if isinstance(value, Kept):
                found[name] = self._table[value.address]
            else:
                found[name] = value
                self._uploads += [name] * (name in names)
        return found


class In16Bits(EngineBase):
    """A component in float32 whose boundary has the dtypes of its bfloat16 graph."""

    def __init__(self, part: Component) -> None:
        self._engine = TorchEngine(part)
        outputs = tuple(replace(s, dtype="bfloat16") for s in self._engine.spec.outputs)
        self.spec = EngineSpec(part.name, with_dtype(part, "bfloat16").inputs, outputs)

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        check_inputs(self.spec, tensors)
        narrow = {s.name for s in self.spec.inputs if s.dtype == "bfloat16"}
        wide = {
            n: convert(a, "bfloat16", "float32", n) if n in narrow else a
            for n, a in tensors.items()
        }
        out = self._engine(wide)
        return {n: convert(a, "float32", "bfloat16", n) for n, a in out.items()}


def test_a_16_bit_boundary_runs_with_tensors_on_the_device(tmp_path: Path) -> None:
    config = tiny_config("2.3")
    tensors = write_checkpoint(tmp_path / "t.safetensors", config)
    parts = [m(METADATA, tensors) for m in (transformer_head, transformer_block, transformer_tail)]
    layers = [load_weights(layer, frozenset()) for layer in parts[1].layers]
    table: dict[int, Array] = {}
    narrow = [Keeping(In16Bits(part), table, []) for part in parts]
    kept = Transformer(*narrow, layers, parts[1].options)
    plain = Transformer(*(TorchEngine(part) for part in parts), layers, parts[1].options)
    given = inputs(config)
    found, expected = (t(given["video"], given["audio"]) for t in (kept, plain))
    for mine, theirs in zip(found, expected, strict=True):
        assert mine is not None
        assert theirs is not None
        error = np.sqrt(np.mean((mine - theirs) ** 2) / np.mean(theirs**2))
        assert 0 < error < BF16_BOUNDARY.bound


def test_tensors_that_stay_on_the_device_change_nothing(tmp_path: Path) -> None:
    config = tiny_config("2.3")
    tensors = write_checkpoint(tmp_path / "t.safetensors", config)
    makers = (transformer_head, transformer_block, transformer_tail)
    parts = [make(METADATA, tensors) for make in makers]
    layers = [load_weights(layer, frozenset()) for layer in parts[1].layers]
    table: dict[int, Array] = {}
    uploads: list[str] = []
    keeping = [Keeping(TorchEngine(part), table, uploads) for part in parts]
    assert all(isinstance(engine, KeepingEngine) for engine in keeping)
    plain = Transformer(*(TorchEngine(part) for part in parts), layers, parts[1].options)
    kept = Transformer(*keeping, layers, parts[1].options)
    given = inputs(config)
    skips = Perturbations().and_skip("video_self", blocks=[1])
    for perturbations in (None, skips):
        expected = plain(given["video"], given["audio"], perturbations)
        uploads.clear()
        found = kept(given["video"], given["audio"], perturbations)
        for mine, theirs in zip(found, expected, strict=True):
            assert mine is not None
            assert theirs is not None
            np.testing.assert_array_equal(mine, theirs)
        assert uploads.count("video_rope_cos") == 1  # once, not once a layer
        assert "video_hidden" not in uploads
