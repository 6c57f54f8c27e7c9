"""What a kernel is: the operator's tensors, its parameters in ABI order, its tuned configurations.

The order of kernel parameters is TensorRT's: pointers of the inputs, 32-bit integers, pointers of
the outputs; everything else is a compile-time constant. So the same kernel serves an ahead-of-time
plugin and a launch of our own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ltx2rt_kernels.errors import KernelError

#: namespace of the TensorRT plugins and domain of the ONNX functions
DOMAIN = "ltx2rt"

#: dtype names, as Triton spells them, and their sizes in bytes
DTYPES = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8e4nv": 1, "i64": 8, "i32": 4}


#: largest E4M3 number
E4M3_MAX = 448.0

#: least maximum of a token that is quantised by itself: rows of zeros still get a scale
LEAST_TOKEN_AMAX = 1e-20

#: dtypes of activations that kernels ship for, by the name that graphs have for them
KERNEL_DTYPES = {"bfloat16": "bf16", "float16": "fp16"}

SIXTEEN_BIT = tuple(KERNEL_DTYPES.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A target of ahead-of-time compilation.

    `shared_limit` is what a block may have, in bytes: the least of the cards that run the artifact
    (code for 8.0 also runs on 8.6, which has 99 KiB).
    """

    name: str
    number: int
    shared_limit: int

    @property
    def target(self) -> str:
        """Name for ptxas; the `a` targets run on their own generation only."""
        return f"sm_{self.name}"


ARCHITECTURES = {
    a.name: a
    for a in (
        Architecture(name="80", number=80, shared_limit=99 * 1024),  # A100, RTX 30
        Architecture(name="89", number=89, shared_limit=99 * 1024),  # L4, L40S, RTX 40
        Architecture(name="90a", number=90, shared_limit=227 * 1024),  # H100, H200
        Architecture(name="100a", number=100, shared_limit=227 * 1024),  # B200
        Architecture(name="120a", number=120, shared_limit=99 * 1024),  # RTX 50
    )
}


#: those with E4M3 conversions
FP8_ARCHITECTURES = tuple(a.name for a in ARCHITECTURES.values() if a.number >= 89)

#: of a kernel that handles one row a block. Not timed; with 32 `adaln_modulate_quant` spills on
#: sm_120a.
VALUES_PER_THREAD = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One tensor of an operator.

    `dtype` is a name of `DTYPES` or a type variable of the operator (`"T"`); `shape` holds
    expressions of dimension names, `("B", "T", "H * Dh")`, packed row-major.
    """

    name: str
    dtype: str
    shape: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalarSpec:
    """A 32-bit integer argument, an expression of dimension names.

    A launch refuses values that are not multiples of `divisible_by`; of 16 the compiler knows.
    """

    name: str
    value: str
    divisible_by: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """An ONNX node, TensorRT plugin and kernel signature in one.

    Args:
        name: snake case, in artifact names.
        node: op type of the ONNX node and name of the plugin; never a standard op's name, because
            the TensorRT-RTX parser ignores the domain.
        package: folder that holds its kernel, reference and function body.
        inputs, outputs: in the order of the node.
        attributes: name to default, `int` or `float`; TensorRT appends a zero byte to strings.
        attribute_sizes: dimension names that an attribute gives.
    """

    name: str
    node: str
    package: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    attributes: Mapping[str, int | float] = field(default_factory=dict)
    attribute_sizes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Tuned choice for one architecture; `tiles` are constants of the kernel and of the grid."""

    num_warps: int
    num_stages: int = 1
    tiles: Mapping[str, int] = field(default_factory=dict)


def row_config(width: int) -> Config:
    """Configuration of a kernel that handles one row of `width`, a power of two, a block."""
    return Config(num_warps=max(1, width // (32 * VALUES_PER_THREAD)))


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSpec:
    """One compiled variant of an operator: types and constant sizes are fixed.

    Args:
        operator: what it computes.
        variant: letters, digits and dashes; unique within the operator.
        function: `module:name` of the Triton function.
        types: dtype of each type variable.
        sizes: dimension names that are constant, known to the kernel at compile time.
        attributes: the attribute values that it was compiled for.
        scalars: its integer arguments, between inputs and outputs.
        constexprs: further compile-time constants, by parameter name. A tensor that the variant
            does not have is `None` here.
        configs: architecture name to configuration; what is missing is not supported.
        grid: three expressions of dimension names, scalars and tiles.
        opcodes: architecture name to instruction prefixes that must appear in the machine code.
        head_dim: width of a head, where there are heads.
    """

    operator: Operator
    variant: str
    function: str
    types: Mapping[str, str]
    configs: Mapping[str, Config]
    grid: tuple[str, str, str]
    sizes: Mapping[str, int] = field(default_factory=dict)
    attributes: Mapping[str, int | float] = field(default_factory=dict)
    scalars: tuple[ScalarSpec, ...] = ()
    constexprs: Mapping[str, int | float | bool | str | None] = field(default_factory=dict)
    opcodes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    head_dim: int | None = None

    def __post_init__(self) -> None:
        unknown = sorted({*self.configs, *self.opcodes} - ARCHITECTURES.keys())
        if unknown:
            known = ", ".join(ARCHITECTURES)
            raise KernelError(
                f"{self.name}: unknown architecture {', '.join(unknown)}; known: {known}"
            )

    @property
    def name(self) -> str:
        """`<op>.<variant>`."""
        return f"{self.operator.name}.{self.variant}"

    def artifact_name(self, arch: str) -> str:
        """`<op>.<variant>.<arch>`: the stem of its files."""
        return f"{self.name}.{arch}"

    def dtype(self, tensor: TensorSpec) -> str:
        """Dtype of a tensor in this variant."""
        return self.types.get(tensor.dtype, tensor.dtype)
