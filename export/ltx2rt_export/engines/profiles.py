"""Every size a pipeline can ask of a component, as buckets: one optimization profile each.

For every clip of `--shapes`, and for the half-size clip that stage 1 makes before it; and for their
relatives: clips of at most as many pixels and frames with no side above the longest, lying,
standing or square. The symbols are those of the components' `TensorSpec`s; what asks for which
sizes is said at each function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ltx2rt.bundle.buckets import SLOWEST_RATE, Bucket, Range
from ltx2rt.components.stack_plans import streams_of
from ltx2rt.components.tokenizer import MAX_TOKENS
from ltx2rt.engine import TensorSpec
from ltx2rt.errors import InternalError
from ltx2rt.latents.shapes import AUDIO_GRID, AudioLatentShape
from ltx2rt.names import (
    AUDIO_DECODER,
    AUDIO_ENCODER,
    DIFFUSION_CONTEXT,
    DIFFUSION_FEATURES,
    DIFFUSION_PIXELS,
    DURATION_HEAD,
    LANGUAGE_HEAD,
    SPATIAL_UPSAMPLER,
    STEP_EULER,
    STEP_NOISY,
    TEMPORAL_UPSAMPLER,
    TEXT_BLOCK,
    TEXT_BLOCK_FULL,
    TEXT_HEAD,
    TEXT_TAIL,
    TRANSFORMER_BLOCK,
    TRANSFORMER_BLOCK_PLAIN,
    TRANSFORMER_HEAD,
    TRANSFORMER_TAIL,
    VIDEO_BLEND,
    VIDEO_DECODER,
    VIDEO_ENCODER,
    VIDEO_FLOAT,
    VIDEO_I420,
    VIDEO_RGB,
    VIDEO_UNPATCH,
    VIDEO_YUV422,
    VOCODER,
)
from ltx2rt_export.engines.profile_request import ONE, ProfileRequest, Rule, make_bucket
from ltx2rt_export.engines.shapes import ClipShape
from ltx2rt_export.engines.video_profiles import (
    diffusion_contexts_buckets,
    diffusion_features_buckets,
    diffusion_patches_buckets,
    finished_frames_buckets,
    spatial_upsampler_buckets,
    temporal_upsampler_buckets,
    video_blend_buckets,
    video_decoder_buckets,
    video_encoder_buckets,
)

#: keyframe images that may be appended to a clip's tokens, one latent frame each
KEYFRAMES = 8

#: reference clips that may be appended, each as long as the clip
REFERENCES = 1

#: distinct noise levels among the tokens of a batch: each conditioning item has its own strength
TIMESTEPS = (1, 2, 256)

#: summed ranks of LoRAs that are inputs of the block
LORA_RANKS = (1, 64, 512)

#: slowest and usual frame rate: they fix how long the sound of a clip is
FRAME_RATES = (SLOWEST_RATE, 24.0)


def component_buckets(
    name: str, inputs: Sequence[TensorSpec], request: ProfileRequest
) -> tuple[Bucket, ...]:
    """Buckets of a component; sizes only of symbols that its inputs have.

    Raises:
        InternalError: a component, or a symbol, that no rule names.
    """
    make = RULES.get(name)
    if make is None:
        raise InternalError(f"no rule makes buckets for {name}")
    dimensions = {d for spec in inputs for d in spec.shape if isinstance(d, str)}
    symbols = {d.removeprefix("1|") for d in dimensions}
    buckets: list[Bucket] = []
    for bucket in make(request):
        missing = symbols - set(bucket.sizes)
        if missing:
            raise InternalError(f"the buckets of {name} say nothing about {sorted(missing)}")
        used = sorted((symbols | dimensions) & set(bucket.sizes))
        kept = Bucket(name=bucket.name, sizes={s: bucket.sizes[s] for s in used})
        if kept.sizes not in [b.sizes for b in buckets]:
            buckets.append(kept)
    return tuple(buckets)


def _transformer(request: ProfileRequest) -> list[Bucket]:
    """Tokens of a clip, with room for what conditioning appends; down to one token, which stands
    for a stream that is off. Text is always 1024 tokens long.

    Passes that run together take no `[T, T]` self-attention mask: TensorRT-RTX 1.7 fuses the
    attention of a batch only if the number of mask rows is known (measured), and the logits of one
    that is not fused do not fit a card.
    """
    buckets = []
    for shape in request.stages():
        sizes = _token_sizes(shape, request)
        buckets.append(make_bucket(shape.name, B=ONE, **sizes))
        if request.max_batch > 1:
            no_mask = {"1|Tv": (1, 1, 1), "1|Ta": (1, 1, 1)}
            batch = (2, request.max_batch, request.max_batch)
            name = f"{shape.name} batch {request.max_batch}"
            buckets.append(make_bucket(name, B=batch, **sizes, **no_mask))
    return buckets


def _transformer_ends(request: ProfileRequest) -> list[Bucket]:
    """Head and tail run once where the block runs 48 times: one bucket for all stages, made for
    the largest.
    """
    stages = [_token_sizes(shape, request) for shape in request.stages()]
    sizes = {
        symbol: (low, likely, max(s[symbol][2] for s in stages))
        for symbol, (low, likely, _) in stages[-1].items()
    }
    name = f"up to {request.stages()[-1].name}"
    return [make_bucket(name, B=(1, request.max_batch, request.max_batch), **sizes)]


def _steps(request: ProfileRequest) -> list[Bucket]:
    """Tokens of either stream."""
    (ends,) = _transformer_ends(request)
    options = request.options[TRANSFORMER_BLOCK]
    channels = [options[name]["in_channels"] for name in streams_of(options)]
    low, likely, high = ends.sizes["Tv"]
    tokens = low, likely, max(high, ends.sizes["Ta"][2])
    return [make_bucket(ends.name, T=tokens, C=(min(channels), channels[0], max(channels)))]


def _token_sizes(shape: ClipShape, request: ProfileRequest) -> dict[str, Range]:
    """Sizes of everything but the batch."""
    frames, rows, columns = shape.cells(request.factors)
    tokens = frames * rows * columns
    room = rows * columns * (KEYFRAMES + REFERENCES * frames)
    likely, longest = _audio_latents(shape)
    return {
        "Tv": (1, tokens, tokens + room),
        "Ta": (1, likely, (1 + REFERENCES) * longest),
        "S": (MAX_TOKENS, MAX_TOKENS, MAX_TOKENS),
        "Uv": TIMESTEPS,
        "Ua": TIMESTEPS,
        "r": LORA_RANKS,
    }


def _audio_latents(shape: ClipShape) -> tuple[int, int]:
    """Audio latents of a clip at the usual and at the slowest frame rate; at least one."""
    slow, usual = (
        max(1, AudioLatentShape.from_duration(shape.num_frames / rate, grid=AUDIO_GRID).num_frames)
        for rate in FRAME_RATES
    )
    return usual, slow


def _text_encoder(request: ProfileRequest) -> list[Bucket]:
    """One prompt at a time, always 1024 tokens."""
    del request
    return [make_bucket("prompt", B=ONE, S=(MAX_TOKENS,) * 3)]


def _duration_head(request: ProfileRequest) -> list[Bucket]:
    del request
    return [make_bucket("prompt", B=ONE, Sv=(MAX_TOKENS,) * 3, Sa=(MAX_TOKENS,) * 3)]


def _audio(symbol: str, per_latent: Callable[[ProfileRequest], int], least: int = 1) -> Rule:
    """Sound of a clip; longer than the clip if its frame rate is low."""

    def make(request: ProfileRequest) -> list[Bucket]:
        buckets = []
        for shape in request.shapes:
            likely, longest = (n * per_latent(request) for n in _audio_latents(shape))
            smallest = min(least, likely)
            buckets.append(make_bucket(shape.name, B=ONE, **{symbol: (smallest, likely, longest)}))
        return buckets

    return make


def _mel_per_latent(request: ProfileRequest) -> int:
    return int(request.options[AUDIO_DECODER]["mel_frames_per_latent"])


def _samples_per_latent(request: ProfileRequest) -> int:
    facts = request.options[AUDIO_ENCODER]
    return int(facts["mel_hop_length"]) * int(facts["mel_frames_per_latent"])


def _audio_encoder(request: ProfileRequest) -> list[Bucket]:
    least = int(request.options[AUDIO_ENCODER]["n_fft"]) // 2 + 1
    return _audio("N", _samples_per_latent, least)(request)


RULES: dict[str, Rule] = {
    TEXT_HEAD: _text_encoder,
    TEXT_BLOCK: _text_encoder,
    TEXT_BLOCK_FULL: _text_encoder,
    TEXT_TAIL: _text_encoder,
    LANGUAGE_HEAD: _text_encoder,
    DURATION_HEAD: _duration_head,
    TRANSFORMER_HEAD: _transformer_ends,
    TRANSFORMER_BLOCK: _transformer,
    TRANSFORMER_BLOCK_PLAIN: _transformer,
    TRANSFORMER_TAIL: _transformer_ends,
    VIDEO_ENCODER: video_encoder_buckets,
    VIDEO_DECODER: video_decoder_buckets,
    STEP_EULER: _steps,
    STEP_NOISY: _steps,
    VIDEO_BLEND: video_blend_buckets,
    VIDEO_RGB: finished_frames_buckets,
    VIDEO_I420: finished_frames_buckets,
    VIDEO_FLOAT: finished_frames_buckets,
    VIDEO_YUV422: finished_frames_buckets,
    VIDEO_UNPATCH: diffusion_patches_buckets,
    AUDIO_ENCODER: _audio_encoder,
    AUDIO_DECODER: _audio("Ta", lambda request: 1),
    VOCODER: _audio("M", _mel_per_latent),
    SPATIAL_UPSAMPLER: spatial_upsampler_buckets,
    TEMPORAL_UPSAMPLER: temporal_upsampler_buckets,
    DIFFUSION_FEATURES: diffusion_features_buckets,
    DIFFUSION_CONTEXT: diffusion_contexts_buckets,
    DIFFUSION_PIXELS: diffusion_patches_buckets,
}
