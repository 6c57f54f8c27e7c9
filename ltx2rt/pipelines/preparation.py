"""How a request of a pipeline is made, filled in and checked, before anything is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ltx2rt.bundle.bundle import Bundle
from ltx2rt.bundle.host_plan import plan_host
from ltx2rt.bundle.source import ModelFacts
from ltx2rt.config import GenerationConfig, GuidanceConfig, RuntimeConfig
from ltx2rt.errors import BundleError, InternalError
from ltx2rt.latents.shapes import VideoScaleFactors, rendered_size
from ltx2rt.latents.tiling import TilingConfig
from ltx2rt.machine import machine_bytes
from ltx2rt.names import DIFFUSION_DECODER, TEXT_ENCODER
from ltx2rt.pipelines.built_sizes import SizeChecks, built_clips, nearest_clip, refuse_sizes
from ltx2rt.pipelines.checks import (
    check_duration,
    check_given_latents,
    check_keyframes,
    check_memory,
    check_size,
    exr_problems,
    with_embedded_prompts,
)
from ltx2rt.pipelines.engines import Engines
from ltx2rt.pipelines.facts import PipelineFacts, field_names
from ltx2rt.pipelines.generation import Run
from ltx2rt.pipelines.given import from_memory
from ltx2rt.pipelines.model_kind import warn_of_model
from ltx2rt.pipelines.neighbours import neighbour_problems
from ltx2rt.pipelines.rehearsal import rehearse
from ltx2rt.pipelines.request import Request
from ltx2rt.pipelines.soundtrack import with_soundtrack
from ltx2rt.results.clip import Clip

#: accepted requests that are remembered
KEPT_REQUESTS = 16

#: fields of a `GenerationConfig` that say how large its frames are
SIZE_FIELDS = frozenset(("height", "width"))


class PipelineRequests(PipelineFacts):
    """What a pipeline with a bundle says of requests; `Pipeline` adds how they are run.

    Attributes:
        engines: of the bundle.
    """

    engines: Engines
    _accepted: list[tuple[Request, SizeChecks]]

    @property
    def source(self) -> ModelFacts:
        """The bundle."""
        return self.engines.source

    @property
    def runtime(self) -> RuntimeConfig:
        """How it runs."""
        return self.engines.runtime

    @property
    def scale_factors(self) -> VideoScaleFactors:
        """Pixels per latent cell of this model."""
        return self.engines.scale_factors

    def size_multiple(self, request: Request) -> int:
        """What height and width of the rendered picture are multiples of."""
        return self.scale_factors.height * (2 if self.two_stage else 1)

    def rendered_size(self, request: Request) -> tuple[int, int]:
        """Height and width of what is rendered; the clip is cut out of it."""
        config = request.config
        return rendered_size(config.height, config.width, self.size_multiple(request))

    def make_request(
        self,
        config: GenerationConfig | None,
        guidance: GuidanceConfig | None,
        inputs: Any,
        options: Mapping[str, Any],
    ) -> Request:
        """A request from objects and keywords; this pipeline's size where they name none.

        Raises:
            OptionError: keywords that nothing takes (all are named), or guidance or inputs that
                this pipeline does not take.
        """
        names = field_names(GenerationConfig)
        own = field_names(self.Inputs)
        known = {n: f"config.{n}" for n in names} | {n: f"inputs.{n}" for n in own}
        problems = [f"{name} is not an option" for name in sorted(options.keys() - known.keys())]
        problems += self.named_problems([known[n] for n in options if n in known])
        if config is not None:
            problems += [f"{n} was given beside config" for n in sorted(options.keys() & names)]
        if inputs is None:
            problems += self.missing_inputs(options)
        else:
            problems += [f"{n} was given beside inputs" for n in sorted(options.keys() & own)]
            if self.Inputs is None or not isinstance(inputs, self.Inputs):
                problems.append(f"inputs of type {type(inputs).__name__} are not for this pipeline")
        if guidance is not None and not self.guided:
            problems.append("it takes no guidance: use a guided pipeline (one-stage, two-stage)")
        if problems:
            raise self.refusal(problems)
        if inputs is None and self.Inputs is not None:
            inputs = self.Inputs(**{k: v for k, v in options.items() if k in own})
        if config is None:
            given = from_memory({k: v for k, v in options.items() if k in names})
            found = self.defaults(inputs, given)
            if not given.keys() & SIZE_FIELDS:
                found |= self.built_size({**found, **given})
            config = GenerationConfig(**{**found, **given})
        return Request(config=config, guidance=guidance, inputs=inputs)

    def built_size(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Height, width and frames that the engines were built for, where this pipeline's own size
        is none that they take; nothing where it is, or another one was asked for.

        Args:
            fields: of a `GenerationConfig`, so far as they are known.
        """
        own = (fields.get("height"), fields.get("width")) == self.default_size
        if not own or not isinstance(self.source, Bundle):
            return {}
        frames = fields.get("num_frames", GenerationConfig().num_frames)
        fixed = isinstance(frames, int)
        size = nearest_clip(self.source, fields["height"], fields["width"], frames if fixed else 1)
        if size is None:
            return {}
        found = {"width": size[0], "height": size[1]}
        return {**found, "num_frames": size[2]} if fixed else found

    def accept(self, request: Request) -> Request:
        """As `prepare`; and refuse sizes that the bundle's engines were not built for.

        Raises:
            ShapeError: names the nearest size that works, and the build that would make this one.
        """
        prepared = self.prepare(request)
        self._check_sizes(prepared)
        return prepared

    def _check_sizes(self, request: Request) -> None:
        """Refuse sizes that the engines do not take; requests that passed are not looked at again,
        for files are read in it.
        """
        source = self.source
        if not isinstance(source, Bundle) or not built_clips(source):
            return
        if self._checks_of(request) is not None:
            return
        sizes = {"height", "width", "num_frames"}
        checks = refuse_sizes(
            lambda other: rehearse(self._made, self.engines, other),
            request,
            free=sizes - set(self.unused),
            step=self.scale_factors.height * (2 if self.two_stage else 1),
        )
        self._accepted = [*self._accepted[-KEPT_REQUESTS:], (request, checks)]

    def _checks_of(self, request: Request) -> SizeChecks | None:
        """What a request that was accepted gives engines."""
        return next((checks for seen, checks in self._accepted if seen == request), None)

    def prepare(self, request: Request) -> Request:
        """The request with every default filled in, checked before anything is loaded."""
        config = request.config
        problems = self.problems(request) + exr_problems(
            request, takes_hdr="hdr" not in self.unused
        )
        if problems:
            raise self.refusal(problems)
        if config.latents is not None:
            check_given_latents(config.latents, self.rendered_size(request), self.scale_factors)
        if problems := neighbour_problems(config, self.source):
            raise self.refusal(problems)
        if config.audio is not None:
            config = with_soundtrack(config, self.source, self.scale_factors)
            request = dataclasses.replace(request, config=config)
        warn_of_model(type(self), self.source.model, request)
        check_duration(config, self.source)
        if self.makes == "video":
            check_size(config, self.scale_factors, any_length=self.any_length)
            if self.engines.on_host:
                parts = self.in_tiles or self.any_length or config.stage_2_tile is not None
                check_memory(config, self.source, in_tiles=parts)
            if not self.source.has(*DIFFUSION_DECODER):
                TilingConfig.parse(config.tiling).check(self.scale_factors)
        self._refuse_small_machine()
        check_keyframes(self.source, config)
        if config.embeddings is not None:
            return with_embedded_prompts(request, self.source)
        self._refuse_missing([c for c in self.missing(self.source.has) if c in TEXT_ENCODER])
        return request

    def _refuse_small_machine(self) -> None:
        """Refuse a bundle of which this machine's memory cannot hold one layer at a time.

        Raises:
            UnsupportedError: says what is needed and what there is.
        """
        source = self.source
        if self.engines.on_host and isinstance(source, Bundle) and source.manifest.runs_on_cpu:
            resident = self.runtime.residency == "resident"
            plan_host(source.manifest, machine_bytes(), resident=resident)

    def _refuse_missing(self, missing: Sequence[str]) -> None:
        if missing:
            raise BundleError(
                f"the {self.name} pipeline needs {', '.join(missing)}, which this bundle does not "
                "hold; build it again with the files that hold them (`ltx2rt inspect BUNDLE` lists "
                "what it has)."
            )

    def _made(self, run: Run) -> Clip:
        """The clip of a run; a rehearsal of it finds sizes that no engine takes."""
        raise InternalError(f"{type(self).__name__} generates nothing")
