"""The adapters of a run, merged into weights while they are loaded."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Set

import numpy as np

from ltx2rt.engine import Array
from ltx2rt.errors import UnsupportedError
from ltx2rt.lora.adapter import collect_updates, fuse_entry, parse_lora
from ltx2rt.lora.files import Lora, open_lora
from ltx2rt.lora.products import Hadamard, Kronecker, rank_of
from ltx2rt.lora.updates import LowRank
from ltx2rt.lora.values import check_finite
from ltx2rt.weights.safetensors import MappedFiles, TensorEntry


class LoraMerger:
    """Adapters matched to a model, merged into its weights one tensor at a time.

    The weights they start from are never changed: without adapters, or with others, the same
    tensors are read again.

    Args:
        loras: files and strengths, in order; those of strength 0 change nothing.
        targets: official tensor name -> shape.
        unmerged: tensors whose updates the graph takes as factors (`factors`).
        dtype, delta_dtype, threads: see `fuse`.

    Raises:
        CheckpointError: a file is no adapter, is broken, holds numbers that are not finite, or
            fits no tensor of this model.
        UnsupportedError: a kind that cannot be merged, or not be given as factors.
    """

    def __init__(
        self,
        loras: Iterable[Lora],
        targets: Mapping[str, tuple[int, ...]],
        *,
        unmerged: Iterable[str] = (),
        dtype: str | None = None,
        delta_dtype: str = "bfloat16",
        threads: int = 1,
    ) -> None:
        adapters = [(x, parse_lora(open_lora(x.path), targets)) for x in loras if x.strength]
        for _, adapter in adapters:
            check_finite(adapter.file, adapter.updates.values())
            adapter.warn_of_skipped()
            adapter.warn_of_no_effect()
        self._adapters = adapters
        self._updates = collect_updates((adapter, lora.strength) for lora, adapter in adapters)
        for name in unmerged:
            for update, _ in self._updates.get(name, ()):
                if rank_of(update) is None:
                    raise UnsupportedError(
                        f"{name} gets a {update.kind}, which graphs that take LoRAs as inputs "
                        "cannot do; build the bundle without --lora-inputs."
                    )
        self._dtype, self._delta_dtype, self._threads = dtype, delta_dtype, threads
        self._files = MappedFiles()

    @property
    def changed(self) -> Set[str]:
        """Official names of the tensors that any adapter changes."""
        return self._updates.keys()

    def loras_for(self, names: Container[str]) -> tuple[Lora, ...]:
        """Those of the LoRAs that change any of these tensors."""
        return tuple(
            lora for lora, adapter in self._adapters if any(n in names for n in adapter.updates)
        )

    def merge(self, name: str | None, weight: TensorEntry) -> Array:
        """A changed tensor with its updates, float32 values."""
        assert name is not None
        return fuse_entry(
            self._files,
            weight,
            self._updates[name],
            dtype=self._dtype,
            delta_dtype=self._delta_dtype,
            threads=self._threads,
        )

    @property
    def rank(self) -> int:
        """The largest rank of all updates of one tensor together; at least 1."""
        sums = (sum(rank_of(u) or 0 for u, _ in updates) for updates in self._updates.values())
        return max(sums, default=1) or 1

    def factors(self, name: str, shape: tuple[int, ...]) -> tuple[Array, Array]:
        """All updates of a weight as one low-rank update, for graphs that take them unmerged.

        Args:
            shape: of the weight, `[out, in]`.

        Returns:
            A `[in, rank]` and B `[rank, out]` with the strengths, float32; zeros where ranks are
            left over (spec/lora.md §4: ranks side by side).
        """
        out, width = shape
        down = np.zeros((self.rank, width), np.float32)
        up = np.zeros((out, self.rank), np.float32)
        begin = 0
        for update, strength in self._updates.get(name, ()):
            assert isinstance(update, LowRank | Kronecker | Hadamard)
            part = update.factors(lambda entry: self._files.load(entry, "float32"))
            rows = slice(begin, begin + update.rank)
            down[rows], up[:, rows] = part[0], part[1] * np.float32(strength * update.scale)
            begin += update.rank
        return np.ascontiguousarray(down.T), np.ascontiguousarray(up.T)
