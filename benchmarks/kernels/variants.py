"""Who computes a case: our kernels, torch's attention backends, a copy of as many bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.kernels.cases import BYTES, HEADS, AttentionCase, RowCase
from benchmarks.kernels.device import Kernels, Run
from benchmarks.kernels.record import Parity
from ltx2rt_kernels.adaln_modulate import spec as adaln
from ltx2rt_kernels.adaln_modulate.reference import adaln_modulate
from ltx2rt_kernels.flash_attention import spec as flash
from ltx2rt_kernels.flash_attention.reference import flash_attention
from ltx2rt_kernels.fp8_attention import spec as fp8
from ltx2rt_kernels.gated_residual import spec as gated
from ltx2rt_kernels.gated_residual.reference import gated_residual
from ltx2rt_kernels.qk_norm_rope import spec as qk
from ltx2rt_kernels.qk_norm_rope.reference import qk_norm_rope
from ltx2rt_kernels.spec import KernelSpec
from tests.tolerances import ATTENTION_REL_RMS, FP8_ATTENTION_REL_RMS, KERNEL_REL_RMS

#: queries whose rows are compared with the reference: float32 scores of all would not fit
CHECKED_QUERIES = 256
#: the math backend holds all scores
MATH_LIMIT = 8192**2

Inputs = dict[str, Tensor]

#: compiles, loads and allocates when called
Make = Callable[[], "Variant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """`run` enqueues it; `result` reads what it made, comparable with the reference's."""

    run: Run
    result: Callable[[], tuple[Tensor, ...]]
    bound: float
    eight_bit: bool = False


def attention_inputs(case: AttentionCase) -> Inputs:
    """Normed-size queries and keys with outlier channels, values; on the GPU, bfloat16."""
    generator = torch.Generator("cuda").manual_seed(42)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cuda", dtype=torch.bfloat16)

    gain = torch.ones(case.head_dim, device="cuda", dtype=torch.bfloat16)
    gain[3] = gain[case.head_dim // 2] = 2
    made = {
        "q": noise(1, HEADS, case.queries, case.head_dim) * gain,
        "k": noise(1, HEADS, case.keys, case.head_dim) * gain,
        "v": noise(1, case.keys, HEADS * case.head_dim),
    }
    if case.masked:
        made["bias"] = torch.zeros(1, 1, 1, case.keys, device="cuda", dtype=torch.bfloat16)
        made["bias"][..., case.keys * 7 // 8 :] = torch.finfo(torch.bfloat16).min
    return made


def attention_reference(inputs: Inputs) -> tuple[Tensor, ...]:
    """Float32 rows of the checked queries, head by head."""
    rows = checked(inputs["q"].shape[2])
    heads = inputs["v"].unflatten(-1, (HEADS, -1))
    parts = [
        flash_attention(
            inputs["q"][:, h : h + 1, rows],
            inputs["k"][:, h : h + 1],
            heads[:, :, h],
            inputs.get("bias"),
        )
        for h in range(HEADS)
    ]
    return (torch.cat(parts, dim=-1),)


def checked(queries: int) -> Tensor:
    """Indices of the compared queries: evenly spread, first and last among them."""
    return torch.linspace(0, queries - 1, min(queries, CHECKED_QUERIES), device="cuda").long()


def attention_variants(case: AttentionCase, inputs: Inputs, kernels: Kernels) -> dict[str, Make]:
    """Ours in 16 bits and, where there are kernels, in 8; cuDNN, flash and plain attention."""
    spec = flash.kernel(flash.MASKED if case.masked else flash.PLAIN, "bf16", case.head_dim)
    made: dict[str, Make] = {"ltx2rt": partial(_ours, case, kernels, spec, inputs)}
    if kernels.arch != "80" and min(case.queries, case.keys) >= 768:
        made["ltx2rt fp8"] = partial(_eight_bit, case, inputs, kernels)
    v = inputs["v"].unflatten(-1, (HEADS, -1)).transpose(1, 2).contiguous()
    for name, backend in (
        ("torch cudnn", SDPBackend.CUDNN_ATTENTION),
        ("torch flash", SDPBackend.FLASH_ATTENTION),
        ("torch math", SDPBackend.MATH),
    ):
        if backend is not SDPBackend.MATH or case.queries * case.keys <= MATH_LIMIT:
            made[name] = partial(_torch, inputs, v, backend)
    return made


def _rows(case: AttentionCase, out: Tensor) -> tuple[Tensor, ...]:
    return (out[:, checked(case.queries)],)


def _ours(case: AttentionCase, kernels: Kernels, spec: KernelSpec, inputs: Inputs) -> Variant:
    run, (out,) = kernels.prepare(spec, inputs)
    return Variant(run=run, result=lambda: _rows(case, out), bound=ATTENTION_REL_RMS["bf16"].bound)


def one_kernel(case: AttentionCase, spec: KernelSpec, inputs: Inputs, kernels: Kernels) -> Variant:
    """One attention kernel, in 16 or 8 bits, in the configuration that `spec` has."""
    if spec.operator.package == "fp8_attention":
        return _eight_bit(case, inputs, kernels, spec)
    return _ours(case, kernels, spec, inputs)


def _eight_bit(
    case: AttentionCase, inputs: Inputs, kernels: Kernels, spec: KernelSpec | None = None
) -> Variant:
    """The whole chain: mean, maxima, three quantisers, attention."""
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    mean, amax = torch.empty_like(k[:, :, :1]), torch.empty_like(v[:, :1])
    magnitude = torch.empty_like(v)
    quantizers = (
        (fp8.QUANTIZE_QUERIES, {"x": q}),
        (fp8.QUANTIZE_KEYS, {"x": k, "mean": mean}),
        (fp8.QUANTIZE_VALUES, {"v": v, "amax": amax}),
    )
    prepared = [kernels.prepare(fp8.quantizer(o, "bf16", case.head_dim), i) for o, i in quantizers]
    (q8, q_scale), (k8, k_scale), (v8,) = (outputs for _, outputs in prepared)
    given = {"q": q8, "k": k8, "v": v8, "q_scale": q_scale, "k_scale": k_scale, "v_amax": amax}
    if case.masked:
        given["bias"] = inputs["bias"]
    operator = fp8.MASKED_FULL if case.masked else fp8.FULL
    attend, (out,) = kernels.prepare(spec or fp8.kernel(operator, "bf16", case.head_dim), given)

    def run() -> None:
        torch.mean(k, dim=2, keepdim=True, out=mean)
        torch.abs(v, out=magnitude)
        torch.amax(magnitude, dim=1, keepdim=True, out=amax)
        for quantize, _ in prepared:
            quantize()
        attend()

    return Variant(
        run=run,
        result=lambda: _rows(case, out),
        bound=FP8_ATTENTION_REL_RMS["v8"].bound,
        eight_bit=True,
    )


def _torch(inputs: Inputs, v: Tensor, backend: SDPBackend) -> Variant:
    """Torch's attention, values laid out as it likes them; raises if it cannot run the case."""
    bias, queries = inputs.get("bias"), inputs["q"].shape[2]
    if bias is not None:
        bias = bias.expand(1, HEADS, queries, -1)
    made: list[Tensor] = []

    def run() -> None:
        with sdpa_kernel(backend):
            out = torch.nn.functional.scaled_dot_product_attention(
                inputs["q"], inputs["k"], v, attn_mask=bias
            )
        made[:] = [out]

    return Variant(
        run=run,
        result=lambda: (made[0].transpose(1, 2).flatten(2)[:, checked(queries)],),
        bound=ATTENTION_REL_RMS["bf16"].bound,
    )


def row_variants(case: RowCase, kernels: Kernels) -> tuple[dict[str, Make], tuple[Tensor, ...]]:
    """Our kernel and a copy of as many bytes; and the reference's result."""
    generator = torch.Generator("cuda").manual_seed(42)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cuda", dtype=torch.bfloat16)

    T, W = case.tokens, case.width
    index = torch.randint(3, (1, T), generator=generator, device="cuda")
    if case.operator == "qk_norm_rope":
        angles = 6 * noise(1, HEADS, T, W // HEADS // 2)
        tables = {"q_cos": angles.cos(), "q_sin": angles.sin()}
        inputs = {x: noise(1, T, W) for x in ("q", "k")}
        inputs |= {"q_weight": noise(W), "k_weight": noise(W), **tables}
        inputs |= {"k_cos": tables["q_cos"], "k_sin": tables["q_sin"]}
        spec = qk.kernel(qk.SPLIT, "bf16", HEADS, W // HEADS)
        want = qk_norm_rope(**_wide(inputs), num_heads=HEADS)
    elif case.operator == "adaln_modulate":
        inputs = {"x": noise(1, T, W), "scale": noise(3, W), "shift": noise(3, W), "index": index}
        spec = adaln.kernel(adaln.GATHERED, "bf16", W)
        want = (adaln_modulate(**_wide(inputs)),)
    else:
        inputs = {"x": noise(1, T, W), "y": noise(1, T, W), "gate": noise(3, W), "index": index}
        spec = gated.kernel(gated.GATHERED, "bf16", W)
        want = (gated_residual(**_wide(inputs)),)

    def ours() -> Variant:
        run, outputs = kernels.prepare(spec, inputs)
        bound = KERNEL_REL_RMS["bf16"].bound
        return Variant(run=run, result=lambda: tuple(outputs), bound=bound)

    source = noise(case.bytes // 2 // BYTES)
    target = torch.empty_like(source)
    copy = Variant(run=lambda: target.copy_(source), result=lambda: want, bound=0.0)
    return {"ltx2rt": ours, "copy": lambda: copy}, want


def _wide(inputs: Mapping[str, Tensor]) -> Inputs:
    return {n: t.float() if t.is_floating_point() else t for n, t in inputs.items()}


def parity(variant: Variant, want: tuple[Tensor, ...]) -> Parity:
    """Run once and compare."""
    variant.run()
    torch.cuda.synchronize()
    errors = [
        float((got.double() - exact.double()).norm() / exact.double().norm())
        for got, exact in zip(variant.result(), want, strict=True)
    ]
    return Parity(error=max(errors), bound=variant.bound)
