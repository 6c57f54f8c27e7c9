"""The bundles behind one server, by name: what each can do, checked without loading any."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltx2rt.bundle.bundle import Bundle, open_bundle
from ltx2rt.config import RuntimeConfig
from ltx2rt.errors import OptionError
from ltx2rt.pipelines.base import pipeline_class
from ltx2rt.pipelines.catalog import PIPELINES
from ltx2rt.pipelines.guided import GuidedPipeline
from ltx2rt.plain_data import to_plain
from ltx2rt.service.maker import can_preview, check_previews, kind_of
from ltx2rt.service.requests import Order


@dataclass(frozen=True, slots=True)
class Model:
    """One bundle.

    Attributes:
        name: what clients call it.
        bundle: opened.
        runtime: how it runs.
    """

    name: str
    bundle: Bundle
    runtime: RuntimeConfig
    _checking: threading.Lock = field(default_factory=threading.Lock)

    def check(self, order: Order) -> str:
        """Refuse what this bundle cannot do, before anything is loaded; any thread may call it.

        Returns:
            What the clip will be: a key of `maker.FILES`.

        Raises:
            Ltx2rtError: says everything that is wrong.
        """
        if order.preview:
            check_previews(self.bundle, order.pipeline)
        cls = pipeline_class(order.pipeline)
        with self._checking, cls(self.bundle, self.runtime) as pipe:
            request = pipe.accept(order.request)
            for loras in pipe.stage_loras(request):
                pipe.check_loras(loras)
        return kind_of(order)

    def pipelines(self) -> list[str]:
        """Pipelines that the bundle can run."""
        has = self.bundle.has
        return [name for name in PIPELINES if not pipeline_class(name).missing(has)]

    def previews(self) -> list[str]:
        """Those of them whose clips can be seen while they are made."""
        return [name for name in self.pipelines() if can_preview(self.bundle, name)]

    def guider(self, pipeline: str, scale: float) -> dict[str, Any]:
        """A pipeline's own guidance of the picture, at another scale."""
        cls = pipeline_class(pipeline) if pipeline in self.pipelines() else None
        found: dict[str, Any] = {}
        if cls is not None and issubclass(cls, GuidedPipeline) and cls.guided:
            with cls(self.bundle, self.runtime) as pipe:
                found = to_plain(pipe.default_guiders()[0])
        return {**found, "cfg_scale": scale}


class Models(Mapping[str, Model]):
    """The bundles of a server; the first is meant where a request names none.

    Args:
        folders: by name.
        runtime: how they run.
        weights_dir: where weight files are now, if they moved.

    Raises:
        BundleError, OptionError: one cannot be opened, or there is none.
    """

    def __init__(
        self, folders: Mapping[str, Path], runtime: RuntimeConfig, weights_dir: Path | None = None
    ) -> None:
        if not folders:
            raise OptionError("a server needs a bundle.")
        self._models = {
            name: Model(name, open_bundle(folder, weights_dir=weights_dir), runtime)
            for name, folder in folders.items()
        }

    def __getitem__(self, name: str) -> Model:
        return self._models[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    @property
    def default(self) -> str:
        """The name of the first."""
        return next(iter(self))
