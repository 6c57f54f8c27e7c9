"""How strong the updates of an adapter file are: alpha tensors, else its trainer's configuration.

Every naming counts alike (spec/lora.md §1). What official names leave out is 1: their
trainers fold alpha in.
"""

from __future__ import annotations

import math
from typing import Any

from ltx2rt.errors import CheckpointError
from ltx2rt.lora.peft_config import PeftConfig
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile, TensorEntry, convert


class Scales:
    """The scales of one file.

    Args:
        config: what PEFT or diffusers say about it.
        ignore_alpha: every scale is 1, as in the official loader.
    """

    def __init__(self, file: SafetensorsFile, config: PeftConfig, *, ignore_alpha: bool) -> None:
        self._file = file
        self._config = config
        self._ignore = ignore_alpha
        self._files = MappedFiles()

    def of(
        self, module: str, rank: int | None, alpha: TensorEntry | None, *, adaptive: bool = False
    ) -> float:
        """The scale of one update.

        Args:
            rank: its inner size; None where its factors are stored whole: alpha tensors then mean
                nothing (LyCORIS), a configuration still does (PEFT).
            alpha: the tensor beside it.
            adaptive: of AdaLoRA, whose ranks are fewer in the end: the first number counts.

        Raises:
            CheckpointError: an alpha is not one finite number.
        """
        if adaptive:
            config = self._config.of(module)
            if not config:  # refused as a kind
                return 1.0
            first = self._check(config.get("init_r"), "init_r")
            number = self._check(config.get("lora_alpha"), "lora_alpha")
            return (number if number > 0 else first) / (first + 1e-5)
        if self._ignore:
            return 1.0
        if alpha is not None:
            number = self.number(alpha)
            return 1.0 if rank is None else number / max(rank, 1)
        if rank is None:
            rank = self._whole(self._config.number("r", "rank_pattern", module))
        value = self._config.number("lora_alpha", "alpha_pattern", module)
        own = self._config.of(module)
        value = own.get("alpha", rank) if value is None else value
        root = own.get("use_rslora") is True
        return self._check(value, "lora_alpha") / float(max(rank, 1) ** (0.5 if root else 1.0))

    def number(self, entry: TensorEntry) -> float:
        """The one number that a tensor holds.

        Raises:
            CheckpointError: it is not one finite number.
        """
        if entry.num_elements != 1:
            return self._check(entry.shape, entry.name)
        raw = self._files.raw(entry)
        if raw.dtype.kind in "iu" and entry.dtype.startswith(("int", "uint")):
            return float(raw.reshape(-1)[0])
        return self._check(
            float(convert(raw, entry.dtype, "float32", entry.name).reshape(-1)[0]), entry.name
        )

    def _whole(self, value: Any) -> int:
        return value if isinstance(value, int) and not isinstance(value, bool) else 1

    def _check(self, value: object, name: str) -> float:
        try:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            number = float(value) if is_number else math.nan  # type: ignore[arg-type]
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise CheckpointError(
                f"{self._file.path} cannot be used as a LoRA: {name} is not one finite number."
            )
        return number
