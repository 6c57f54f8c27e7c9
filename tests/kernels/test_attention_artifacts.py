"""Attention variants that nothing ships, and what the gates of attention are for."""

from __future__ import annotations

import dataclasses

import pytest

from ltx2rt_kernels import gates
from ltx2rt_kernels.build import compile_kernel
from ltx2rt_kernels.flash_attention import spec as flash
from ltx2rt_kernels.fp8_attention import spec as fp8
from ltx2rt_kernels.spec import Config, KernelSpec

#: each on the architecture where it comes closest to a limit
OTHERS: tuple[tuple[KernelSpec, str], ...] = (
    (fp8.kernel(fp8.MASKED_QK, "bf16", 128), "100a"),
    (fp8.kernel(fp8.QK, "bf16", 128), "90a"),
    (fp8.kernel(fp8.FULL, "bf16", 128), "90a"),
    (fp8.kernel(fp8.MASKED_FULL, "bf16", 64), "120a"),
)


@pytest.mark.parametrize(("spec", "arch"), OTHERS, ids=lambda v: getattr(v, "name", v))
def test_gates_of_what_is_not_shipped(spec: KernelSpec, arch: str) -> None:
    gates.check(compile_kernel(spec, arch))


def test_masked_kernel_is_as_expected() -> None:
    """Numbers that the README states."""
    artifact = compile_kernel(flash.kernel(flash.MASKED, "bf16", 128), "90a")
    code = gates.machine_code(artifact.cubin)
    assert artifact.description["shared"] == 163_840
    assert artifact.description["threads"] == 256
    assert code.stack == 0
    assert code.count("HGMMA") >= 26
    assert code.count("LDGSTS") >= 40  # keys and values arrive while others are multiplied
    assert code.parameter_bytes == (8,) * 4 + (4,) * 4 + (8,)


@pytest.mark.parametrize("arch", ["90a", "120a"])
def test_both_products_run_in_eight_bits(arch: str) -> None:
    """An opcode that must appear would not tell if one of the two fell back to 16 bits."""
    spec = fp8.kernel(fp8.FULL, "bf16", 128)
    code = gates.machine_code(compile_kernel(spec, arch).cubin)
    assert code.count(fp8.OPCODES[arch][0]) > 0
    assert code.count("HMMA") == code.count("HGMMA") == 0


def test_gate_notices_tiles_that_spill() -> None:
    """Why biases of every query run in smaller steps."""
    spec = flash.kernel(flash.MASKED, "bf16", 128)
    greedy = Config(num_warps=8, num_stages=2, tiles=flash.tiles(128, 64, 64))
    artifact = compile_kernel(dataclasses.replace(spec, configs={"120a": greedy}), "120a")
    assert any(p.startswith("spills registers") for p in gates.problems(artifact))
