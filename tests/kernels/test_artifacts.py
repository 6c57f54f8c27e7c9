"""Every shipped artifact passes its static gates; the gates notice what they are for."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ltx2rt_kernels import build, catalog, gates, hermetic, ptx
from ltx2rt_kernels.adaln_modulate import spec as adaln
from ltx2rt_kernels.build import Artifact, compile_kernel
from ltx2rt_kernels.errors import KernelError
from ltx2rt_kernels.gated_residual import spec as gated
from ltx2rt_kernels.qk_norm_rope.spec import INTERLEAVED, SPLIT, kernel
from ltx2rt_kernels.spec import ARCHITECTURES, KernelSpec

SHIPPED = {spec.name: spec for spec in catalog.kernels()}
SAMPLE = kernel(SPLIT, "bf16", 32, 128)

#: variants that nothing ships: checked on one architecture
OTHERS = {
    spec.name: spec
    for spec in (
        kernel(SPLIT, "fp32", 32, 128),
        kernel(INTERLEAVED, "bf16", 32, 128),
        adaln.kernel(adaln.PER_TOKEN, "bf16", 4096),
        adaln.kernel(adaln.PER_TOKEN_QUANT, "bf16", 4096),
        gated.kernel(gated.PER_TOKEN, "bf16", 4096),
    )
}


@pytest.fixture(scope="module")
def sample() -> Artifact:
    return compile_kernel(SAMPLE, "90a")


def problems(spec: KernelSpec, architectures: Collection[str]) -> list[str]:
    """What the gates find in a kernel, on these architectures."""
    artifacts = [compile_kernel(spec, arch) for arch in architectures]
    return [f"{a.name}: {problem}" for a in artifacts for problem in gates.problems(a)]


@pytest.mark.parametrize("name", SHIPPED)
def test_gates_of_shipped_kernels(name: str) -> None:
    """On the oldest and the newest architecture, and on Hopper's, whose code differs most; in FP16,
    the same code with other instructions, on the ends alone.
    """
    assert not problems(SHIPPED[name], always_checked(SHIPPED[name]))


@pytest.mark.kernel_matrix
@pytest.mark.parametrize("name", SHIPPED)
def test_gates_on_the_architectures_between(name: str) -> None:
    spec = SHIPPED[name]
    assert not problems(spec, spec.configs.keys() - always_checked(spec))


def always_checked(spec: KernelSpec) -> set[str]:
    """The architectures that the default run compiles a kernel for."""
    architectures = list(spec.configs)
    ends = {architectures[0], architectures[-1]}
    return ends if spec.types["T"] == "fp16" else ends | spec.configs.keys() & {"90a"}


@pytest.mark.parametrize("name", OTHERS)
def test_gates_of_what_is_not_shipped(name: str) -> None:
    gates.check(compile_kernel(OTHERS[name], "120a"))


def test_sample_is_as_expected(sample: Artifact) -> None:
    """Numbers that the README states."""
    code = gates.machine_code(sample.cubin)
    assert code.registers <= 72
    assert code.stack == 0
    assert code.count("LDG.E.128") == code.count("LDG") == 12
    assert code.count("STG.E.128") == code.count("STG") == 4
    assert sample.description["parameters"][0] == {"name": "q_ptr", "type": "*bf16"}
    assert code.parameter_bytes == (8,) * 8 + (4, 4) + (8, 8)


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        (SAMPLE.name, "90a"),
        ("masked_fp8_attention.bf16-128", "100a"),
        ("flash_attention.fp16-64", "120a"),
    ],
)
def test_bytes_are_reproducible(name: str, arch: str) -> None:
    first, again = (compile_kernel(SHIPPED[name], arch) for _ in range(2))
    assert again.ptx == first.ptx
    with hermetic.fixed_addresses() as fixed:
        if arch == "100a" and not fixed:
            pytest.skip("this machine cannot start ptxas without random addresses")
    assert again.cubin == first.cubin
    assert again.description == first.description


def test_no_path_of_this_machine(sample: Artifact) -> None:
    root = str(Path(build.__file__).parents[2]).encode()
    assert root not in sample.cubin
    assert root.decode() not in sample.ptx


def test_hidden_parameters_change_nothing(tmp_path: Path) -> None:
    """The same kernel as Triton itself compiles it, two unread pointers longer: same machine code
    but for the place of constants that depend on the size of the parameters.
    """
    function = build.load_function(SAMPLE)
    types, constants = build.kernel_arguments(SAMPLE, "90a", function.arg_names)
    source = ASTSource(
        fn=function,
        signature={n: types.get(n, "constexpr") for n in function.arg_names},
        constexprs=constants,
        attrs={
            (i,): [["tt.divisibility", 16]]
            for i, n in enumerate(function.arg_names)
            if types.get(n, "").startswith("*")
        },
    )
    options = {"num_warps": 4, "num_stages": 1, "ptx_version": build.PTX_VERSION}
    with triton.knobs.cache.scope(), triton.knobs.compilation.scope():
        triton.knobs.cache.dir = str(tmp_path)
        triton.knobs.compilation.disable_line_info = True
        own = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    plain = compile_kernel(SAMPLE, "90a")
    assert ptx.drop_hidden_parameters(own.asm["ptx"]) == plain.ptx
    assert len(ptx.read_entry(own.asm["ptx"]).types) == len(ptx.read_entry(plain.ptx).types) + 2
    theirs, ours = gates.machine_code(own.asm["cubin"]), gates.machine_code(plain.cubin)
    assert theirs.registers == ours.registers
    assert theirs.opcodes == ours.opcodes
    assert theirs.parameter_bytes == (*ours.parameter_bytes, 8, 8)


def test_plugin_ptx_assembles_alone(sample: Artifact, tmp_path: Path) -> None:
    """What TensorRT gets, through ptxas as TensorRT would."""
    source, cubin = tmp_path / "k.ptx", tmp_path / "k.cubin"
    source.write_text(sample.ptx)
    command = [triton.knobs.nvidia.ptxas.path, "--gpu-name=sm_90a", source, "-o", cubin]
    subprocess.run(command, check=True)
    code = gates.machine_code(cubin.read_bytes())
    assert code.registers == gates.machine_code(sample.cubin).registers


def test_gate_notices_lost_vector_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without divisibility hints loads are two bytes wide."""
    monkeypatch.setattr(build, "_aligned", lambda spec: set())
    artifact = compile_kernel(SAMPLE, "90a")
    assert "has no LDG.E.128 instruction" in gates.problems(artifact)


def _changed(artifact: Artifact, **description: Any) -> Artifact:
    return dataclasses.replace(artifact, description={**artifact.description, **description})


def test_gates_notice_everything_at_once(sample: Artifact) -> None:
    parameters = [*sample.description["parameters"], {"name": "n", "type": "i32"}]
    wrong = _changed(
        sample,
        parameters=parameters,
        shared=300_000,
        opcodes=["HGMMA"],
        global_scratch_size=256,
        arch="100a",
        threads=256,
        num_ctas=2,
        launch_pdl=True,
    )
    text = "\n".join(gates.problems(wrong))
    for part in (
        "PTX is for sm_90a, not for sm_100a",
        "its description says",
        "cubin takes arguments of",
        "has no HGMMA instruction",
        "takes 300000 bytes of shared memory; sm_100a has 232448",
        "needs global_scratch_size of 256 bytes",
        "PTX wants 128 threads, its description says 256",
        "runs in clusters of 2 blocks",
        "needs launch_pdl",
    ):
        assert part in text
    with pytest.raises(KernelError, match="9 problems"):
        gates.check(wrong)


def test_gate_notices_changed_files(sample: Artifact) -> None:
    wrong = dataclasses.replace(sample, cubin=sample.cubin + b"\0")
    assert "cubin differs from its description" in gates.problems(wrong)


def test_gate_notices_spills(sample: Artifact) -> None:
    code = gates.machine_code(sample.cubin)
    code.opcodes["STL.128"] += 3
    code.opcodes["LDL"] += 5
    spilled = dataclasses.replace(code, stack=32)
    assert gates.problems(sample, spilled) == [
        "spills registers: 32 bytes of stack, 8 loads and stores"
    ]
    greedy = dataclasses.replace(code, registers=600)
    assert gates.problems(sample, greedy) == [
        "takes 600 registers for each of 128 threads; a multiprocessor has 65536"
    ]


def test_command_writes_artifacts_and_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["-o", str(tmp_path), "--ops", "rms_norm_quant", "--arch", "80", "89"]
    assert build.main(arguments) == 0
    names = ["rms_norm_quant.bf16-2048.89", "rms_norm_quant.bf16-4096.89"]  # none for 8.0
    files = sorted(p.name for p in tmp_path.iterdir())
    assert files == sorted(
        ["manifest.json", *(f"{n}.{e}" for n in names for e in ("ptx", "cubin", "json"))]
    )
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert sorted(manifest["artifacts"]) == names
    description = json.loads((tmp_path / f"{names[0]}.json").read_text())
    assert description["files"] == manifest["artifacts"][names[0]]
    assert description["ptx_version"] == "8.7"
    assert json.loads(capsys.readouterr().out)["artifacts"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ops", "softmax"], "no operator softmax; there are: qk_norm_rope"),
        (["--arch", "75"], "no architecture 75; there are: 80, 89, 90a"),
    ],
)
def test_command_refuses_unknown_names(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build.main(["-o", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scalars": ()}, "argument Tq has no value"),
        ({"scalars": SAMPLE.scalars[::-1]}, "its arguments are q_ptr, .*; expected q_ptr"),
        ({"configs": {}}, "has no configuration for 90a"),
    ],
    ids=["missing", "order", "architecture"],
)
def test_build_refuses(changes: dict[str, Any], message: str) -> None:
    wrong: KernelSpec = dataclasses.replace(SAMPLE, **changes)
    with pytest.raises(KernelError, match=message):
        compile_kernel(wrong, "90a")


def test_build_refuses_without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = True
        with pytest.raises(KernelError, match="while TRITON_INTERPRET is set; unset it"):
            compile_kernel(SAMPLE, "90a")
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(KernelError, match=r"needs Triton; install ltx2rt with its extra kernels"):
        compile_kernel(SAMPLE, "90a")


def test_what_triton_refuses_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("PassManager::run failed\n  at pass 7")

    monkeypatch.setattr(triton, "compile", refuse)
    message = (
        r"Triton 3\.\S+ refuses qk_norm_rope.bf16-32x128.90a: PassManager::run failed at pass 7"
    )
    with pytest.raises(KernelError, match=message):
        compile_kernel(SAMPLE, "90a")


def test_build_refuses_scratch_memory() -> None:
    """Descriptors made on the device need memory that no launch passes."""
    metadata = {"name": "k", "global_scratch_size": 256, "profile_scratch_size": 0}
    stages: dict[str, Any] = {"ptx": lambda source, metadata: PTX}
    hermetic._plain_parameters(None, stages)
    with pytest.raises(KernelError, match=r"k needs 256 \+ 0 bytes of scratch memory"):
        stages["ptx"]("", metadata)
    metadata["global_scratch_size"] = 0
    assert ptx.read_entry(stages["ptx"]("", metadata)).types == ("u64", "u32")


def test_spec_refuses_unknown_architectures() -> None:
    with pytest.raises(KernelError, match="unknown architecture 91; known: 80, 89"):
        dataclasses.replace(SAMPLE, opcodes={"91": ("HGMMA",)})


def test_names_are_unique_and_safe() -> None:
    names = [s.artifact_name(a) for s in catalog.kernels() for a in s.configs]
    assert len(set(names)) == len(names)
    assert all(n.replace(".", "").replace("-", "").replace("_", "").isalnum() for n in names)
    assert {n.split(".")[-1] for n in names} == set(ARCHITECTURES)


PTX = """.version 8.7
.target sm_90a
.visible .entry k(
	.param .u64 .ptr .global .align 1 k_param_0,
	.param .u32 k_param_1,
	.param .u64 .ptr .global .align 1 k_param_2,
	.param .u64 .ptr .global .align 1 k_param_3
)
.reqntid 32
{
	ld.param.b64 	%rd1, [k_param_0];
	ret;
}
"""


def test_ptx_entry() -> None:
    entry = ptx.read_entry(PTX)
    assert (entry.name, entry.version, entry.target) == ("k", "8.7", "sm_90a")
    assert entry.threads == 32
    assert entry.types == ("u64", "u32", "u64", "u64")
    assert ptx.read_entry(ptx.drop_hidden_parameters(PTX)).types == ("u64", "u32")
    with pytest.raises(KernelError, match="this one has 0"):
        ptx.read_entry("")


def test_ptx_refuses_to_drop_what_is_read() -> None:
    with pytest.raises(KernelError, match="reads k_param_3, a scratch pointer"):
        ptx.drop_hidden_parameters(PTX.replace("[k_param_0]", "[k_param_3]"))
