"""What a LoRA's metadata says about its use: size of references, HDR curve (spec/lora.md §6)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from ltx2rt.errors import Field, OptionError, Problem
from ltx2rt.weights.safetensors import SafetensorsFile, read_metadata

DOWNSCALE_KEY = "reference_downscale_factor"
#: as trainers call the same, beside names with a prefix of theirs (`ss_reference_downscale_factor`
#: of musubi-tuner)
_SPATIAL_KEYS = (DOWNSCALE_KEY, "reference_spatial_scale_factor")
TEMPORAL_KEY = "reference_temporal_scale_factor"
HDR_KEYS = ("hdr_transform", "use_hdr_transform")


def reference_factors(
    files: Iterable[SafetensorsFile], spatial: int | None = None
) -> tuple[int, int]:
    """IC-LoRA scale of the reference video: (spatial, temporal), 1 when no file says otherwise.

    Args:
        spatial: instead of what the files say, where it is not None.

    Raises:
        OptionError: two LoRAs want different factors.
    """
    found: dict[str, dict[int, str]] = {"spatial": {}, "temporal": {}}
    for file in files:
        for axis, factor in zip(found, file_reference_factors(file), strict=True):
            if factor != 1:
                found[axis][factor] = file.path.name
    for axis, factors in found.items():
        if len(factors) > 1 and not (axis == "spatial" and spatial):
            listed = ", ".join(f"{name}: {factor}" for factor, name in factors.items())
            raise OptionError(f"LoRAs want different {axis} reference factors ({listed}).")
    return spatial or next(iter(found["spatial"]), 1), next(iter(found["temporal"]), 1)


def file_reference_factors(file: SafetensorsFile) -> tuple[int, int]:
    """(spatial, temporal) reference factor in one file's metadata; missing or unreadable is 1."""
    return _factor(file, *_SPATIAL_KEYS), _factor(file, TEMPORAL_KEY)


def names_spatial_factor(file: SafetensorsFile) -> bool:
    """Whether a file says how large its reference is, if only that it is of full size."""
    return any(_keys(file, DOWNSCALE_KEY))


def detailing_factor(file: SafetensorsFile) -> int:
    """How much smaller than stage 2 a detailing LoRA wants its reference; 2, the size of stage 1,
    unless its metadata says otherwise (spec/pipelines.md §12).
    """
    return file_reference_factors(file)[0] if names_spatial_factor(file) else 2


def hdr_transfer(files: Sequence[SafetensorsFile]) -> Literal["acescct", "logc3"]:
    """The curve that the LoRAs were trained with; LogC3 unless their metadata names ACEScct.

    Raises:
        OptionError: they name different curves, or one that is not known.
    """
    named = {
        file.metadata[key].lower() for file in files for key in HDR_KEYS if key in file.metadata
    }
    found = {"logc3" if name == "true" else name for name in named}
    if found - {"logc3", "acescct"} or len(found) > 1:
        raise OptionError(
            f"the LoRAs name the HDR curves {', '.join(sorted(named))}; one is needed: logc3 or "
            "acescct."
        )
    return "acescct" if "acescct" in found else "logc3"


def merged_metadata(files: Sequence[SafetensorsFile]) -> dict[str, str]:
    """What one LoRA that stands for all these must say.

    Raises:
        OptionError: they contradict each other.
    """
    spatial, temporal = reference_factors(files)
    found = {}
    # 1 is not the default of every use (`detailing_factor`)
    if spatial != 1 or any(names_spatial_factor(file) for file in files):
        found[DOWNSCALE_KEY] = str(spatial)
    if temporal != 1:
        found[TEMPORAL_KEY] = str(temporal)
    curve = hdr_transfer(files)
    if any(key in file.metadata for file in files for key in HDR_KEYS):
        found[HDR_KEYS[0]] = curve
    return found


def reference_downscale_problems(factor: int | None) -> list[str]:
    """What is wrong with a factor that a user names; None takes the files'."""
    if factor is None or factor >= 1:
        return []
    return [Problem(Field("reference_downscale"), f"={factor} is below 1")]


def _factor(file: SafetensorsFile, *keys: str) -> int:
    """The first of these that is a number above 1; 1 without."""
    for key in (spelled for name in keys for spelled in _keys(file, name)):
        value = read_metadata(file, key)
        try:
            factor = int(float(value)) if value is not None else 1
        except (TypeError, ValueError, OverflowError):
            continue
        if factor > 1:
            return factor
    return 1


def _keys(file: SafetensorsFile, key: str) -> list[str]:
    """A key as a file spells it: the plain name first, then with the prefix of a trainer."""
    return [key] * (key in file.metadata) + sorted(
        k for k in file.metadata if k.endswith(f"_{key}")
    )
