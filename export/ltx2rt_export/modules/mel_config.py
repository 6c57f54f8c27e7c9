"""Sizes of the log-mel front end of the audio VAE (spec/audio.md §2)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MelConfig:
    """The front end: rates in Hz, lengths in samples; bands reach from 0 to half the rate."""

    sampling_rate: int = 16000
    n_fft: int = 1024
    hop_length: int = 160
    mel_bins: int = 64
