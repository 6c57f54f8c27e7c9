"""The table of precisions: one row each, with all that the runtime knows about it.

What a build adds to the rows that quantise is `ltx2rt_export.quantize.rewrites`; "Add a precision"
in docs/architecture.md says what a new row needs.
"""

from __future__ import annotations

from dataclasses import dataclass

from ltx2rt.errors import OptionError
from ltx2rt.weights.codecs.engine_formats import FP8, INT4, INT8, NVFP4, EngineFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """One precision.

    Attributes:
        name: on the command line, in manifests and in the names of engines.
        dtype: of weights and activations that are not quantised.
        min_sm: lowest compute capability that runs it, times ten; 0 for any, and for a CPU.
        format: of the weights that it quantises; None where it quantises none.
        weight_bytes: of one weight in `format`, scales of groups included; else in `dtype`.
        text: the text encoder's layers may have it too.
        on_cpu: ONNX Runtime runs it on a CPU, with float32 for all that is not quantised.
        on_gpu: there are engines for GPUs.
        inside: on a CPU, its weights have to be inside engines: one a layer.
        stored: dtype in which transformer blocks take the weights of their linears, to compute in
            `dtype`; None: the same.
        tolerance: largest relative RMS error of a component's engine against float32 (`ltx2rt
            verify`): about twice what emulations of random models lose in their worst block.
    """

    name: str
    dtype: str
    min_sm: int
    format: EngineFormat | None = None
    weight_bytes: float
    text: bool = False
    on_cpu: bool = False
    on_gpu: bool = True
    inside: bool = False
    stored: str | None = None
    tolerance: float

    @property
    def on_onnxruntime(self) -> bool:
        """On a CPU, or in 16 bits on a GPU."""
        return self.on_cpu or self.format is None


PRECISIONS: dict[str, Precision] = {
    row.name: row
    for row in (
        Precision(
            name="fp32",
            dtype="float32",
            min_sm=0,
            weight_bytes=4,
            on_cpu=True,
            tolerance=1e-5,  # docs/debug_accuracy.md, rung 2
        ),
        Precision(
            name="bf16-wo",
            dtype="float32",
            min_sm=0,
            weight_bytes=2,
            on_cpu=True,
            on_gpu=False,
            stored="bfloat16",
            tolerance=1e-2,  # of a file in float32; one in bfloat16 loses nothing
        ),
        Precision(name="bf16", dtype="bfloat16", min_sm=80, weight_bytes=2, tolerance=4e-2),
        Precision(name="fp16", dtype="float16", min_sm=75, weight_bytes=2, tolerance=1e-2),
        Precision(
            name="fp8",
            dtype="bfloat16",
            min_sm=89,
            format=FP8,
            weight_bytes=1,
            text=True,
            on_cpu=True,
            tolerance=0.15,
        ),
        Precision(
            name="fp8-static",
            dtype="bfloat16",
            min_sm=89,
            format=FP8,
            weight_bytes=1,
            on_cpu=True,
            tolerance=0.5,  # scales of real activations, which random ones exceed
        ),
        Precision(
            name="nvfp4",
            dtype="bfloat16",
            min_sm=100,
            format=NVFP4,
            weight_bytes=0.5625,
            tolerance=0.4,
        ),
        Precision(
            name="nvfp4-static",
            dtype="bfloat16",
            min_sm=100,
            format=NVFP4,
            weight_bytes=0.5625,
            tolerance=0.6,  # as fp8-static
        ),
        Precision(
            name="int8-wo",
            dtype="bfloat16",
            min_sm=80,
            format=INT8,
            weight_bytes=1,
            text=True,
            on_cpu=True,
            tolerance=4e-2,
        ),
        Precision(
            name="int8",
            dtype="float32",
            min_sm=0,
            format=INT8,
            weight_bytes=1,
            on_cpu=True,
            on_gpu=False,
            inside=True,
            tolerance=6e-2,
        ),
        Precision(
            name="int4-wo",
            dtype="bfloat16",
            min_sm=80,
            format=INT4,
            weight_bytes=0.53125,
            text=True,
            on_cpu=True,
            inside=True,
            tolerance=0.3,
        ),
    )
}

#: those that the layers of the text encoder may have
TEXT_PRECISIONS = tuple(name for name, row in PRECISIONS.items() if row.text)

#: of builds that name none: what every backend runs, on every machine
DEFAULT_PRECISION = "fp32"


def precision_of(name: str) -> Precision:
    """The row of that name.

    Raises:
        OptionError: there is none.
    """
    if name not in PRECISIONS:
        raise OptionError(f"precision={name!r} is unknown; allowed: {', '.join(PRECISIONS)}.")
    return PRECISIONS[name]


def float_precision(dtype: str) -> Precision:
    """The row that leaves all weights in a dtype."""
    rows = (row for row in PRECISIONS.values() if row.format is None and row.stored is None)
    return next(row for row in rows if row.dtype == dtype)


def plain_precision(precision: str, dtype: str) -> Precision:
    """The row of layers that a precision leaves alone, which compute in `dtype`: on a CPU they take
    weights in 16 bits beside those that have theirs inside.
    """
    if PRECISIONS[precision].inside and dtype == "float32":
        return next(row for row in PRECISIONS.values() if row.stored)
    return float_precision(dtype)
