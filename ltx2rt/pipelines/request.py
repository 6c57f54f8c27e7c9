"""What one call asks for; flags, job files, records and batch lines are spellings of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ltx2rt.config import GenerationConfig, GuidanceConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one call asks for.

    Attributes:
        config: what to make.
        guidance: how to sample; None for pipelines without guidance.
        inputs: the pipeline's own inputs (its `Inputs`), or None.
    """

    config: GenerationConfig
    guidance: GuidanceConfig | None = None
    inputs: Any = None
