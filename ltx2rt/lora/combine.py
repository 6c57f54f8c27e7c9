"""Merge LoRA files into one, in the official key format, without a model.

Two methods, per module; a LoRA's delta is `strength * scale * up @ down`:

- *concat*: ranks side by side. The merged delta is exactly the sum of the deltas.
- *orthogonal*: what a later LoRA shares with earlier ones is taken out first. With U an orthonormal
  basis of the outputs that earlier LoRAs write (columns of their `up`) and V one of the inputs that
  they read (rows of their `down`), `up <- (I - U U^T) up` and `down <- down (I - V V^T)`; then
  concat. So deltas of different LoRAs read and write orthogonal subspaces: the first LoRA acts as
  if alone, and order matters. Training in orthogonal subspaces is O-LoRA's idea (Wang et al., 2023,
  arXiv:2310.14152); here Gram-Schmidt imposes it on trained files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ltx2rt.config import lora_problems
from ltx2rt.engine import Array
from ltx2rt.errors import CheckpointError, OptionError, UnsupportedError
from ltx2rt.lora.files import Lora, open_lora
from ltx2rt.lora.keys import LoraPair, lora_generations, read_lora_keys
from ltx2rt.lora.metadata import merged_metadata
from ltx2rt.lora.official_names import official_name
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile
from ltx2rt.weights.safetensors_writer import Stream, write_safetensors

METHODS = ("concat", "orthogonal")
DTYPES = ("float32", "bfloat16")
#: directions weaker than this, relative to the strongest, are not part of a space
_RANK_TOLERANCE = 1e-6

#: module -> (update, strength * scale), in the order of the LoRAs
Updates = dict[str, list[tuple[LoraPair, float]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedLora:
    """What was written: official module -> rank."""

    path: Path
    ranks: Mapping[str, int]


def merge_loras(
    loras: Sequence[Lora],
    target: Path,
    *,
    method: str = "concat",
    rank: int | None = None,
    dtype: str = "float32",
    honour_alpha: bool = False,
) -> MergedLora:
    """Merge LoRAs into one file whose strength is 1; alphas are folded in.

    Args:
        loras: files or folders and their strengths, in order; those of strength 0 are left out.
        target: the file to write, atomically.
        method: see the module's text.
        rank: keep at most this many singular values of every module's merged delta.
        dtype: of the written factors; bfloat16 halves the file and rounds.
        honour_alpha: see `read_lora_keys`.

    Raises:
        OptionError: options or strengths are not allowed, or their metadata conflicts.
        CheckpointError: files are broken, of different generations, or do not fit each other.
        UnsupportedError: an adapter kind other than plain LoRA.
    """
    _check_options(loras, method, rank, dtype)
    active = [lora for lora in loras if lora.strength]
    files = [open_lora(lora.path) for lora in active]
    updates = _updates(active, files, honour_alpha=honour_alpha)
    use = merged_metadata(files)
    factors = _Factors(updates, method, rank)
    tensors: dict[str, Stream] = {}
    for module, pairs in updates.items():
        out, width, kept = _size(pairs, rank)
        name = f"diffusion_model.{module}"
        tensors[f"{name}.lora_A.weight"] = dtype, (kept, width), factors.part(module, 0)
        tensors[f"{name}.lora_B.weight"] = dtype, (out, kept), factors.part(module, 1)
    ranks = {module: _size(pairs, rank)[2] for module, pairs in updates.items()}
    metadata = {
        "format": "pt",
        "merge_method": method,
        "merged_from": "; ".join(f"{Path(x.path).name}:{x.strength:g}" for x in active),
        "lora_rank": str(max(ranks.values())),
        **use,
    }
    write_safetensors(target, tensors, metadata)
    return MergedLora(path=target, ranks=ranks)


def _check_options(loras: Sequence[Lora], method: str, rank: int | None, dtype: str) -> None:
    problems = lora_problems(loras)
    if not any(lora.strength for lora in loras):
        problems.append("no LoRA has a strength other than 0")
    if method not in METHODS:
        problems.append(f"method={method!r}; allowed: {', '.join(METHODS)}")
    if rank is not None and rank < 1:
        problems.append(f"rank={rank} is below 1")
    if dtype not in DTYPES:
        problems.append(f"dtype={dtype!r}; allowed: {', '.join(DTYPES)}")
    if problems:
        raise OptionError("cannot merge", problems)


def _updates(
    loras: Sequence[Lora], files: Sequence[SafetensorsFile], *, honour_alpha: bool
) -> Updates:
    updates: Updates = {}
    problems: list[str] = []
    fits: dict[str, tuple[str, ...]] = {}
    for lora, file in zip(loras, files, strict=True):
        keys = read_lora_keys(file, honour_alpha=honour_alpha)
        if keys.unsupported:
            raise UnsupportedError(
                f"{file.path} uses {', '.join(keys.unsupported)}; only plain LoRA pairs can be "
                "merged."
            )
        problems += [f"{file.path.name}: {p}" for p in keys.problems]
        fits[file.path.name] = lora_generations(file, keys)
        if not keys.pairs:
            problems.append(f"{file.path.name} holds no LoRA")
        named: set[str] = set()
        for module, pair in keys.pairs.items():
            name = official_name(module)
            if name is None:
                problems.append(f"{file.path.name}: {module} is not a module of this model family")
            elif name in named:
                problems.append(f"{file.path.name}: {name} occurs twice")
            else:
                named.add(name)
                updates.setdefault(name, []).append((pair, lora.strength * pair.scale))
    for module, pairs in updates.items():
        sizes = {(p.up.shape[0], p.down.shape[1]) for p, _ in pairs}
        if len(sizes) > 1:
            listed = " and ".join(str(list(size)) for size in sorted(sizes))
            problems.append(f"{module} is {listed} in different files")
    if fits and not set.intersection(*(set(f) for f in fits.values())):
        told = ", ".join(f"{name}: {' or '.join(f)}" for name, f in fits.items())
        problems.append(f"they are for different models ({told})")
    if problems:
        more = [f"and {len(problems) - 10} more"] if len(problems) > 10 else []
        raise CheckpointError("these LoRAs cannot be merged", problems[:10] + more)
    return updates


def _size(pairs: Sequence[tuple[LoraPair, float]], rank: int | None) -> tuple[int, int, int]:
    """(outputs, inputs, rank) of a merged module."""
    out, width = pairs[0][0].up.shape[0], pairs[0][0].down.shape[1]
    total = sum(pair.rank for pair, _ in pairs)
    return out, width, total if rank is None else min(total, rank, out, width)


class _Factors:
    """The merged factors of a module, computed when its first half is written."""

    def __init__(self, updates: Updates, method: str, rank: int | None) -> None:
        self._updates, self._method, self._rank = updates, method, rank
        self._files = MappedFiles()
        self._last: tuple[str, tuple[Array, Array]] | None = None

    def part(self, module: str, which: int) -> Iterator[Array]:
        """`down` (0) or `up` (1) as a stream of one array."""
        if self._last is None or self._last[0] != module:
            self._last = module, self._compute(module)
        yield self._last[1][which]

    def _compute(self, module: str) -> tuple[Array, Array]:
        pairs = self._updates[module]
        downs = [self._files.load(pair.down, "float32") for pair, _ in pairs]
        ups = [self._files.load(pair.up, "float32") * np.float32(s) for pair, s in pairs]
        if not all(np.isfinite(factor).all() for factor in (*downs, *ups)):
            where = ", ".join(pair.down.path.name for pair, _ in pairs)
            raise CheckpointError(
                f"{module} has values that are no finite numbers in one of {where}."
            )
        if self._method == "orthogonal":
            downs, ups = orthogonalize(downs, ups)
        down, up = np.concatenate(downs, axis=0), np.concatenate(ups, axis=1)
        kept = _size(pairs, self._rank)[2]
        return (down, up) if kept == down.shape[0] else truncate(down, up, kept)


def orthogonalize(downs: Sequence[Array], ups: Sequence[Array]) -> tuple[list[Array], list[Array]]:
    """Take out of each LoRA what earlier ones read and write; see the module's text.

    Args:
        downs: `[rank, in]` each, in order.
        ups: `[out, rank]` each.

    Returns:
        float32 factors of the same shapes.
    """
    new_downs: list[Array] = []
    new_ups: list[Array] = []
    for down, up in zip(downs, ups, strict=True):
        wide_down, wide_up = down.astype(np.float64), up.astype(np.float64)
        if new_ups:
            read = _basis(np.concatenate(new_downs, axis=0).T)
            written = _basis(np.concatenate(new_ups, axis=1))
            # twice: one pass leaves rounding errors of the size of what was removed
            for _ in range(2):
                wide_down = wide_down - (wide_down @ read) @ read.T
                wide_up = wide_up - written @ (written.T @ wide_up)
        new_downs.append(wide_down.astype(np.float32))
        new_ups.append(wide_up.astype(np.float32))
    return new_downs, new_ups


def _basis(columns: Array) -> Array:
    """Orthonormal basis of a column space, `[n, dimensions]` float64."""
    q, r = np.linalg.qr(columns.astype(np.float64))
    left, values, _ = np.linalg.svd(r, full_matrices=False)  # small, of the same rank
    basis: Array = q @ left[:, : np.sum(values > _RANK_TOLERANCE * values.max(initial=0.0))]
    return basis


def truncate(down: Array, up: Array, rank: int) -> tuple[Array, Array]:
    """The nearest factors of a lower rank (Eckart-Young): singular values are shared evenly.

    Args:
        down, up: `[r, in]` and `[out, r]`.
        rank: at most `min(r, in, out)`.

    Returns:
        float32 `[rank, in]` and `[out, rank]`.
    """
    up_q, up_r = np.linalg.qr(up.astype(np.float64))
    down_q, down_r = np.linalg.qr(down.astype(np.float64).T)
    left, values, right = np.linalg.svd(up_r @ down_r.T, full_matrices=False)
    root = np.sqrt(values[:rank])
    new_up = (up_q @ left[:, :rank]) * root
    new_down = root[:, None] * (right[:rank] @ down_q.T)
    return new_down.astype(np.float32), new_up.astype(np.float32)
