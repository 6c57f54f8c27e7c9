"""Ahead-of-time compilation, on any machine: a kernel to PTX, cubin and their description.

    python -m ltx2rt_kernels.build -o DIR [--ops NAME ...] [--arch NAME ...]

writes `<op>.<variant>.<arch>.{ptx,cubin,json}` and `manifest.json`. Needs Triton, no GPU, driver or
CUDA toolkit. The bytes depend on the Triton version alone (`hermetic.fixed_addresses`: those of
100a cubins elsewhere than on Linux on chance too).
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltx2rt_kernels import catalog, ptx
from ltx2rt_kernels.errors import KernelError, raise_problems
from ltx2rt_kernels.hermetic import hermetic_compilation
from ltx2rt_kernels.launch import SCHEMA
from ltx2rt_kernels.spec import ARCHITECTURES, Architecture, KernelSpec

#: PTX 8.7 is the least that knows every target here, and what CUDA 12.8 drivers (570) and TensorRT
#: 11 take; Triton alone would write the newest that its ptxas knows.
PTX_VERSION = 87


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One compiled kernel; `description` is the JSON that is written beside it."""

    name: str
    ptx: str
    cubin: bytes
    description: dict[str, Any]

    def write(self, directory: Path) -> None:
        """Write the three files, each at once."""
        _write(directory / f"{self.name}.ptx", self.ptx.encode())
        _write(directory / f"{self.name}.cubin", self.cubin)
        _write(directory / f"{self.name}.json", _json(self.description))


def compile_kernel(spec: KernelSpec, arch: str) -> Artifact:
    """Compile one kernel for one architecture.

    Raises:
        KernelError: Triton is missing, interprets or refuses the kernel, the architecture is not
            configured, the parameters are not in TensorRT's order, or the kernel needs memory that
            nobody passes.
    """
    if arch not in spec.configs:
        known = ", ".join(spec.configs)
        raise KernelError(f"{spec.name} has no configuration for {arch}; there are: {known}")
    try:
        import triton
    except ModuleNotFoundError:
        raise KernelError(
            "compiling kernels needs Triton; install ltx2rt with its extra kernels"
        ) from None
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.errors import TritonError

    if triton.knobs.runtime.interpret:
        raise KernelError("kernels cannot be compiled while TRITON_INTERPRET is set; unset it")
    architecture, config = ARCHITECTURES[arch], spec.configs[arch]
    function = load_function(spec)
    pointers, constants = kernel_arguments(spec, arch, function.arg_names)
    source = ASTSource(
        fn=function,
        signature={n: pointers.get(n, "constexpr") for n in function.arg_names},
        constexprs=constants,
        attrs={
            (i,): [["tt.divisibility", 16]]
            for i, name in enumerate(function.arg_names)
            if name in _aligned(spec)
        },
    )
    options = {
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "ptx_version": PTX_VERSION,
        "enable_fp_fusion": True,
    }
    with hermetic_compilation():
        target = GPUTarget("cuda", architecture.number, 32)
        try:
            compiled = triton.compile(source, target=target, options=options)
        except (TritonError, RuntimeError) as error:
            reason = " ".join(str(error).split()[:60])
            name = spec.artifact_name(arch)
            raise KernelError(f"Triton {triton.__version__} refuses {name}: {reason}") from error
    text, cubin = compiled.asm["ptx"], compiled.asm["cubin"]
    description = _describe(spec, architecture, compiled.metadata, text, cubin)
    return Artifact(name=spec.artifact_name(arch), ptx=text, cubin=cubin, description=description)


def kernel_arguments(
    spec: KernelSpec, arch: str, names: Sequence[str]
) -> tuple[dict[str, str], dict[str, Any]]:
    """Split the arguments of a Triton function into run-time types and compile-time constants.

    Raises:
        KernelError: an argument is neither, or the order is not inputs, scalars, outputs.
    """
    runtime = run_time_types(spec)
    known = {
        **spec.sizes,
        **spec.operator.attributes,
        **spec.attributes,
        **spec.configs[arch].tiles,
        **spec.constexprs,
    }
    runtime = {n: t for n, t in runtime.items() if n not in spec.constexprs}
    problems = [f"argument {n} has no value" for n in names if n not in runtime and n not in known]
    order = [n for n in names if n in runtime]
    if order != list(runtime):
        problems.append(f"its arguments are {', '.join(order)}; expected {', '.join(runtime)}")
    raise_problems(f"{spec.name} ({spec.function})", problems)
    return runtime, {n: known[n] for n in names if n not in runtime}


def run_time_types(spec: KernelSpec) -> dict[str, str]:
    """Name to Triton type of every kernel argument that is passed, in ABI order."""
    operator = spec.operator
    return {
        **{f"{t.name}_ptr": f"*{spec.dtype(t)}" for t in operator.inputs},
        **{s.name: "i32" for s in spec.scalars},
        **{f"{t.name}_ptr": f"*{spec.dtype(t)}" for t in operator.outputs},
    }


def load_function(spec: KernelSpec) -> Any:
    """The Triton function of a kernel."""
    module, name = spec.function.split(":")
    return getattr(importlib.import_module(module), name)


def write_artifacts(
    directory: Path, specs: Sequence[KernelSpec], architectures: Sequence[str] | None = None
) -> Iterator[Artifact]:
    """Compile and write every kernel for every architecture that it is configured for, then the
    manifest.

    Raises:
        KernelError: an architecture is unknown.
    """
    wanted = tuple(ARCHITECTURES) if architectures is None else tuple(architectures)
    if unknown := sorted(set(wanted) - ARCHITECTURES.keys()):
        known = ", ".join(ARCHITECTURES)
        raise KernelError(f"no architecture {', '.join(unknown)}; there are: {known}")
    directory.mkdir(parents=True, exist_ok=True)
    entries: dict[str, Any] = {}
    for spec in specs:
        for arch in (a for a in wanted if a in spec.configs):
            artifact = compile_kernel(spec, arch)
            artifact.write(directory)
            entries[artifact.name] = artifact.description["files"]
            yield artifact
    _write(directory / "manifest.json", _json({"schema": SCHEMA, "artifacts": entries}))


def _aligned(spec: KernelSpec) -> set[str]:
    """Arguments that are multiples of 16: every pointer, and the scalars that say so."""
    return {n for n, t in run_time_types(spec).items() if t.startswith("*")} | {
        s.name for s in spec.scalars if s.divisible_by % 16 == 0
    }


def _describe(
    spec: KernelSpec, architecture: Architecture, metadata: Any, text: str, cubin: bytes
) -> dict[str, Any]:
    entry, operator = ptx.read_entry(text), spec.operator
    config = spec.configs[architecture.name]
    passed = {n: t for n, t in run_time_types(spec).items() if n not in spec.constexprs}

    def tensors(of: Sequence[Any]) -> list[dict[str, Any]]:
        return [
            {"name": t.name, "dtype": spec.dtype(t), "shape": list(t.shape)}
            for t in of
            if f"{t.name}_ptr" in passed
        ]

    return {
        "schema": SCHEMA,
        "operator": operator.name,
        "node": operator.node,
        "variant": spec.variant,
        "arch": architecture.name,
        "target": entry.target,
        "entry": entry.name,
        "parameters": [{"name": n, "type": t} for n, t in passed.items()],
        "inputs": tensors(operator.inputs),
        "scalars": [dataclasses.asdict(s) for s in spec.scalars],
        "outputs": tensors(operator.outputs),
        "sizes": dict(spec.sizes),
        "attributes": {**operator.attributes, **spec.attributes},
        "tiles": dict(config.tiles),
        "grid": list(spec.grid),
        "threads": 32 * metadata.num_warps,
        "num_warps": metadata.num_warps,
        "num_stages": metadata.num_stages,
        "num_ctas": metadata.num_ctas,
        "shared": metadata.shared,
        "tmem_size": metadata.tmem_size,
        "launch_cooperative_grid": metadata.launch_cooperative_grid,
        "launch_pdl": metadata.launch_pdl,
        "global_scratch_size": metadata.global_scratch_size,
        "profile_scratch_size": metadata.profile_scratch_size,
        "tensordesc_meta": metadata.tensordesc_meta,
        "ptx_version": entry.version,
        "triton_version": metadata.triton_version,
        "opcodes": list(spec.opcodes.get(architecture.name, ())),
        "files": {
            "ptx": _file(text.encode()),
            "cubin": _file(cubin),
        },
    }


def _file(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: compile, write, say what each artifact weighs on stderr; JSON on stdout."""
    parser = argparse.ArgumentParser(
        prog="python -m ltx2rt_kernels.build", description="Compile kernels ahead of time."
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--ops", nargs="+", metavar="NAME", help="operators (default: all)")
    parser.add_argument("--arch", nargs="+", metavar="NAME", help="architectures (default: all)")
    options = parser.parse_args(arguments)
    count = size = 0
    try:
        specs = catalog.kernels(options.ops)
        for artifact in write_artifacts(options.output, specs, options.arch):
            count, size = count + 1, size + len(artifact.ptx) + len(artifact.cubin)
            sizes = f"ptx {len(artifact.ptx):,} B, cubin {len(artifact.cubin):,} B"
            sys.stderr.write(f"{artifact.name}: {sizes}\n")
    except KernelError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(json.dumps({"artifacts": count, "bytes": size}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
