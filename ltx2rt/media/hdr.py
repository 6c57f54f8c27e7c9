"""High dynamic range colour: log curves, primaries and the HLG signal, in plain numpy.

Formulas and constants: spec/media_io.md §6. Arrays are float32 with RGB in the last axis; linear
light is 1 at diffuse white. "Codes" are what the model sees and makes, in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ltx2rt.engine import F32

Matrix = F32

AP1_TO_REC709: Matrix = np.array(
    [[1.70505, -0.62179, -0.08326], [-0.13026, 1.1408, -0.01055], [-0.024, -0.12897, 1.15297]],
    np.float32,
)
REC709_TO_AP1: Matrix = np.linalg.inv(AP1_TO_REC709.astype(np.float64)).astype(np.float32)
REC709_TO_REC2020: Matrix = np.array(
    [
        [0.62740389, 0.32928304, 0.04331307],
        [0.06909729, 0.9195404, 0.01136232],
        [0.01639144, 0.08801331, 0.89559525],
    ],
    np.float32,
)


#: red, green, blue and white, x and y each, as an EXR file's `chromaticities` hold them
REC709_CHROMATICITIES = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290)
AP1_CHROMATICITIES = (0.713, 0.293, 0.165, 0.830, 0.128, 0.044, 0.32168, 0.33767)


def convert_primaries(linear: F32, matrix: Matrix) -> F32:
    """Linear light `[..., 3]` in other primaries; may be negative."""
    return (linear @ matrix.T).astype(np.float32)


def acescct_compress(linear: F32) -> F32:
    """Linear AP1 light to ACEScct codes in [0, 1]; negative light is black."""
    x = np.maximum(linear, np.float32(0))
    log = (np.log2(np.maximum(x, np.float32(1e-12))) + np.float32(9.72)) / np.float32(17.52)
    toe = np.float32(10.5402377416545) * x + np.float32(0.0729055341958355)
    return np.clip(np.where(x > np.float32(0.0078125), log, toe), 0, 1).astype(np.float32)


def acescct_decompress(codes: F32) -> F32:
    """ACEScct codes, clamped to [0, 1], to linear AP1 light: the inverse of `acescct_compress`."""
    codes = np.clip(codes, 0, 1).astype(np.float32)
    light = np.exp2(np.float32(17.52) * codes - np.float32(9.72))
    toe = (codes - np.float32(0.0729055341958355)) / np.float32(10.5402377416545)
    return np.where(codes > np.float32(0.155251141552511), light, toe).astype(np.float32)


_A, _B, _C, _D, _E, _F, _CUT = (
    np.float32(v) for v in (5.555556, 0.052272, 0.247190, 0.385537, 5.367655, 0.092809, 0.010591)
)


def logc3_compress(linear: F32) -> F32:
    """Linear Rec.709 light to LogC3 codes (exposure index 800) in [0, 1]; negative is black."""
    x = np.maximum(linear, np.float32(0))
    log = _C * np.log10(_A * x + _B) + _D
    return np.clip(np.where(x >= _CUT, log, _E * x + _F), 0, 1).astype(np.float32)


def logc3_decompress(codes: F32) -> F32:
    """LogC3 codes, clamped to [0, 1], to linear Rec.709 light; codes below black give negative
    light.
    """
    codes = np.clip(codes, 0, 1).astype(np.float32)
    light = (np.power(np.float32(10), (codes - _D) / _C) - _B) / _A
    toe = (codes - _F) / _E
    return np.where(codes >= _E * _CUT + _F, light, toe).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class HdrFormat:
    """How high dynamic range goes into the model and comes out.

    Attributes:
        transfer: the curve of the codes: ACEScct (whose primaries are AP1) or LogC3 (Rec.709).
        files: what EXR files hold: linear light of Rec.709 or AP1, or the codes themselves.
    """

    transfer: Literal["acescct", "logc3"]
    files: Literal["rec709", "ap1", "codes"]

    @property
    def exr_attributes(self) -> dict[str, Any]:
        """Colour attributes of the EXR files."""
        if self.files == "rec709":
            return {"chromaticities": REC709_CHROMATICITIES, "colorSpace": "sRGB"}
        tag = "ACEScg" if self.files == "ap1" else "ACEScct"
        return {"chromaticities": AP1_CHROMATICITIES, "colorSpace": tag}

    def encode(self, values: F32) -> F32:
        """What a file holds, `[..., 3]`, as codes in [0, 1]."""
        if self.files == "codes":
            return np.clip(values, 0, 1).astype(np.float32)
        compress, _, primaries = TRANSFERS[self.transfer]
        if primaries == "ap1" and self.files == "rec709":
            values = convert_primaries(values, REC709_TO_AP1)
        elif primaries == "rec709" and self.files == "ap1":
            values = convert_primaries(values, AP1_TO_REC709)
        return compress(values)

    def decode(self, codes: F32) -> F32:
        """Codes in [0, 1] as what a file holds: 0 or more, or the codes themselves."""
        return codes if self.files == "codes" else self._linear(codes, self.files)

    def linear_rec709(self, codes: F32) -> F32:
        """Codes in [0, 1] as linear Rec.709 light, 0 or more."""
        return self._linear(codes, "rec709")

    def _linear(self, codes: F32, wanted: str) -> F32:
        _, decompress, primaries = TRANSFERS[self.transfer]
        light = decompress(codes)
        if primaries != wanted:
            light = convert_primaries(light, AP1_TO_REC709 if wanted == "rec709" else REC709_TO_AP1)
        return np.maximum(light, np.float32(0))


#: transfer -> its curve, the inverse, and the primaries it belongs to
TRANSFERS: dict[str, tuple[Callable[[F32], F32], Callable[[F32], F32], str]] = {
    "acescct": (acescct_compress, acescct_decompress, "ap1"),
    "logc3": (logc3_compress, logc3_decompress, "rec709"),
}

#: what `hdr` of a `GenerationConfig` may be
HDR_FORMATS: dict[str, HdrFormat] = {
    "SRGB_LINEAR": HdrFormat(transfer="acescct", files="rec709"),
    "ACESCG": HdrFormat(transfer="acescct", files="ap1"),
    "ACESCCT": HdrFormat(transfer="acescct", files="codes"),
}


def codes_to_vae_input(codes: F32) -> F32:
    """Codes `[f, H, W, 3]` in [0, 1] to `[1, 3, f, H, W]` in [-1, 1]."""
    return np.ascontiguousarray(np.moveaxis(2 * codes - np.float32(1), -1, 0)[None])


def srgb_signal(linear: F32) -> F32:
    """Linear Rec.709 light to the sRGB signal in [0, 1]; light above diffuse white is cut."""
    light = np.clip(linear, 0, 1)
    power = np.float32(1.055) * np.power(light, np.float32(1 / 2.4)) - np.float32(0.055)
    return np.where(light <= np.float32(0.0031308), light * np.float32(12.92), power).astype(
        np.float32
    )


_HLG_A, _HLG_B, _HLG_C = (np.float32(v) for v in (0.17883277, 0.28466892, 0.55991073))
#: HLG signal of diffuse white
_WHITE_SIGNAL = 0.75


def hlg_signal(linear: F32, to_rec2020: Matrix = REC709_TO_REC2020) -> F32:
    """Linear light to the HLG signal in [0, 1] with Rec.2020 primaries: diffuse white at 0.75, the
    light above it rolled off smoothly. NaN is black.
    """
    light = np.nan_to_num(convert_primaries(linear, to_rec2020), nan=0.0)
    white = float((np.exp((_WHITE_SIGNAL - _HLG_C) / _HLG_A) + _HLG_B) / 12)
    slope = np.float32(white / (1 - white))
    above = 1 - np.float32(1 - white) * np.exp(-slope * (np.maximum(light, 1) - np.float32(1)))
    scene = np.where(light <= 1, light * np.float32(white), above)
    scene = np.maximum(scene, np.float32(0))
    knee = np.float32(1 / 12)
    log = _HLG_A * np.log(np.maximum(12 * scene - _HLG_B, np.float32(1e-12))) + _HLG_C
    return np.clip(np.where(scene <= knee, np.sqrt(3 * scene), log), 0, 1).astype(np.float32)


def hlg_planes(signal: F32) -> tuple[NDArray[np.uint16], ...]:
    """An HLG frame `[H, W, 3]`, sides even, as 10-bit limited-range Y, U and V planes (BT.2020
    non-constant luminance, 4:2:0 by 2x2 averages, rounded).
    """
    red, green, blue = (signal[..., i] for i in range(3))
    luma = np.float32(0.2627) * red + np.float32(0.6780) * green + np.float32(0.0593) * blue
    planes = [np.rint(luma * np.float32(876) + np.float32(64))]
    for colour, divisor in ((blue, 1.8814), (red, 1.4746)):
        chroma = (colour - luma) / np.float32(divisor)
        halved = chroma.reshape(chroma.shape[0] // 2, 2, chroma.shape[1] // 2, 2).mean((1, 3))
        planes.append(np.rint(halved * np.float32(896) + np.float32(512)))
    return tuple(np.clip(plane, 0, 1023).astype(np.uint16) for plane in planes)
