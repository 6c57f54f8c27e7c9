"""What a pipeline needs of a model: facts, engines, stacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ltx2rt.backends.stack import Stack
from ltx2rt.bundle.manifest import ModelInfo
from ltx2rt.config import RuntimeConfig
from ltx2rt.engine import Engine
from ltx2rt.lora.files import Lora
from ltx2rt.names import StackNames


class ModelFacts(Protocol):
    """What is known of a model before anything is loaded: an opened bundle is one."""

    @property
    def model(self) -> ModelInfo: ...

    @property
    def bundle_id(self) -> str: ...

    @property
    def text_encoder_id(self) -> str: ...

    def has(self, *names: str) -> bool: ...

    def context_widths(self) -> Mapping[str, int]: ...

    def options(self, name: str) -> Mapping[str, Any]: ...

    def tokenizer_path(self) -> Path: ...


class ModelLoader(Protocol):
    """Hands out engines and stacks; whoever asks closes them."""

    def check_loras(self, loras: Sequence[Lora]) -> None: ...

    def text_loras(self, loras: Sequence[Lora]) -> tuple[Lora, ...]: ...

    def engine(self, name: str, runtime: RuntimeConfig) -> Engine: ...

    def stack(
        self, names: StackNames, runtime: RuntimeConfig, loras: Sequence[Lora] = ()
    ) -> Stack: ...


class ModelSource(ModelFacts, ModelLoader, Protocol):
    """Both in one: the reference behind the face of a bundle."""
