"""How to build a bundle: backend, precision, GPUs, shapes; checked before anything is read."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltx2rt.backends.tensorrt_api import APIS
from ltx2rt.bundle.targets import DEFAULT_RTX_TARGETS, DEFAULT_SHAPES, target_problems
from ltx2rt.errors import Ltx2rtError, OptionError, ShapeError, UnsupportedError
from ltx2rt.names import TEXT_STACK, WRITING_STACK
from ltx2rt.weights.precision import (
    DEFAULT_PRECISION,
    PRECISIONS,
    TEXT_PRECISIONS,
    float_precision,
)
from ltx2rt_export.custom_ops.table import MODES
from ltx2rt_export.engines.shapes import parse_shapes
from ltx2rt_export.quantize import check_precision

BACKENDS = ("onnxruntime", *APIS)

#: processes of `jobs`, each of which holds PyTorch
MOST_JOBS = 64

#: what says nothing about a bundle
NOT_RECORDED = ("cache_dir", "copy_weights", "jobs", "force")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildConfig:
    """How to build.

    Attributes:
        backend, precision: what the engines are made for.
        target: GPU architectures (`sm89`, ...). TensorRT-RTX: those of SM89 and SM120 that run the
            precision if none are named, all in one engine; TensorRT: the GPU of this machine.
        shapes: clips, `WIDTHxHEIGHTxFRAMES`, whose stages the engines must take.
        max_batch: guidance passes that may run together.
        components: what to build; empty for everything.
        weights: `input`: engines take weights by name, and hold none. `constant`: weights are
            inside the engines, of which the transformer block has one a layer; the text encoder's
            blocks keep theirs as inputs. ONNX Runtime makes the engine of a layer when it is first
            needed; precisions that are `inside` have them in any case.
        text_precision: of the layers, projections and connectors of the text encoder, one of
            `TEXT_PRECISIONS`; None: the 16 or 32 bits of `precision`.
        plain_layers: transformer blocks that a quantising precision leaves in 16 bits; None: what
            the checkpoint or `quantize.layer_choice` says.
        lora_inputs: the block takes LoRAs as low-rank inputs instead of merged weights: for
            adapters that change at every request.
        optimization_level: effort of the builder, 0 to 5; None is the library's choice.
        workspace_mib: scratch memory that kernels may ask for; None is the library's choice.
        aux_streams: streams that an engine may use beside its own; None is the library's choice.
        decoder_mib: GPU memory that a tile of the diffusion decoder may take: less makes smaller
            tiles; None: 24 GiB, for which 768x512x121 is one tile.
        timing_cache: file of kernel timings to reuse and extend (TensorRT).
        hardware_compatible: engines also run on other GPUs from Ampere on (TensorRT).
        version_compatible: engines also load in other versions (TensorRT).
        plugin_modules: Python modules whose import registers plugins (TensorRT).
        custom_ops: our own kernels: `auto` where a benchmark showed them faster (nowhere yet), `on`
            wherever the backend can run them, `off` never; see `custom_ops.table`.
        cache_dir: where exported graphs and built engines are kept; None: `LTX2RT_CACHE`, else
            the user's cache folder.
        jobs: processes that trace graphs at once; 1: this one does, one after another.
        copy_weights: copy every needed tensor into the bundle instead of pointing at the user's
            files.
        force: replace an existing bundle.

    Raises:
        OptionError, ShapeError, UnsupportedError: an option is not allowed, or two do not fit; all
            problems are named.
    """

    backend: str = "onnxruntime"
    precision: str = DEFAULT_PRECISION
    target: tuple[str, ...] = ()
    shapes: tuple[str, ...] = DEFAULT_SHAPES
    max_batch: int = 1
    components: tuple[str, ...] = ()
    weights: str = "input"
    text_precision: str | None = None
    plain_layers: tuple[int, ...] | None = None
    lora_inputs: bool = False
    optimization_level: int | None = None
    workspace_mib: int | None = None
    aux_streams: int | None = None
    decoder_mib: int | None = None
    timing_cache: Path | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False
    plugin_modules: tuple[str, ...] = ()
    custom_ops: str = "auto"
    cache_dir: Path | None = field(default=None)
    jobs: int = 1
    copy_weights: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        problems = [*self._value_problems(), *self._backend_problems()]
        try:
            parse_shapes(self.shapes)
        except ShapeError as error:
            if not problems:
                raise
            problems += error.problems
        unsupported = self._target_problems()
        if unsupported and not problems:
            raise UnsupportedError("cannot build", unsupported)
        if problems := [*problems, *unsupported]:
            raise OptionError("build options", problems)

    @property
    def targets(self) -> tuple[str, ...]:
        """Architectures in order; empty: the GPU of this machine."""
        if self.backend == "tensorrt-rtx" and not self.target:
            rows = [PRECISIONS.get(name) for name in (self.precision, self.text_precision or "")]
            oldest = max(row.min_sm if row else 0 for row in rows)
            return tuple(t for t in DEFAULT_RTX_TARGETS if int(t[2:]) >= oldest)
        return tuple(sorted(self.target, key=lambda t: (len(t), t)))

    def asked(self, component: str) -> str:
        """The precision that is asked of a component; `component_precision` says what it gets."""
        if component not in (*TEXT_STACK.components, *WRITING_STACK.components):
            return self.precision
        return self.text_precision or float_precision(PRECISIONS[self.precision].dtype).name

    def builder_options(self) -> dict[str, Any]:
        """Options of the library's builder that were set."""
        workspace = None if self.workspace_mib is None else self.workspace_mib * 2**20
        return {
            name: value
            for name, value in (
                ("optimization_level", self.optimization_level),
                ("workspace_bytes", workspace),
                ("aux_streams", self.aux_streams),
                ("hardware_compatible", self.hardware_compatible),
                ("version_compatible", self.version_compatible),
            )
            if value is not None and value is not False
        }

    def flags(self) -> str:
        """Command-line flags of what differs from the defaults, places and `force` left out."""
        texts = []
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if value == item.default or item.name in NOT_RECORDED:
                continue
            flag = f"--{item.name.replace('_', '-')}"
            if value is True:
                texts.append(flag)
            else:
                text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
                texts.append(f"{flag} {shlex.quote(text)}")
        return " ".join(texts)

    def _value_problems(self) -> list[str]:
        problems = []
        for name, value, allowed in (
            ("backend", self.backend, BACKENDS),
            ("precision", self.precision, tuple(PRECISIONS)),
            ("text_precision", self.text_precision, (None, *TEXT_PRECISIONS)),
            ("weights", self.weights, ("input", "constant")),
            ("custom_ops", self.custom_ops, MODES),
        ):
            if value not in allowed:
                names = ", ".join(n for n in allowed if n is not None)
                problems.append(f"{name}={value!r}; allowed: {names}")
        row = PRECISIONS.get(self.precision)
        if self.backend == "onnxruntime":
            run = [p.name for p in PRECISIONS.values() if p.on_onnxruntime]
            text = [name for name in TEXT_PRECISIONS if not PRECISIONS[name].inside]
            for name, known, usable in (
                (self.precision, tuple(PRECISIONS), run),
                (self.text_precision or "", TEXT_PRECISIONS, [n for n in text if n in run]),
            ):
                if name in known and name not in usable:
                    problems.append(
                        f"backend onnxruntime runs no {name}; allowed: {', '.join(usable)}"
                    )
        if self.backend in APIS and row is not None and not row.on_gpu:
            run = [p.name for p in PRECISIONS.values() if p.on_gpu]
            problems.append(f"backend {self.backend} runs no {row.name}; allowed: {', '.join(run)}")
        inside = self.weights == "constant"
        held = self.backend == "onnxruntime" and row is not None and row.inside
        if self.lora_inputs and (inside or held):
            problems.append(
                f"lora_inputs needs weights that are inputs, and {self.precision} has them inside"
                if not inside
                else "lora_inputs needs weights='input'"
            )
        if inside and self.backend == "onnxruntime" and row is not None and not row.on_cpu:
            problems.append(
                f"weights='constant' on backend onnxruntime is for CPUs, and {row.name} is not"
            )
        if self.plain_layers is not None and row is not None and row.format is None:
            problems.append(
                f"precision {self.precision} quantises no layers, so plain_layers means nothing; "
                "leave it out"
            )
        if not self.shapes:
            problems.append("no shapes are named; give e.g. 768x512x121")
        if not 1 <= self.max_batch <= 16:
            problems.append(f"max_batch={self.max_batch} is not in 1..16")
        if not 1 <= self.jobs <= MOST_JOBS:
            problems.append(f"jobs={self.jobs} is not in 1..{MOST_JOBS}")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            problems.append(f"optimization_level={self.optimization_level} is not in 0..5")
        for name in ("workspace_mib", "aux_streams", "decoder_mib"):
            number = getattr(self, name)
            if number is not None and number < 0:
                problems.append(f"{name}={number} is negative")
        return problems

    def _backend_problems(self) -> list[str]:
        """Options that the backend does not have."""
        api = APIS.get(self.backend)
        given = {
            "target": bool(self.target),
            "max_batch": self.max_batch != 1,
            "optimization_level": self.optimization_level is not None,
            "workspace_mib": self.workspace_mib is not None,
            "aux_streams": self.aux_streams is not None,
            "decoder_mib": self.decoder_mib is not None,
            "timing_cache": self.timing_cache is not None,
            "hardware_compatible": self.hardware_compatible,
            "version_compatible": self.version_compatible,
            "plugin_modules": bool(self.plugin_modules),
        }
        if api is None:
            missing = set(given) if self.backend in BACKENDS else set()
        else:
            missing = {
                name
                for name, has in (
                    ("timing_cache", api.timing_cache),
                    ("hardware_compatible", api.hardware_compatible),
                    ("version_compatible", api.version_compatible),
                    ("plugin_modules", api.plugins),
                )
                if not has
            }
        return [
            f"backend {self.backend} has no option {name}; leave it out"
            for name, is_given in given.items()
            if is_given and name in missing
        ]

    def _target_problems(self) -> list[str]:
        if self.backend not in APIS:
            return []
        problems = target_problems(self.backend, self.targets)
        row = PRECISIONS.get(self.precision)
        if not problems and row is not None:
            names = [self.precision] if row.on_gpu else []  # a problem of its own already
            if self.text_precision in TEXT_PRECISIONS:
                names.append(self.text_precision)
            for name, target in itertools.product(names, self.targets):
                try:
                    check_precision(name, target)
                except Ltx2rtError as error:
                    problems += [problem.rstrip(".") for problem in error.problems]
        return problems
