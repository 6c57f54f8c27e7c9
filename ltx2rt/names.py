"""The names of all components, and the groups that they are spoken of in."""

from __future__ import annotations

from dataclasses import dataclass

TEXT_HEAD = "text_head"
TEXT_BLOCK = "text_block"
#: layers of Gemma 4 that attend to everything: a structure of their own
TEXT_BLOCK_FULL = "text_block_full"
TEXT_TAIL = "text_tail"
#: of a Gemma that answers: scores of the next token
LANGUAGE_HEAD = "language_head"
TRANSFORMER_HEAD = "transformer_head"
TRANSFORMER_BLOCK = "transformer_block"
#: runs the layers which a quantised bundle leaves in 16 bits
TRANSFORMER_BLOCK_PLAIN = "transformer_block_plain"
TRANSFORMER_TAIL = "transformer_tail"
VIDEO_ENCODER = "video_encoder"
VIDEO_DECODER = "video_decoder"
DIFFUSION_FEATURES = "diffusion_features"
DIFFUSION_CONTEXT = "diffusion_context"
DIFFUSION_PIXELS = "diffusion_pixels"
AUDIO_ENCODER = "audio_encoder"
AUDIO_DECODER = "audio_decoder"
VOCODER = "vocoder"
SPATIAL_UPSAMPLER = "spatial_upsampler"
TEMPORAL_UPSAMPLER = "temporal_upsampler"
DURATION_HEAD = "duration_head"

#: graphs without weights that run beside components on a device: tiles are blended there, and
#: frames become what leaves it; patches of a diffusion decoder are put together first
VIDEO_BLEND = "video_blend"
VIDEO_RGB = "video_rgb"
VIDEO_I420 = "video_i420"
VIDEO_FLOAT = "video_float"
VIDEO_YUV422 = "video_yuv422"
VIDEO_UNPATCH = "video_unpatch"
DEVICE_FRAMES = (VIDEO_BLEND, VIDEO_RGB, VIDEO_I420, VIDEO_FLOAT, VIDEO_YUV422, VIDEO_UNPATCH)
#: and steps of samplers are taken there
STEP_EULER = "step_euler"
STEP_NOISY = "step_noisy"
DEVICE_STEPS = (STEP_EULER, STEP_NOISY)

#: components of every text encoder
TEXT_ENCODER = (TEXT_HEAD, TEXT_BLOCK, TEXT_TAIL)
#: the repeated components of text encoders, whose layers are loaded one at a time
TEXT_BLOCKS = (TEXT_BLOCK, TEXT_BLOCK_FULL)
#: components of every transformer
TRANSFORMER = (TRANSFORMER_HEAD, TRANSFORMER_BLOCK, TRANSFORMER_TAIL)
#: the repeated components of the transformer, whose layers hold nearly all of its weights
TRANSFORMER_BLOCKS = (TRANSFORMER_BLOCK, TRANSFORMER_BLOCK_PLAIN)
#: components that are one transformer with one set of LoRAs merged
LORA_COMPONENTS = (TRANSFORMER_HEAD, *TRANSFORMER_BLOCKS, TRANSFORMER_TAIL)
#: all that LoRAs named at run time may change: connectors and projections too
ADAPTED_COMPONENTS = (*LORA_COMPONENTS, TEXT_TAIL)


@dataclass(frozen=True, slots=True)
class StackNames:
    """Components that run as one (`backends.stack`): head, every layer by one of the blocks, tail.

    `runs_once` a clip: weights of a layer need not be held once it has run.
    """

    head: str
    blocks: tuple[str, ...]
    tail: str
    runs_once: bool = False

    @property
    def components(self) -> tuple[str, ...]:
        return (self.head, *self.blocks, self.tail)


TEXT_STACK = StackNames(TEXT_HEAD, TEXT_BLOCKS, TEXT_TAIL, runs_once=True)
#: the same layers, when Gemma writes: they run once a token
WRITING_STACK = StackNames(TEXT_HEAD, TEXT_BLOCKS, LANGUAGE_HEAD)
TRANSFORMER_STACK = StackNames(TRANSFORMER_HEAD, TRANSFORMER_BLOCKS, TRANSFORMER_TAIL)

#: stands in the place of `VIDEO_DECODER` in LTX-2.5 files that hold one
DIFFUSION_DECODER = (DIFFUSION_FEATURES, DIFFUSION_CONTEXT, DIFFUSION_PIXELS)
#: components that a clip is decoded with
DECODERS = (VIDEO_DECODER, AUDIO_DECODER, VOCODER)

#: components of the text-to-clip pipelines
ONE_STAGE = (*TEXT_ENCODER, *TRANSFORMER, *DECODERS)
TWO_STAGE = (*TEXT_ENCODER, *TRANSFORMER, SPATIAL_UPSAMPLER, *DECODERS)

ENCODE_PROMPT, DENOISE, DECODE = "encode prompt", "denoise", "decode"
#: components whose weights are held at once, by stage of the distilled pipeline
STAGES = {
    ENCODE_PROMPT: (*TEXT_ENCODER, TEXT_BLOCK_FULL),
    DENOISE: (*LORA_COMPONENTS, SPATIAL_UPSAMPLER),
    DECODE: (*DIFFUSION_DECODER, *DECODERS),
}


def stage_of(component: str) -> str:
    """The stage of `STAGES` that a component, or a graph beside it, belongs to."""
    if component in (*TEXT_STACK.components, *WRITING_STACK.components):
        return ENCODE_PROMPT
    return DECODE if component in (*DIFFUSION_DECODER, *DECODERS, *DEVICE_FRAMES) else DENOISE
