"""One file of `shipped/graphs`: a component as JSON, and its graph in every dtype.

The whole is compressed: eight bytes say how long the JSON is, the graphs follow it. Constants that
can be computed are left out of the graphs; `tables_in` computes them when a graph is taken.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import onnx
from onnx import TensorProto

from ltx2rt.engine import TensorSpec
from ltx2rt.errors import InternalError
from ltx2rt.plain_data import from_plain, to_plain
from ltx2rt.weights.floats import as_dtype
from ltx2rt_export.modules.tables import Table

SCHEMA = 1

#: where the files lie
FOLDER = Path(__file__).with_name("graphs")

#: key of an initializer that `tables_in` computes
TABLE = "ltx2rt-table"

#: ONNX element type -> dtype name
FLOATS: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.FLOAT16: "float16",
}

#: an initializer below this size is stored
LEAST_TABLE_BYTES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ShippedGraph:
    """A graph in one dtype; fields as of `ExportedGraph` and its component.

    Attributes:
        digest: SHA-256 of the graph as it is stored, without computed constants.
        offset, length: of its bytes behind the JSON.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: tuple[str, ...]
    transposed: tuple[str, ...]
    digest: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShippedComponent:
    """What a file says about its component; fields as of `Component`.

    Attributes:
        facts: the part of the model's configuration that decides the component.
        shapes: weight -> its shape.
        layers: for every layer the weights, each as a role of `ModelFiles` and a tensor of it.
        sources: modules of the exporter that decide the graphs -> digests of their text.
        packages: versions that the graphs were exported with.
    """

    schema: int
    component: str
    facts: Mapping[str, Any]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    shapes: Mapping[str, tuple[int, ...]]
    layers: tuple[Mapping[str, tuple[str, str]], ...]
    repeated: bool
    weight_binding: Literal["initializer", "input"]
    options: Mapping[str, Any]
    sources: Mapping[str, str]
    packages: Mapping[str, str]
    graphs: Mapping[str, ShippedGraph] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Shipped:
    """A file that was read."""

    about: ShippedComponent
    data: bytes

    def model(self, dtype: str) -> onnx.ModelProto:
        """The graph in a dtype, complete.

        Raises:
            InternalError: nobody exported it in that dtype.
        """
        graph = self.about.graphs.get(dtype)
        if graph is None:
            raise InternalError(f"no {dtype} graph of {self.about.component} was shipped")
        stored = self.data[graph.offset : graph.offset + graph.length]
        return tables_in(onnx.load_model_from_string(stored))


def path_of(component: str, facts: Mapping[str, Any]) -> Path:
    """The file of a component with this configuration, whether it is there or not."""
    text = json.dumps(to_plain(facts), sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return FOLDER / f"{component}-{digest[:16]}.xz"


def read_shipped(path: Path) -> Shipped:
    """Read a file."""
    data = lzma.decompress(path.read_bytes())
    size = int.from_bytes(data[:8], "little")
    about = from_plain(ShippedComponent, json.loads(data[8 : 8 + size]), path.name)
    return Shipped(about, data[8 + size :])


def write_shipped(path: Path, about: ShippedComponent, graphs: bytes) -> None:
    """Write a file; the same content gives the same bytes."""
    text = json.dumps(to_plain(about), sort_keys=True, separators=(",", ":")).encode()
    data = len(text).to_bytes(8, "little") + text + graphs
    part = path.with_suffix(".part")
    part.write_bytes(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
    part.replace(path)


def tables_out(model: onnx.ModelProto, tables: list[Table]) -> onnx.ModelProto:
    """A copy without the values of constants that `tables` compute."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    large = [t for t in copy.graph.initializer if len(t.raw_data) >= LEAST_TABLE_BYTES]
    known = {
        (kind, _bytes(table, kind)): table
        for kind in {t.data_type for t in large}
        for table in tables
    }
    for tensor in large:
        if table := known.get((tensor.data_type, tensor.raw_data)):
            tensor.ClearField("raw_data")
            entry = tensor.external_data.add()
            entry.key = TABLE
            entry.value = json.dumps([table.function, to_plain(table.arguments)])
    return copy


def tables_in(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with the constants that `tables_out` left out."""
    for tensor in model.graph.initializer:
        entries = [e for e in tensor.external_data if e.key == TABLE]
        if entries:
            function, arguments = json.loads(entries[0].value)
            tensor.raw_data = _bytes(Table(function, arguments), tensor.data_type)
            del tensor.external_data[:]
    return model


def _bytes(table: Table, kind: int) -> bytes:
    dtype = FLOATS.get(kind)
    return b"" if dtype is None else as_dtype(table.values(), dtype).tobytes()
