"""8-bit attention in float32: the same numbers as the kernels, rounded at the same places."""

from __future__ import annotations

import torch
from torch import Tensor

from ltx2rt_kernels.flash_attention.reference import LOWEST_BIAS, join_heads, split_heads
from ltx2rt_kernels.fp8_attention.spec import GROUP, LEAST_AMAX
from ltx2rt_kernels.spec import E4M3_MAX


def groups(tokens: int) -> int:
    """How many scales cover `tokens` tokens."""
    return -(-tokens // GROUP)


def to_e4m3(x: Tensor) -> Tensor:
    """Round to E4M3, the largest number instead of an overflow."""
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def quantize_tokens(x: Tensor, mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Subtract the mean and quantise, one scale a head and `GROUP` tokens.

    Args:
        x: `[B, H, T, Dh]` float.
        mean: `[B, H, 1, Dh]`, subtracted from every token; None for queries. It need not be exact:
            what is the same for all keys cancels in the softmax.

    Returns:
        `[B, H, T, Dh]` E4M3, and its scales `[B, H, ceil(T / GROUP)]` float32.
    """
    B, H, T, Dh = x.shape
    wide = x.float() if mean is None else x.float() - mean.float()
    padded = torch.nn.functional.pad(wide, (0, 0, 0, groups(T) * GROUP - T))
    blocks = padded.reshape(B, H, groups(T), GROUP, Dh)
    scale = blocks.abs().amax(dim=(3, 4)).clamp(min=LEAST_AMAX) / E4M3_MAX
    quantized = to_e4m3(blocks / scale[..., None, None]).reshape(B, H, -1, Dh)[:, :, :T]
    return quantized.contiguous(), scale


def quantize_values(v: Tensor, amax: Tensor) -> Tensor:
    """Quantise values, one scale a channel, with tokens last.

    Args:
        v: `[B, S, H*Dh]` float.
        amax: `[B, 1, H*Dh]`, largest magnitude of every channel.

    Returns:
        `[B, H*Dh, S']` E4M3, S' = `GROUP * ceil(S / GROUP)`; tokens past S are 0.
    """
    S = v.shape[1]
    quantized = to_e4m3(v.float() / (amax.float().clamp(min=LEAST_AMAX) / E4M3_MAX))
    padding = quantized.new_zeros(v.shape[0], groups(S) * GROUP - S, v.shape[2])
    return torch.cat([quantized, padding], dim=1).transpose(1, 2).contiguous()


def dequantize_tokens(x: Tensor, scale: Tensor) -> Tensor:
    """`[B, H, T, Dh]` E4M3 and scales `[B, H, groups]` to float32."""
    return x.float() * scale.repeat_interleave(GROUP, dim=2)[:, :, : x.shape[2], None]


def fp8_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_scale: Tensor,
    k_scale: Tensor,
    v_amax: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    block: int = GROUP,
) -> Tensor:
    """Attention on quantised queries and keys, and 16-bit or quantised values.

    Args:
        q: `[B, H, T, Dh]` E4M3, T >= 1.
        k: `[B, H, S, Dh]` E4M3, S >= 1.
        v: `[B, S, H*Dh]` 16-bit, or `[B, H*Dh, S']` E4M3 of `quantize_values`.
        q_scale: `[B, H, ceil(T / GROUP)]` float32.
        k_scale: `[B, H, ceil(S / GROUP)]` float32.
        v_amax: `[B, 1, H*Dh]` that `v` was quantised with; None for 16-bit values.
        bias: additive, `[B, 1, 1, S]` or `[B, 1, T, S]`, as of `flash_attention`.
        block: keys whose weights are rounded together, relative to the largest score so far.

    Returns:
        `[B, T, H*Dh]` float32. Weights are rounded to the type of `v`, E4M3 ones times 448; their
        sum is taken before.
    """
    queries, keys = dequantize_tokens(q, q_scale), dequantize_tokens(k, k_scale)
    scores = queries @ keys.transpose(-2, -1) * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias.float().clamp(min=LOWEST_BIAS)
    seen = _running_max(scores, block)
    weights = torch.exp(scores - seen)
    carried = torch.exp(seen - scores.amax(dim=-1, keepdim=True))
    total = (weights * carried).sum(dim=-1, keepdim=True)
    if v_amax is None:
        values = v.float()
        rounded = weights.to(v.dtype).float()
    else:
        scale = v_amax.float().clamp(min=LEAST_AMAX) / E4M3_MAX
        values = v.float()[:, :, : k.shape[2]].transpose(1, 2) * scale
        rounded = to_e4m3(weights * E4M3_MAX).float() / E4M3_MAX
    return join_heads((rounded * carried) @ split_heads(values, q.shape[1]) / total)


def _running_max(scores: Tensor, block: int) -> Tensor:
    """Largest score of each row up to the end of every key's block, in the shape of `scores`."""
    S = scores.shape[-1]
    padded = torch.nn.functional.pad(scores, (0, -S % block), value=-torch.inf)
    largest = torch.unflatten(padded, -1, (-1, block)).amax(dim=-1).cummax(dim=-1).values
    result: Tensor = largest.repeat_interleave(block, dim=-1)[..., :S]
    return result
