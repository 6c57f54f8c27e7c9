"""What an adapter file says by itself: key style, pairs, scales.

Formats: spec/lora.md §1.

Only headers and scalar alphas are read.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ltx2rt.errors import CheckpointError
from ltx2rt.weights.safetensors import (
    MappedFiles,
    SafetensorsFile,
    TensorEntry,
    convert,
    read_metadata,
)

STYLES: dict[str, str] = {
    "official": "official / ComfyUI",
    "bare": "official names without prefix",
    "kohya": "kohya / musubi-tuner",
    "peft": "PEFT",
    "diffusers": "diffusers",
}

_WEIGHT = re.compile(
    r"^(.+?)\.(lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up)(\.\w+)?\.weight$"
)
_DOWN = {"lora_A", "lora_down", "lora.down"}
_DTYPES = ("float32", "bfloat16", "float16", "float64", "float8_e4m3fn", "float8_e5m2")
_MAX_CONFIG_BYTES = 1 << 20
_UNSUPPORTED = {
    "DoRA": re.compile(r"\.(dora_scale|lora_magnitude_vector)"),
    "LoHa": re.compile(r"\.hada_\w+$"),
    "LoKr": re.compile(r"\.lokr_\w+$"),
    "full weight difference": re.compile(r"\.diff(_b)?$"),
    "LoRA of a convolution (lora_mid)": re.compile(r"\.lora_mid\.weight$"),
}


@dataclass(frozen=True, slots=True)
class LoraPair:
    """One low-rank update `scale * up @ down` of a linear layer.

    `down` is `[rank, in]` (A), `up` is `[out, rank]` (B).
    """

    down: TensorEntry
    up: TensorEntry
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return self.down.shape[0]


@dataclass(frozen=True, slots=True, eq=False)
class LoraKeys:
    """What an adapter file holds, before it is matched: module as the file names it -> update."""

    style: str
    pairs: Mapping[str, LoraPair]
    unsupported: tuple[str, ...]
    problems: tuple[str, ...]


def read_lora_keys(file: SafetensorsFile, *, honour_alpha: bool = False) -> LoraKeys:
    """Sort an adapter's tensors into pairs.

    Args:
        honour_alpha: scale by alpha/rank in official-style files too. The official loader ignores
            alpha there; kohya, PEFT and diffusers files always use it.

    Raises:
        CheckpointError: an alpha is not a finite number.
    """
    unsupported = tuple(
        kind for kind, pattern in _UNSUPPORTED.items() if any(pattern.search(n) for n in file)
    )
    halves: dict[str, dict[str, TensorEntry]] = {}
    problems: list[str] = []
    for name, entry in file.items():
        if match := _WEIGHT.match(name):
            side = "down" if match[2] in _DOWN else "up"
            if side in halves.setdefault(match[1], {}):
                problems.append(f"{match[1]} has two {side} halves")
            halves[match[1]][side] = entry
            if entry.dtype not in _DTYPES:
                problems.append(f"{name} is {entry.dtype}, expected {', '.join(_DTYPES)}")
    style = _style(list(halves), file)
    scales = _Scales(file, style, honour_alpha=honour_alpha)
    pairs: dict[str, LoraPair] = {}
    for module, half in halves.items():
        if len(half) < 2:
            problems.append(f"{module} has only its {next(iter(half))} half")
            continue
        down, up = half["down"], half["up"]
        is_pair = len(down.shape) == len(up.shape) == 2 and down.shape[0] == up.shape[1]
        if not is_pair or 0 in (*down.shape, *up.shape):
            problems.append(
                f"{module} has shapes {list(down.shape)} and {list(up.shape)}, which do not chain"
            )
            continue
        pairs[module] = LoraPair(down, up, scales.of(module, down.shape[0]))
    return LoraKeys(style, pairs, unsupported, tuple(problems))


def lora_generations(file: SafetensorsFile, keys: LoraKeys) -> tuple[str, ...]:
    """Generations whose modules a LoRA can belong to; shapes alone often fit all three."""
    fits = ["LTX-2", "LTX-2.3", "LTX-2.5"]
    newer = any(re.search(r"to_gate_logits|prompt_adaln", name) for name in keys.pairs)
    older = any(re.search(r"caption_projection|\.aggregate_embed$", name) for name in keys.pairs)
    for name, pair in keys.pairs.items():
        if re.search(r"(^|[._])(adaln_single|time_embed)[._]linear$", name):
            rows = pair.up.shape[0] // max(pair.down.shape[1], 1)
            newer, older = newer or rows == 9, older or rows == 6
    if newer and not older:
        fits = fits[1:]
    elif older and not newer:
        fits = fits[:1]
    named = {"2.5": "LTX-2.5", "2.3": "LTX-2.3", "19b": "LTX-2"}
    hints = {fit for sign, fit in named.items() if sign in file.path.name.lower()}
    both = [fit for fit in fits if fit in hints]
    return tuple(both or fits)


def _style(modules: Sequence[str], file: SafetensorsFile) -> str:
    if any(name.startswith("lora_unet_") for name in modules):
        return "kohya"
    if any("diffusion_model." in name for name in modules):
        return "official"
    if any(name.startswith("base_model.model.") for name in modules):
        return "peft"
    if any(name.startswith("transformer.") for name in modules):
        return "diffusers"
    return "diffusers" if "lora_adapter_metadata" in file.metadata else "bare"


class _Scales:
    """Where a file's scales come from: alpha tensors, else the trainer's configuration."""

    def __init__(self, file: SafetensorsFile, style: str, *, honour_alpha: bool) -> None:
        self._file = file
        self._folded = style in {"official", "bare"} and not honour_alpha
        self._files = MappedFiles()
        config = read_metadata(file, "lora_adapter_metadata")
        if config is None and style == "peft":
            config = _adapter_config(file.path.with_name("adapter_config.json"))
        config = config if isinstance(config, dict) else {}
        #: keys may name the component that they are for: `transformer.lora_alpha`
        self._config = {str(key).rsplit(".", 1)[-1]: value for key, value in config.items()}

    def of(self, module: str, rank: int) -> float:
        """The scale of one update of this rank."""
        if self._folded:
            return 1.0
        entry = self._file.get(f"{module}.alpha")
        if entry is not None:
            return self._number(self._read(entry), f"{module}.alpha") / max(rank, 1)
        patterns = self._config.get("alpha_pattern")
        alpha = self._config.get("lora_alpha", rank)
        if isinstance(patterns, dict):
            named = (v for key, v in patterns.items() if f".{module}".endswith(f".{key}"))
            alpha = next(named, alpha)
        root = self._config.get("use_rslora") is True
        return self._number(alpha, "lora_alpha") / float(max(rank, 1) ** (0.5 if root else 1.0))

    def _read(self, entry: TensorEntry) -> object:
        if entry.num_elements != 1:
            return entry.shape
        raw = self._files.raw(entry)
        if raw.dtype.kind in "iu" and entry.dtype.startswith(("int", "uint")):
            return float(raw.reshape(-1)[0])
        return float(convert(raw, entry.dtype, "float32", entry.name).reshape(-1)[0])

    def _number(self, value: object, name: str) -> float:
        try:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            number = float(value) if is_number else math.nan  # type: ignore[arg-type]
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise CheckpointError(f"{self._file.path} is corrupt: {name} is not one finite number.")
        return number


def _adapter_config(path: Path) -> object:
    """What PEFT writes beside its weights, which holds alpha; None when it is not there.

    Raises:
        CheckpointError: it cannot be read.
    """
    if not path.exists():
        return None
    try:
        with path.open("rb") as file:
            return json.loads(file.read(_MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} says how strong the LoRA beside it is, but it cannot be read ({error}); mend "
            "it, or remove it to take alpha = rank."
        ) from error
