"""The next clip's prompts are encoded while this one is decoded."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ltx2rt.bundle.bundle import Bundle
from ltx2rt.bundle.host_plan import plan_host
from ltx2rt.components.text_encoder import TextContext
from ltx2rt.config import RuntimeConfig
from ltx2rt.errors import Ltx2rtError
from ltx2rt.lora.files import Lora
from ltx2rt.machine import machine_bytes
from ltx2rt.pipelines.base import Pipeline, pipeline_class
from ltx2rt.pipelines.engines import Engines
from ltx2rt.pipelines.request import Request
from ltx2rt.service.requests import Order

logger = logging.getLogger(__name__)


class Ahead:
    """A text encoder for all pipelines of a bundle, which works for one clip at a time: for the one
    that is being sampled, or, while that is decoded, for the next.

    Args:
        bundle: opened.
        runtime: how it runs.
    """

    def __init__(self, bundle: Bundle, runtime: RuntimeConfig) -> None:
        self.engines = Engines(bundle, runtime)
        self._bundle, self._runtime = bundle, runtime
        self._encoding = threading.Lock()
        self._wanted: Mapping[str, Any] | None = None
        self._found: tuple[tuple[str, ...], tuple[Lora, ...], TextContext] | None = None

    def close(self) -> None:
        """Free it, when nothing is encoded any more."""
        self._wanted = None
        with self._encoding:
            self.engines.close()

    def want(self, order: Mapping[str, Any]) -> None:
        """Encode the prompts of this one, an `Order.plain`, as soon as no clip is sampled."""
        self._wanted = order
        threading.Thread(target=self._encode, args=(order,), name="ahead", daemon=True).start()

    @contextmanager
    def ready_for(self, pipe: Pipeline, request: Request) -> Iterator[None]:
        """Keep the text encoder for a clip that is sampled, with what was found for it.

        Args:
            pipe: makes it.
            request: accepted.
        """
        self._wanted = None  # from here on it is too late
        with self._encoding:
            found, self._found = self._found, None
            if found is not None and found[0] == tuple(pipe.prompts(request)):
                pipe.engines.contexts = found
            yield

    def _encode(self, order: Mapping[str, Any]) -> None:
        with self._encoding:
            if self._wanted is not order:
                return
            try:
                self._found = self._contexts(Order.from_plain(order))
            except (Ltx2rtError, MemoryError, OSError) as error:
                # the clip itself meets it again, and fails with it
                logger.warning("prompts were not encoded ahead: %s", error or type(error).__name__)

    def _contexts(
        self, order: Order
    ) -> tuple[tuple[str, ...], tuple[Lora, ...], TextContext] | None:
        with pipeline_class(order.pipeline)(self._bundle, self._runtime) as pipe:
            request = pipe.accept(order.request)
            prompts = tuple(pipe.prompts(request))
            loras = pipe.engines.loader.text_loras(request.config.loras)
        return prompts, loras, self.engines.prompt_encoder(loras)(prompts)


def ahead_of(bundle: Bundle, runtime: RuntimeConfig) -> Ahead | None:
    """What encodes ahead; None where the text encoder does not stay in memory beside the rest. On a
    GPU it does not: one plan divides its memory among parts that run one after another.
    """
    ahead = Ahead(bundle, runtime)
    is_host = ahead.engines.on_host and bundle.manifest.runs_on_cpu
    if runtime.residency != "resident" or not is_host:
        return None
    try:
        plan = plan_host(bundle.manifest, machine_bytes(), resident=True)
    except Ltx2rtError:  # too small a machine: every request is refused with the sentence
        return None
    return ahead if plan.keep_text else None
