"""Build one TensorRT-RTX engine: `python -m tests.parity.build_rtx GRAPH SM89`.

A process of its own, because a failed build spoils the next. Prints the dtypes that GEMMs read,
from the text of the engine.
"""

from __future__ import annotations

import re
import sys
from collections import Counter

import onnx
import tensorrt_rtx as trt

#: smallest, likely, largest of the block's symbols
SIZES = {"B": (1, 1, 1), "S": (8, 8, 8), "r": (1, 8, 64), "1_or_Tv": (1,) * 3, "1_or_Ta": (1,) * 3}
TOKENS = (1, 16, 64)


def build(path: str, target: str) -> bytes:
    """The engine, or exit with what TensorRT says."""
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    flag = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flag)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(path):
        raise SystemExit(str(parser.get_error(0)))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, target), 0)
    profile = builder.create_optimization_profile()
    for value in onnx.load(path).graph.input:
        dims = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        ranges = [(d,) * 3 if isinstance(d, int) else SIZES.get(d, TOKENS) for d in dims]
        if any(isinstance(d, str) for d in dims):
            profile.set_shape(value.name, *zip(*ranges, strict=True))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise SystemExit("build failed")
    return bytes(engine)


def gemm_operands(engine: bytes) -> Counter[tuple[str, str]]:
    """Types of both operands of every `fully_connected` in the engine's text: what it multiplies,
    and the weight. A name is defined anew in every part of the text, before its use.
    """
    types: dict[str, str] = {}
    found: Counter[tuple[str, str]] = Counter()
    for match in _LINES.finditer(engine):
        name, kind, left, right = (g and g.decode() for g in match.groups())
        if name:
            types[name] = kind
        else:
            found[types.get(left, "?"), types.get(right, "?")] += 1
    return found


#: a tensor and its type, or the two first inputs of a GEMM
_LINES = re.compile(
    rb'tensor=\{ (?:alignment|base)=[^\n]*? name="([^"\n]+)"[^\n]*? type=(\w+) \}'
    rb'|fully_connected=\{ name="[^\n]*? input=\{"([^"\n]+)" "([^"\n]+)"'
)


if __name__ == "__main__":
    first: Counter[str] = Counter()
    for (left, _), count in gemm_operands(build(*sys.argv[1:])).items():
        first[left] += count
    print(dict(first))
