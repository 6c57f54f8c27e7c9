"""What the engines of a bundle were built for: which sizes they refuse, the nearest that they take,
and how to build for others.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from ltx2rt.bundle.buckets import SLOWEST_RATE, Bucket, misfit
from ltx2rt.bundle.bundle import Bundle
from ltx2rt.bundle.source import ModelFacts
from ltx2rt.bundle.targets import DEFAULT_SHAPES
from ltx2rt.config import GenerationConfig
from ltx2rt.errors import Field, Problem, ShapeError
from ltx2rt.latents.shapes import AUDIO_GRID
from ltx2rt.names import TRANSFORMER_BLOCK
from ltx2rt.pipelines.request import Request

Size = tuple[int, int, int]

_CLIP = re.compile(r"(\d+)x(\d+)x(\d+)")


class SizeChecks:
    """Compares sizes with the buckets of a bundle's engines.

    Attributes:
        problems: component -> what lies outside, as it was first found.
        tokens: most video tokens that a stage takes.
        passes: most passes that run together.
        sound: most audio latents of the clip.
        cells: of the latent that is decoded.
        used: component or device graph -> all sizes that it is given.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.problems: dict[str, str] = {}
        self.tokens = 0
        self.passes = 1
        self.sound = 0
        self.cells: Sequence[int] = ()
        self.used: dict[str, list[Mapping[str, int]]] = {}

    def check(self, name: str, sizes: Mapping[str, int]) -> None:
        """Note a component that does not take these sizes, by symbol. One that was built for no
        sizes takes all.
        """
        self.note(name, sizes)
        buckets = built_buckets(self.bundle, name)
        if buckets and name not in self.problems and (text := misfit(buckets, sizes)):
            self.problems[name] = f"{name}: {text}"

    def note(self, name: str, sizes: Mapping[str, int]) -> None:
        """Note what a component is given."""
        found = self.used.setdefault(name, [])
        if sizes not in found:
            found.append(dict(sizes))


def built_buckets(source: ModelFacts, name: str) -> tuple[Bucket, ...]:
    """Buckets of a component's engines; none where it has no engines."""
    if not isinstance(source, Bundle) or not source.has(name):
        return ()
    engines = source.component(name).engines
    return engines[0].buckets if engines else ()


def built_clips(bundle: Bundle) -> list[Size]:
    """Width, height and frames of the clips and half-size clips that engines were built for, the
    largest first.
    """
    names = (b.name for b in built_buckets(bundle, TRANSFORMER_BLOCK))
    found = {tuple(map(int, m.groups())) for name in names if (m := _CLIP.fullmatch(name))}
    return sorted(((w, h, n) for w, h, n in found), key=math.prod, reverse=True)


def nearest_clip(bundle: Bundle, height: int, width: int, frames: int) -> Size | None:
    """Width, height and frames of the largest clip that engines were built for, `frames` at most;
    None where they take the given one, or any.
    """
    clips = built_clips(bundle)
    fits = any(
        w * h >= width * height and max(w, h) >= max(width, height) and n >= frames
        for w, h, n in clips
    )
    if fits or not clips:
        return None
    w, h, n = clips[0]
    return w, h, min(n, frames)


def refuse_sizes(
    rehearse: Callable[[Request], SizeChecks], request: Request, free: Collection[str], step: int
) -> SizeChecks:
    """Refuse a request of which the engines do not take every size; gives what they do take.

    Args:
        rehearse: finds what they do not take.
        request: as `prepare` gave it.
        free: of `height`, `width` and `num_frames`, those that a request of this pipeline sets.
        step: height and width are multiples of it.

    Raises:
        ShapeError: names what lies outside, the nearest size that works, and the build that would
            make this one work.
    """
    checks = rehearse(request)
    if not checks.problems:
        return checks

    def works(config: GenerationConfig) -> bool:
        try:
            return not rehearse(replace(request, config=config)).problems
        except ShapeError:
            return False

    advice: list[str] = []
    others = _candidates(checks.bundle, request.config, free, step)
    if request.config.tiling != "auto" and works(replace(request.config, tiling="auto")):
        advice += ["It works with ", Field("tiling"), "=auto. "]
    elif (nearest := next(filter(works, others), None)) is not None:
        advice += ["The nearest that works is ", *_spelled(nearest, free), ". "]
    raise ShapeError(
        "the engines of this bundle were built for other sizes",
        list(checks.problems.values()),
        Problem(*advice, f"To make it as asked, build again: {_command(checks)}"),
    )


def _spelled(config: GenerationConfig, free: Collection[str]) -> list[str]:
    """`height=512, width=768`, of what a request sets."""
    parts: list[str] = []
    for name in ("height", "width", "num_frames"):
        if name in free and isinstance(value := getattr(config, name), int):
            parts += [", "] * bool(parts) + [Field(name), f"={value}"]
    return parts


def _candidates(
    bundle: Bundle, asked: GenerationConfig, free: Collection[str], step: int
) -> list[GenerationConfig]:
    """Requests of other sizes that may work, the nearest first."""
    frames = asked.num_frames if isinstance(asked.num_frames, int) else None
    found: list[tuple[float, GenerationConfig]] = []
    for width, height, count in _near(bundle, asked, step):
        config = asked
        if "width" in free:
            config = replace(config, width=width, height=height)
        if "num_frames" in free and frames is not None:
            config = replace(config, num_frames=min(count, frames))
        ratios = [config.width / asked.width, config.height / asked.height]
        if frames is not None:
            ratios.append(config.frame_count / frames)
        if distance := sum(math.log(ratio) ** 2 for ratio in ratios):
            found.append((distance, config))
    return [config for _, config in sorted(found, key=lambda f: f[0])]


def _near(bundle: Bundle, asked: GenerationConfig, step: int) -> Iterator[Size]:
    """The clips that were built for, lying and standing, and the asked one as large as each of them
    allows.
    """
    for width, height, frames in built_clips(bundle):
        yield width, height, frames
        yield height, width, frames
        scale = min(
            1.0,
            math.sqrt(width * height / (asked.width * asked.height)),
            max(width, height) / max(asked.width, asked.height),
        )
        sides = [int(n * scale) // step * step for n in (asked.width, asked.height)]
        if min(sides) > 0:
            yield sides[0], sides[1], frames


def _command(checks: SizeChecks) -> str:
    """The command that builds a bundle for what was asked, too."""
    bundle = checks.bundle
    manifest, model = bundle.manifest, bundle.model
    flags = shlex.split(manifest.build_flags)
    width, height, frames = built_clips(bundle)[0]
    longest = math.ceil(checks.sound * SLOWEST_RATE / AUDIO_GRID.latents_per_second)
    if checks.cells:
        count, rows, columns = checks.cells
        width, height = columns * model.spatial_scale, rows * model.spatial_scale
        frames = (count - 1) * model.time_scale + 1
        # engines take a clip, a reference as long as it, and some images
        needed = -(-checks.tokens // (2 * rows * columns))
        frames = max(frames, (needed - 1) * model.time_scale + 1)
    frames = max(frames, longest + -(longest - 1) % model.time_scale)
    if "--shapes" not in flags:
        flags += ["--shapes", ",".join(DEFAULT_SHAPES)]
    flags[flags.index("--shapes") + 1] += f",{width}x{height}x{frames}"
    if checks.passes > 1 and "--max-batch" in flags:
        flags[flags.index("--max-batch") + 1] = str(checks.passes)
    elif checks.passes > 1:
        flags += ["--max-batch", str(checks.passes)]
    return f"{manifest.build.command()} {shlex.join(flags)}"


def made_sizes(bundle: Bundle, works: Callable[[Size], bool]) -> list[str]:
    """Clips that a bundle can make: those that it was built for, and others with as many pixels;
    shorter ones are possible too. Empty where engines take any size.

    Args:
        works: whether a clip of width, height and frames does.
    """
    found: list[str] = []
    for width, height, frames in built_clips(bundle):
        step = 2 * bundle.model.spatial_scale
        square = math.isqrt(width * height) // step * step
        ways = [(width, height), (height, width), *([(square, square)] if square else [])]
        for w, h in ways:
            name = f"{w}x{h}x{frames}"
            if name not in found and works((w, h, frames)):
                found.append(name)
    return found
