"""How strong the updates of an adapter file are: alpha tensors, else its trainer's configuration.

Every naming counts alike (spec/lora.md §1). What official names leave out is 1: their
trainers fold alpha in.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ltx2rt.errors import CheckpointError
from ltx2rt.user_files import read_limited
from ltx2rt.weights.safetensors import (
    MappedFiles,
    SafetensorsFile,
    TensorEntry,
    convert,
    read_metadata,
)

_MAX_CONFIG_BYTES = 1 << 20


class Scales:
    """The scales of one file.

    Args:
        peft: whether `adapter_config.json` beside the file belongs to it.
        ignore_alpha: every scale is 1, as in the official loader.

    Raises:
        CheckpointError: the configuration beside the file cannot be read.
    """

    def __init__(self, file: SafetensorsFile, *, peft: bool, ignore_alpha: bool) -> None:
        self._file = file
        self._ignore = ignore_alpha
        self._files = MappedFiles()
        config = read_metadata(file, "lora_adapter_metadata")
        if config is None and peft:
            config = _adapter_config(file.path.with_name("adapter_config.json"))
        config = config if isinstance(config, dict) else {}
        #: keys may name the component that they are for: `transformer.lora_alpha`
        self._config = {str(key).rsplit(".", 1)[-1]: value for key, value in config.items()}

    def of(self, module: str, rank: int | None, alpha: TensorEntry | None) -> float:
        """The scale of one update.

        Args:
            rank: its inner size; None where its factors are stored whole: alpha tensors then mean
                nothing (LyCORIS), a configuration still does (PEFT).
            alpha: the tensor beside it.

        Raises:
            CheckpointError: an alpha is not one finite number.
        """
        if self._ignore:
            return 1.0
        if alpha is not None:
            number = self.number(alpha)
            return 1.0 if rank is None else number / max(rank, 1)
        if rank is None:
            rank = self._whole(self._pattern("rank_pattern", module, self._config.get("r")))
        value = self._pattern("alpha_pattern", module, self._config.get("lora_alpha"))
        value = self._config.get("alpha", rank) if value is None else value
        root = self._config.get("use_rslora") is True
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

    def _whole(self, value: object) -> int:
        return value if isinstance(value, int) and not isinstance(value, bool) else 1

    def _pattern(self, key: str, module: str, default: Any) -> Any:
        """PEFT's patterns: the end of a module's name, or after `^` all of it."""
        patterns = self._config.get(key)
        for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
            plain = str(pattern).replace("\\.", ".")
            whole = plain.startswith("^")
            plain = plain.removeprefix("^").removesuffix("$")
            if module == plain or (not whole and f".{module}".endswith(f".{plain}")):
                return value
        return default

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


def _adapter_config(path: Path) -> object:
    """What PEFT writes beside its weights, which holds alpha; None when it is not there.

    Raises:
        CheckpointError: it cannot be read.
    """
    if not path.exists():
        return None
    try:
        return json.loads(read_limited(path, _MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} says how strong the LoRA beside it is, but it cannot be read ({error}); mend "
            "it, or remove it to take alpha = rank."
        ) from error
