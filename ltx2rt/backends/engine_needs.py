"""What an engine takes of a device besides weights, as the library says it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ltx2rt.backends.tensorrt_api import APIS, load, logger_of
from ltx2rt.bundle.buckets import Bucket, choose_bucket
from ltx2rt.bundle.engine_file import read_info
from ltx2rt.device.arena import aligned
from ltx2rt.engine import NUMPY_DTYPES, EngineSpec, TensorSpec
from ltx2rt.errors import EngineError

#: symbol of the summed ranks of LoRAs that are inputs: such inputs are weights of a layer
LORA_RANK = "r"


@dataclass(frozen=True, slots=True)
class EngineNeeds:
    """Over all profiles of an engine, at their largest sizes, or at given ones.

    Attributes:
        scratch: bytes of its activations.
        tensors: (name, dtype) -> bytes of an input or output.
        lora_inputs: bytes of the inputs that come with each layer's weights.
    """

    scratch: int
    tensors: dict[tuple[str, str], int]
    lora_inputs: int = 0


def engine_needs(
    path: Path, spec: EngineSpec, sizes: Sequence[Mapping[str, int]] = ()
) -> EngineNeeds:
    """Ask the library; a CUDA context is current.

    Args:
        sizes: by symbol, those that it will be given; none: all that it was built for.

    Raises:
        UnsupportedError, BundleError: see `TrtEngine`.
        EngineError: the library refuses the engine.
    """
    info = read_info(path)
    trt = load(info.backend)
    runtime = trt.Runtime(logger_of(info.backend))
    runtime.engine_host_code_allowed = info.version_compatible
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        said = " ".join((logger_of(info.backend).errors or ["no reason"])[-1].split())
        raise EngineError(f"{APIS[info.backend].label} cannot load {path}: {said}")
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    names = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
    scratch, tensors, lora = 0, dict[tuple[str, str], int](), 0
    cases: list[tuple[int, Mapping[str, int]]] = [(p, {}) for p in range(len(info.buckets))]
    if sizes:
        cases = [(choose_bucket(spec.component, info.buckets, given), given) for given in sizes]
    for profile, given in cases:
        bucket = info.buckets[profile]
        context = engine.create_execution_context(strategy)
        context.set_optimization_profile_async(profile, 0)
        for tensor in spec.inputs:
            shape = largest_shape(tensor, bucket, given)
            if tensor.name in names:
                context.set_input_shape(tensor.name, shape)
            count_tensor(tensors, tensor, shape)
        size = (
            context.update_device_memory_size_for_shapes()
            if given
            else engine.get_device_memory_size_for_profile_v2(profile)
        )
        scratch = max(scratch, int(size))
        lora = max(lora, sum(_bytes(t, largest_shape(t, bucket)) for t in _of_loras(spec)))
        for tensor in spec.outputs:
            count_tensor(tensors, tensor, tuple(context.get_tensor_shape(tensor.name)))
    return EngineNeeds(scratch, tensors, lora)


def largest_shape(
    tensor: TensorSpec, bucket: Bucket, given: Mapping[str, int] | None = None
) -> tuple[int, ...]:
    """A tensor's largest shape in a bucket, where no size of a symbol is given. What broadcasts
    (`1|Tv`) counts as 1 then: masks of every pair of tokens are rare, and count when a request has
    one.
    """
    known = given or {}
    return tuple(
        d
        if isinstance(d, int)
        else known[d]
        if d in known
        else 1
        if d.startswith("1|")
        else bucket.sizes[d][2]
        for d in tensor.shape
    )


def _of_loras(spec: EngineSpec) -> list[TensorSpec]:
    return [t for t in spec.inputs if LORA_RANK in t.shape]


def count_tensor(
    tensors: dict[tuple[str, str], int], tensor: TensorSpec, shape: tuple[int, ...]
) -> None:
    """Note the bytes of an input or output of this shape, where no larger one is noted; what comes
    with a layer's weights is left out.
    """
    if LORA_RANK not in tensor.shape:
        key = tensor.name, tensor.dtype
        tensors[key] = max(tensors.get(key, 0), _bytes(tensor, shape))


def _bytes(tensor: TensorSpec, shape: tuple[int, ...]) -> int:
    return aligned(math.prod(shape) * NUMPY_DTYPES[tensor.dtype].itemsize)
