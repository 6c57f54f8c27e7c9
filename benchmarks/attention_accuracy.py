"""Error of 8-bit attention on inputs like LTX's: `python -m benchmarks.attention_accuracy`.

Emulates the kernels' rounding in float32 on a CPU, at real lengths, and appends one record a case
to `results/attention_accuracy.jsonl`; the page beside the kernel is made from the newest ones.

Inputs: projections of a smooth field over the latent grid plus noise, RMS-normed over the whole
width as the model does, times norm weights, rotated by the model's own RoPE tables. "outliers" adds
channels that are eight times as large and an offset that all keys share. Of 32 heads the first and
the last are computed (RoPE turns slowest and fastest there), for 256 queries in the middle.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.hardware import environment
from ltx2rt.latents.patchify import video_positions
from ltx2rt.latents.rope import rope_tables
from ltx2rt.latents.shapes import VideoLatentShape
from ltx2rt_kernels.flash_attention.reference import flash_attention
from ltx2rt_kernels.fp8_attention.reference import (
    GROUP,
    fp8_attention,
    groups,
    quantize_tokens,
    quantize_values,
)

RESULTS = Path(__file__).parent / "results" / "attention_accuracy.jsonl"
TABLE = Path(__file__).parents[1] / "kernels/ltx2rt_kernels/fp8_attention/accuracy.md"

HEADS, HEAD_DIM, QUERIES = 32, 128, 256
WIDTH = HEADS * HEAD_DIM
#: latent frames, rows, columns: 512x768 of 9 and 121 frames, 1024x1536 and 1088x1920 of 121
GRIDS = ((2, 16, 24), (16, 16, 24), (16, 32, 48), (16, 34, 60))
KINDS = ("plain", "outliers")

Inputs = Mapping[str, Tensor]


def make_inputs(grid: tuple[int, int, int], kind: str) -> dict[str, Tensor]:
    """Float32 `q` `[1, 2, 256, Dh]`, `k` `[1, 2, S, Dh]`, `v` `[1, S, 2*Dh]` of two heads."""
    generator = torch.Generator().manual_seed(42)
    frames, height, width = grid
    tokens = frames * height * width
    shape = VideoLatentShape(batch=1, channels=128, num_frames=frames, height=height, width=width)
    positions = video_positions(shape, 24.0)
    cos, sin = (
        torch.from_numpy(np.ascontiguousarray(t))
        for t in rope_tables(positions, heads=HEADS, width=WIDTH, max_pos=(20.0, 2048.0, 2048.0))
    )
    small = torch.randn(1, 64, *(max(2, n // 4) for n in grid), generator=generator)
    field = torch.nn.functional.interpolate(small, grid, mode="trilinear").flatten(2)[0].T
    mix = torch.randn(3, 64, WIDTH, generator=generator) / 8
    made: dict[str, Tensor] = {}
    for i, name in enumerate("qkv"):
        x = 0.7 * field @ mix[i] + 0.7 * torch.randn(tokens, WIDTH, generator=generator)
        weight = torch.exp(0.4 * torch.randn(WIDTH, generator=generator))
        if kind == "outliers":
            channels = torch.randint(WIDTH, (WIDTH // 64,), generator=generator)
            x[:, channels] *= 8
            if name == "k":
                x += torch.randn(WIDTH, generator=generator)
        if name != "v":
            x = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-6) * weight
        heads = x.unflatten(-1, (HEADS, HEAD_DIM))[:, [0, HEADS - 1]].transpose(0, 1)[None]
        if name == "v":
            made[name] = heads.transpose(1, 2).flatten(2).contiguous()
            continue
        first, second = heads.chunk(2, dim=-1)
        c, s = cos[:, [0, HEADS - 1]], sin[:, [0, HEADS - 1]]
        made[name] = torch.cat([first * c - second * s, second * c + first * s], dim=-1)
    start = tokens // 2 // GROUP * GROUP
    made["q"] = made["q"][:, :, start : start + QUERIES].contiguous()
    return made


def bf16(inputs: Inputs) -> dict[str, Tensor]:
    """The inputs as every kernel gets them."""
    return {name: value.to(torch.bfloat16) for name, value in inputs.items()}


def sixteen_bit(inputs: Inputs) -> Tensor:
    """Attention in bfloat16: weights rounded, as `flash_attention` does."""
    q, k = inputs["q"].float(), inputs["k"].float()
    return fp8_attention(q, k, inputs["v"], _ones(q), _ones(k))


def _ones(x: Tensor) -> Tensor:
    """Scales of `x` `[1, H, T, Dh]` that change nothing."""
    return torch.ones(1, x.shape[1], groups(x.shape[2]))


def eight_bit(inputs: Inputs, *, smooth: bool, values: bool) -> Tensor:
    """Attention on E4M3 queries and keys; `values`: weights and values too."""
    mean = inputs["k"].float().mean(dim=2, keepdim=True).to(torch.bfloat16) if smooth else None
    q, q_scale = quantize_tokens(inputs["q"])
    k, k_scale = quantize_tokens(inputs["k"], mean)
    if not values:
        return fp8_attention(q, k, inputs["v"], q_scale, k_scale)
    amax = inputs["v"].abs().amax(dim=1, keepdim=True)
    return fp8_attention(q, k, quantize_values(inputs["v"], amax), q_scale, k_scale, amax)


def integer_scores(inputs: Inputs) -> Tensor:
    """INT8 queries and smoothed keys, one scale a group, 16-bit values: SageAttention's choice."""
    mean = inputs["k"].float().mean(dim=2, keepdim=True)
    q, q_scale = _int8(inputs["q"].float())
    k, k_scale = _int8(inputs["k"].float() - mean)
    return fp8_attention(q, k, inputs["v"], q_scale, k_scale)


def _int8(x: Tensor) -> tuple[Tensor, Tensor]:
    padded = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[2] % GROUP))
    blocks = padded.unflatten(2, (-1, GROUP))
    scale = blocks.abs().amax(dim=(3, 4)) / 127
    codes = (blocks / scale[..., None, None]).round().flatten(2, 3)
    return codes[:, :, : x.shape[2]], scale


VARIANTS: dict[str, Callable[[Inputs], Tensor]] = {
    "bf16": sixteen_bit,
    "int8 QK, bf16 PV": integer_scores,
    "e4m3 QK, bf16 PV": lambda i: eight_bit(i, smooth=True, values=False),
    "e4m3 QK, bf16 PV, keys not smoothed": lambda i: eight_bit(i, smooth=False, values=False),
    "e4m3 QK, e4m3 PV": lambda i: eight_bit(i, smooth=True, values=True),
}


def measure(grid: tuple[int, int, int], kind: str) -> dict[str, Any]:
    """Errors of every variant against float32 attention on the unrounded inputs."""
    exact_inputs = make_inputs(grid, kind)
    exact = flash_attention(**exact_inputs).double()
    rounded = bf16(exact_inputs)
    errors = {}
    for name, variant in VARIANTS.items():
        got = variant(rounded).to(torch.bfloat16).double()
        errors[name] = {
            "rel_rms": float((got - exact).norm() / exact.norm()),
            "cosine": float((got * exact).sum() / got.norm() / exact.norm()),
            "max_abs": float((got - exact).abs().max()),
        }
    return {
        "case": f"attention-accuracy-{math.prod(grid)}-{kind}",
        "keys": math.prod(grid),
        "kind": kind,
        "rms_of_result": float(exact.square().mean().sqrt()),
        "errors": errors,
    }


def table(records: list[dict[str, Any]]) -> str:
    """The page, from the newest record of every case."""
    newest = {r["case"]: r for r in records}
    lines = [
        "# Error of 8-bit attention",
        "",
        "Made by `python -m benchmarks.attention_accuracy`; its docstring describes the inputs.",
        "Relative RMS error (cosine) against float32 attention on the unrounded inputs; the result",
        "is rounded to bfloat16. Emulated in float32 on a CPU.",
        "",
        f"| keys | inputs | {' | '.join(VARIANTS)} |",
        f"|---|---|{'---|' * len(VARIANTS)}",
    ]
    for record in newest.values():
        cells = [
            f"{100 * e['rel_rms']:.2f} % ({e['cosine']:.5f})"
            for e in (record["errors"][name] for name in VARIANTS)
        ]
        lines.append(f"| {record['keys']} | {record['kind']} | {' | '.join(cells)} |")
    where = next(reversed(newest.values()))["environment"]
    lines += [
        "",
        f"Recorded {where['date']} at {where['commit']}, torch {where['versions']['torch']}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--table", action="store_true", help="only write the page, from the records"
    )
    options = parser.parse_args()
    if not options.table:
        where = environment()
        with RESULTS.open("a", encoding="utf-8") as file:
            for grid in GRIDS:
                for kind in KINDS:
                    record = {**measure(grid, kind), "environment": where}
                    file.write(json.dumps(record, sort_keys=True) + "\n")
                    print(json.dumps(record["errors"]))
    lines = RESULTS.read_text(encoding="utf-8").splitlines()
    TABLE.write_text(table([json.loads(line) for line in lines]), encoding="utf-8")


if __name__ == "__main__":
    main()
