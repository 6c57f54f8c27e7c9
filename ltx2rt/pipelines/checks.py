"""Checks of a request that every pipeline makes before anything is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ltx2rt.bundle.source import ModelFacts
from ltx2rt.components.embeddings import check_embeddings
from ltx2rt.config import DEFAULT_NEGATIVE_PROMPT, GenerationConfig
from ltx2rt.errors import Field, MediaError, OptionError, Problem, ShapeError, UnsupportedError
from ltx2rt.latents.conditioning import keyframe_indices
from ltx2rt.latents.duration import AutoDuration
from ltx2rt.latents.shapes import AudioLatentShape, VideoScaleFactors, check_generation_size
from ltx2rt.machine import machine_bytes
from ltx2rt.media.exr import exr_files, exr_size, is_exr, openexr
from ltx2rt.media.files import is_video
from ltx2rt.names import DURATION_HEAD, TRANSFORMER_BLOCK
from ltx2rt.pipelines.request import Request
from ltx2rt.results.latent_file import LatentFile


def stage_option_problems(
    config: GenerationConfig, pipeline: str, *, guided: bool, two_stage: bool
) -> list[str]:
    """Samplers, sigmas and LoRAs for stages that a pipeline does not have."""
    problems: list[str] = []
    if config.sampler == "cfg_pp" and not guided:
        problems.append(
            Problem(Field("sampler"), f"=cfg_pp is for guided pipelines; {pipeline} is not one")
        )
    if config.stage_2_sampler == "cfg_pp":
        problems.append(
            Problem(Field("stage_2_sampler"), "=cfg_pp is not possible: stage 2 is not guided")
        )
    if not two_stage:
        problems += [
            Problem(Field(f"config.{name}"), f" is for pipelines of two stages; {pipeline} has one")
            for name in (
                "stage_2_sampler",
                "stage_2_sigmas",
                "stage_2_loras",
                "stage_2_tile",
                "latents",
            )
            if getattr(config, name) is not None
        ]
    return problems


def check_size(
    config: GenerationConfig, factors: VideoScaleFactors, *, any_length: bool = False
) -> None:
    """Refuse a size that no pipeline can make: any even height and width can be rendered.

    Args:
        factors: pixels per latent cell.
        any_length: whether frames need not be `8k+1`.

    Raises:
        ShapeError: lists every problem, each with the nearest valid values.
    """
    fixed = isinstance(config.num_frames, int) and not (any_length and config.num_frames > 0)
    frames = config.frame_count if fixed else 1
    check_generation_size(config.height, config.width, frames, factors)


def check_memory(config: GenerationConfig, source: ModelFacts, *, in_tiles: bool) -> None:
    """Refuse a clip that cannot fit this machine's memory, before anything is loaded.

    Raises:
        ShapeError: says what there is, and how many frames would fit.
    """
    if isinstance(config.num_frames, AutoDuration):
        return
    room = machine_bytes()
    needed = least_bytes(config, config.num_frames, source, in_tiles=in_tiles)
    if needed <= room:
        return
    fitting = config.num_frames  # halved until it fits: this is no measure, but a bound
    while fitting and least_bytes(config, fitting, source, in_tiles=in_tiles) > room:
        fitting //= 2
    fitting = (fitting - 1) // source.model.time_scale * source.model.time_scale + 1
    what = f"at most {fitting} frames" if fitting > 0 else "fewer pixels"
    raise ShapeError(
        f"{config.width}x{config.height} pixels and {config.num_frames} frames take at least "
        f"{needed / 2**30:.1f} GiB; this machine has {room / 2**30:.1f}: ask for {what}, and for "
        "room to work in for less."
    )


def least_bytes(
    config: GenerationConfig, frames: int, source: ModelFacts, *, in_tiles: bool
) -> int:
    """What a pass holds at the least, all in float32. Of each token: the latent, its noise, the
    clean estimate and the step before; the two tables of its positions, its own and across; of a
    block its input, the normed one, and a layer four times as wide before and after its activation.
    And a finished frame.

    Args:
        frames: instead of those of `config`.
        in_tiles: only latents are of the whole clip.
    """
    model, block = source.model, source.options(TRANSFORMER_BLOCK)
    height, width = (-(-side // model.spatial_scale) for side in (config.height, config.width))
    tokens = {"video": ((frames - 1) // model.time_scale + 1) * height * width}
    seconds = frames / config.frame_rate
    shape = AudioLatentShape.from_duration(
        seconds, channels=model.audio_channels, mel_bins=model.audio_bins
    )
    tokens["audio"] = shape.token_count
    total = 4 * 3 * config.height * config.width
    for modality, count in tokens.items():
        stream = block.get(modality)
        if stream is not None:
            numbers = 4 * stream["in_channels"] + (0 if in_tiles else 14 * stream["width"])
            total += 4 * count * numbers
    return total


def check_duration(config: GenerationConfig, source: ModelFacts) -> None:
    """Refuse an automatic duration where the model has none.

    Raises:
        OptionError, UnsupportedError: says what to do instead.
    """
    if not isinstance(config.num_frames, AutoDuration):
        return
    if not source.has(DURATION_HEAD):
        raise UnsupportedError(
            Problem(
                "an automatic duration needs a duration head, which this bundle of "
                f"{source.model.generation} does not hold; give ",
                Field("num_frames"),
                " as a number, or build an LTX-2.5 bundle with one (ltx2rt build --duration-head "
                "FILE).",
            )
        )
    if moving := [image.path for image in config.images if is_video(image.path)]:
        raise OptionError(
            Problem(
                f"{moving[0]} is a video, of which a clip of unknown length cannot say how much it "
                "shows; give ",
                Field("num_frames"),
                " as a number.",
            )
        )
    limit = config.num_frames.limits(config.frame_rate)[1]
    late = [i for i in config.images if i.frame >= limit]
    if late:
        raise OptionError(
            f"image {late[0].path} is placed at frame {late[0].frame}; the clip has at most "
            f"{limit} frames."
        )


def check_given_latents(path: Path, size: tuple[int, int], factors: VideoScaleFactors) -> None:
    """Refuse a file of latents whose first stage is not that of this clip.

    Args:
        size: height and width of the rendered picture.
        factors: pixels per latent cell.

    Raises:
        OptionError, CheckpointError: says what it holds.
    """
    file = LatentFile(path)
    found = file.sizes("stage_1.video")
    want = size[0] // 2 // factors.height, size[1] // 2 // factors.width
    if found is None or found[3:] != want:
        held = "nothing" if found is None else f"{found[4]}x{found[3]} cells"
        raise OptionError(
            f"{path} holds {held} of a stage_1, and the first stage of this clip has "
            f"{want[1]}x{want[0]}; leave the size out to take the file's."
        )


def check_keyframes(source: ModelFacts, config: GenerationConfig) -> None:
    """Refuse generated keyframes that this model or this clip cannot have.

    Raises:
        UnsupportedError: the model has no keyframe embedding.
        OptionError: the frames do not lie in the clip.
    """
    if not config.generated_keyframes:
        return
    if not source.options(TRANSFORMER_BLOCK)["keyframes_embedding"]:
        raise UnsupportedError(
            f"generated keyframes were asked for, which {source.model.generation} cannot "
            "make: its transformer has no keyframe embedding; use an LTX-2.5 model, or ask for "
            "none."
        )
    if isinstance(config.num_frames, int):
        keyframe_indices(config.generated_keyframes, config.num_frames)


def with_embedded_prompts(request: Request, source: ModelFacts) -> Request:
    """A request with embeddings, its prompts those that they were made from.

    Raises:
        CheckpointError: the embeddings do not fit the model.
        OptionError: they were made from other prompts than those asked for.
    """
    config, guidance = request.config, request.guidance
    assert config.embeddings is not None
    info = check_embeddings(config.embeddings, source.context_widths(), source.text_encoder_id)
    made_from = dict(zip(("prompt", "negative_prompt"), info.prompts, strict=False))
    asked = {"prompt": config.prompt} if config.prompt.strip() else {}
    if guidance is not None and guidance.negative_prompt != DEFAULT_NEGATIVE_PROMPT:
        asked["negative_prompt"] = guidance.negative_prompt
    problems = [
        Problem(
            f"they were made from {name.replace('_', ' ')} {made_from[name]!r:.80}, not from the "
            "one asked for; leave ",
            Field(name),
            " out, or save them again",
        )
        for name, text in asked.items()
        if made_from.get(name, text) != text
    ]
    if problems:
        raise OptionError(f"embeddings {config.embeddings}", problems)
    if "prompt" in made_from:
        config = replace(config, prompt=made_from["prompt"])
    if guidance is not None and "negative_prompt" in made_from:
        guidance = replace(guidance, negative_prompt=made_from["negative_prompt"])
    return replace(request, config=config, guidance=guidance)


def exr_problems(request: Request, *, takes_hdr: bool) -> list[str]:
    """What is wrong with the images and the videos as far as dynamic range goes.

    Args:
        takes_hdr: whether the pipeline knows high dynamic range (`GenerationConfig.hdr`).
    """
    images = [image.path for image in request.config.images]
    videos = [reference.path for reference in getattr(request.inputs, "references", ())]
    if (source := getattr(request.inputs, "video", None)) is not None:
        videos.append(source)
    problems = [
        f"{path} is an EXR still; a video is a folder of them"
        for path in videos
        if is_exr(path) and not path.is_dir()
    ]
    problems += [
        f"{path} is a folder; an image is a single file" for path in images if path.is_dir()
    ]
    high = [path for path in (*images, *videos) if is_exr(path)]
    ordinary = [path for path in (*images, *videos) if not is_exr(path)]
    if high and not takes_hdr:
        return [*problems, f"{high[0]} is of high dynamic range, which it cannot read"]
    if high and request.config.hdr is None:
        problems.append(
            Problem(f"{high[0]} is of high dynamic range; say what it holds with ", Field("hdr"))
        )
    if high and ordinary:
        problems.append(
            f"{high[0]} is of high dynamic range and {ordinary[0]} is not; use one kind"
        )
    if request.config.hdr is not None or high:
        problems += _unreadable(high)
    return problems


def _unreadable(paths: list[Path]) -> list[str]:
    try:
        openexr()
    except UnsupportedError as error:
        return [*error.problems]
    problems: list[str] = []
    for path in paths:
        try:
            exr_size(exr_files(path)[0] if path.is_dir() else path)
        except MediaError as error:
            problems += error.problems
    return problems
