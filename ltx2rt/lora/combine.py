"""Merge adapter files into one of plain LoRAs and differences, in the official key format.

Per tensor; a LoRA's delta is `strength * scale * up @ down`:

- *concat*: ranks side by side. The merged delta is exactly the sum of the deltas. LoHa and LoKr are
  LoRAs of a higher rank, and written as such where that is smaller than their difference.
- *orthogonal*: what a later LoRA shares with earlier ones is taken out first. With U an orthonormal
  basis of the outputs that earlier LoRAs write (columns of their `up`) and V one of the inputs that
  they read (rows of their `down`), `up <- (I - U U^T) up` and `down <- down (I - V V^T)`; then
  concat. So deltas of different LoRAs read and write orthogonal subspaces: the first LoRA acts as
  if alone, and order matters. Training in orthogonal subspaces is O-LoRA's idea (Wang et al., 2023,
  arXiv:2310.14152); here Gram-Schmidt imposes it on trained files.
- *ema*: the files are steps of one training, and are averaged (`lora.averages`): same ranks, scales
  and tensors in all of them.

Everything else (biases, norms, tables, full differences) is summed. DoRA, OFT and replacements
depend on the model: what they do to one base is written as its difference.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ltx2rt.config import lora_problems
from ltx2rt.engine import Array
from ltx2rt.errors import CheckpointError, OptionError, UnsupportedError, shortened
from ltx2rt.lora.adapter import all_updates, refuse_unsupported
from ltx2rt.lora.averages import ema_weights
from ltx2rt.lora.files import Lora, open_lora
from ltx2rt.lora.generation import lora_generations
from ltx2rt.lora.keys import read_lora_keys
from ltx2rt.lora.low_rank import low_rank_of, orthogonalize, truncate
from ltx2rt.lora.metadata import merged_metadata
from ltx2rt.lora.official_names import official_name
from ltx2rt.lora.products import Hadamard, Kronecker, rank_of
from ltx2rt.lora.tensor_names import stem_of
from ltx2rt.lora.updates import Additive, Difference, Fitting, LowRank, Update
from ltx2rt.lora.values import check_finite
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile, TensorEntry
from ltx2rt.weights.safetensors_writer import Stream, write_safetensors

METHODS = ("concat", "orthogonal", "ema")
DTYPES = ("float32", "bfloat16", "float16", "auto")
#: relative width of the average of files that all count alike
MAX_SIGMA = 0.288
_AUTO = ("float32", "bfloat16", "float16")

#: official tensor name -> (update, strength), in the order of the files
Updates = dict[str, list[tuple[Update, float]]]
#: float32 values of the model's tensor; None where it has none of that name
Base = Callable[[str], Array | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeOptions:
    """How to merge.

    Attributes:
        method: see the module's text.
        rank: keep at most this many singular values of every weight's merged delta; differences of
            weights become LoRAs of this rank.
        dtype: of what is written; bfloat16 halves the file and rounds; auto: the widest of the
            files.
        ignore_alpha: see `read_lora_keys`.
        emit_alpha: write an alpha, equal to the rank, beside every LoRA.
        keep_first: an expression; of modules whose name it is found in, the first file that has one
            counts alone.
        orthogonal_fraction: which part of the earlier directions *orthogonal* takes out, the
            strongest first.
        ema_decay, ema_last_decay, ema_sigma: how *ema* averages, see `ema_weights`.
    """

    method: str = "concat"
    rank: int | None = None
    dtype: str = "float32"
    ignore_alpha: bool = False
    emit_alpha: bool = False
    keep_first: str | None = None
    orthogonal_fraction: float = 1.0
    ema_decay: float = 0.95
    ema_last_decay: float | None = None
    ema_sigma: float | None = None

    def problems(self) -> list[str]:
        """What is not allowed."""
        problems = []
        if self.method not in METHODS:
            problems.append(f"method={self.method!r}; allowed: {', '.join(METHODS)}")
        if self.rank is not None and self.rank < 1:
            problems.append(f"rank={self.rank} is below 1")
        if self.dtype not in DTYPES:
            problems.append(f"dtype={self.dtype!r}; allowed: {', '.join(DTYPES)}")
        if not 0 <= self.orthogonal_fraction <= 1:
            problems.append(f"orthogonal_fraction={self.orthogonal_fraction} is not in [0, 1]")
        for name in ("ema_decay", "ema_last_decay"):
            decay = getattr(self, name)
            if decay is not None and not 0 <= decay < 1:
                problems.append(f"{name}={decay} is not in [0, 1)")
        if self.ema_sigma is not None and not 0 < self.ema_sigma < MAX_SIGMA:
            problems.append(f"ema_sigma={self.ema_sigma} is not above 0 and below {MAX_SIGMA}")
        try:
            re.compile(self.keep_first or "")
        except re.error as error:
            problems.append(f"keep_first={self.keep_first!r} is no expression ({error})")
        return problems


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedLora:
    """What was written: official module -> rank, and the tensors written as differences."""

    path: Path
    ranks: Mapping[str, int]
    differences: tuple[str, ...]


def merge_loras(
    loras: Sequence[Lora],
    target: Path,
    options: MergeOptions | None = None,
    base: Base | None = None,
) -> MergedLora:
    """Merge adapters into one file whose strength is 1; alphas are folded in.

    Args:
        loras: files or folders and their strengths, in order; those of strength 0 are left out.
        target: the file to write, atomically.
        base: the model, for kinds that depend on it.

    Raises:
        OptionError: options or strengths are not allowed, or their metadata conflicts.
        CheckpointError: files are broken, of different generations, or do not fit each other.
        UnsupportedError: a kind that is not merged, or that depends on a model without `base`.
    """
    options = options or MergeOptions()
    problems = [*lora_problems(loras), *options.problems()]
    if not any(lora.strength for lora in loras):
        problems.append("no LoRA has a strength other than 0")
    if options.method == "ema" and any(lora.strength != 1 for lora in loras):
        problems.append("method='ema' averages files as they are: leave strengths out")
    if problems:
        raise OptionError("cannot merge", problems)
    active = [lora for lora in loras if lora.strength]
    files = [open_lora(lora.path) for lora in active]
    updates = _updates(active, files, options)
    if options.method == "ema":
        _check_steps(updates, len(files))
    use = merged_metadata(files)
    dtype = _dtype(updates) if options.dtype == "auto" else options.dtype
    merged = _Merged(updates, options, base)
    tensors: dict[str, Stream] = {}
    ranks: dict[str, int] = {}
    differences = []
    for name in updates:
        module, field = stem_of(name)
        written = f"diffusion_model.{module}"
        rank = merged.rank(name)
        if rank is None:
            differences.append(name)
            suffix = "diff_b" if field == "bias" else "diff"
            tensors[f"{written}.{suffix}"] = dtype, merged.shape(name), merged.difference(name)
            continue
        out, width = merged.shape(name)
        tensors[f"{written}.lora_A.weight"] = dtype, (rank, width), merged.factor(name, 0)
        tensors[f"{written}.lora_B.weight"] = dtype, (out, rank), merged.factor(name, 1)
        if options.emit_alpha:
            tensors[f"{written}.alpha"] = "float32", (), (np.array(rank, np.float32),)
        ranks[module] = rank
    metadata = {
        "format": "pt",
        "merge_method": options.method,
        "merged_from": "; ".join(f"{Path(x.path).name}:{x.strength:g}" for x in active),
        **({"lora_rank": str(max(ranks.values()))} if ranks else {}),
        **use,
    }
    write_safetensors(target, tensors, metadata)
    return MergedLora(path=target, ranks=ranks, differences=tuple(differences))


def _updates(
    loras: Sequence[Lora], files: Sequence[SafetensorsFile], options: MergeOptions
) -> Updates:
    updates: Updates = {}
    problems: list[str] = []
    fits: dict[str, tuple[str, ...]] = {}
    for lora, file in zip(loras, files, strict=True):
        keys = read_lora_keys(file, ignore_alpha=options.ignore_alpha)
        refuse_unsupported(file, keys)
        problems += [f"{file.path.name}: {p}" for p in keys.problems]
        fits[file.path.name] = lora_generations(file, keys)
        found = all_updates(keys)
        if not found:
            problems.append(f"{file.path.name} holds no LoRA")
        named: set[str] = set()
        for target, update in found.items():
            name = official_name(*target)
            if name is None:
                problems.append(f"{file.path.name}: {target} is not a module of this model family")
            elif name in named:
                problems.append(f"{file.path.name}: {name} occurs twice")
            elif not (name in updates and _is_kept(name, options.keep_first)):
                named.add(name)
                updates.setdefault(name, []).append((update, lora.strength))
        if not keys.problems:
            check_finite(file, found.values())
    for name, changes in updates.items():
        sizes = {u.shape for u, _ in changes if u.shape is not None}
        if len(sizes) > 1:
            listed = " and ".join(str(list(size)) for size in sorted(sizes))
            problems.append(f"{stem_of(name)[0]} is {listed} in different files")
    if fits and not set.intersection(*(set(f) for f in fits.values())):
        told = ", ".join(f"{name}: {' or '.join(f)}" for name, f in fits.items())
        problems.append(f"they are for different models ({told})")
    if problems:
        raise CheckpointError("these LoRAs cannot be merged", shortened(problems))
    return updates


def _check_steps(updates: Updates, count: int) -> None:
    """Refuse what are no steps of one training.

    Raises:
        CheckpointError: their tensors, ranks or scales differ.
        UnsupportedError: kinds whose parts are not averaged.
    """
    problems = []
    for name, changes in updates.items():
        found = [update for update, _ in changes]
        if len({type(update) for update in found}) > 1 or len(found) != count:
            problems.append(f"{name} is not changed alike in all files")
        elif not isinstance(found[0], LowRank | Difference):
            raise UnsupportedError(
                f"{name} gets a {found[0].kind}; method ema averages LoRAs and differences: "
                "convert each file with `ltx2rt lora merge` first."
            )
        elif len({(u.scale, *(p.shape for p in u.parts())) for u in found}) > 1:  # type: ignore[attr-defined]
            problems.append(f"{name} has other ranks or scales in some of the files")
    if problems:
        raise CheckpointError("these are no steps of one training", shortened(problems))


def _is_kept(name: str, pattern: str | None) -> bool:
    return pattern is not None and re.search(pattern, name) is not None


def _dtype(updates: Updates) -> str:
    """The widest dtype of all tensors; what is neither 16-bit format is float32."""
    found = {part.dtype for changes in updates.values() for u, _ in changes for part in u.parts()}
    return next(iter(found)) if len(found) == 1 and found <= set(_AUTO) else "float32"


class _Merged:
    """What is written of each tensor, computed when it is its turn."""

    def __init__(self, updates: Updates, options: MergeOptions, base: Base | None) -> None:
        self._updates, self._options, self._base = updates, options, base
        self._files = MappedFiles()
        self._shares: list[float] = []
        if options.method == "ema":
            count = max(len(changes) for changes in updates.values())
            self._shares = ema_weights(
                count, options.ema_decay, options.ema_last_decay, options.ema_sigma
            )
        self._last: tuple[str, tuple[Array, Array]] | None = None
        self._shapes = {name: self._shape(name) for name in updates}

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the tensor."""
        return self._shapes[name]

    def rank(self, name: str) -> int | None:
        """The rank that a tensor is written with; None: as its difference."""
        shape, limit = self.shape(name), self._options.rank
        if len(shape) != 2 or stem_of(name)[1] != "weight":
            return None
        if limit is not None:
            limit = min(limit, *shape)
        updates = [update for update, _ in self._updates[name]]
        ranks = [rank for update in updates if (rank := rank_of(update)) is not None]
        if len(ranks) < len(updates):
            return limit
        total = ranks[0] if self._shares else sum(ranks)
        plain = all(isinstance(update, LowRank) for update in updates)
        if limit is None and not plain and total * sum(shape) >= shape[0] * shape[1]:
            return None
        return total if limit is None else min(total, limit)

    def difference(self, name: str) -> Iterator[Array]:
        """All updates of a tensor as one difference."""
        yield self._difference(name)

    def factor(self, name: str, which: int) -> Iterator[Array]:
        """`down` (0) or `up` (1) as a stream of one array."""
        if self._last is None or self._last[0] != name:
            self._last = name, self._factors(name)
        yield self._last[1][which]

    def _load(self, entry: TensorEntry) -> Array:
        return self._files.load(entry, "float32")

    def _shape(self, name: str) -> tuple[int, ...]:
        shapes = [update.shape for update, _ in self._updates[name]]
        values = None
        if not all(isinstance(update, Additive) for update, _ in self._updates[name]):
            values = self._base(name) if self._base is not None else None
            if values is None:
                kinds = ", ".join(sorted({u.kind for u, _ in self._updates[name]}))
                where = "this bundle lacks it" if self._base else "name it with --bundle DIR"
                raise UnsupportedError(
                    f"{name} gets a {kinds}, whose difference depends on the model: {where}."
                )
        own = () if values is None else values.shape
        shape = next((shape for shape in shapes if shape is not None), own)
        problems = [u.problem(own) for u, _ in self._updates[name] if isinstance(u, Fitting)]
        if found := [problem for problem in problems if problem]:
            raise CheckpointError(f"{name} is {list(own)} in this bundle: {found[0]}.")
        if values is not None and values.shape != shape:
            raise CheckpointError(
                f"{name} is {list(values.shape)} in this bundle, {list(shape)} in the LoRA."
            )
        return shape

    def _difference(self, name: str) -> Array:
        changes = self._updates[name]
        if all(isinstance(update, Additive) for update, _ in changes):
            total = np.zeros(self.shape(name), np.float32)
            shares = self._shares or [1.0] * len(changes)
            for share, (update, strength) in zip(shares, changes, strict=True):
                total = update.merged(total, strength * share, self._load)
            return total
        assert self._base is not None
        base = self._base(name)
        assert base is not None
        values = base
        for update, strength in changes:
            values = update.merged(values, strength, self._load)
        difference: Array = values - base
        return difference

    def _factors(self, name: str) -> tuple[Array, Array]:
        rank, changes = self.rank(name), self._updates[name]
        assert rank is not None
        downs, ups = [], []
        for update, strength in changes:
            if not isinstance(update, LowRank | Kronecker | Hadamard):
                return low_rank_of(self._difference(name), rank)
            down, up = update.factors(self._load)
            downs.append(down)
            ups.append(up * np.float32(strength * update.scale))
        if self._shares:
            downs, ups = ([_average(self._shares, all_of)] for all_of in (downs, ups))
        if self._options.method == "orthogonal":
            downs, ups = orthogonalize(downs, ups, self._options.orthogonal_fraction)
        down, up = np.concatenate(downs, axis=0), np.concatenate(ups, axis=1)
        return (down, up) if rank == down.shape[0] else truncate(down, up, rank)


def _average(shares: Sequence[float], arrays: Sequence[Array]) -> Array:
    total: Array = np.zeros_like(arrays[0])
    for share, array in zip(shares, arrays, strict=True):
        total += np.float32(share) * array
    return total
